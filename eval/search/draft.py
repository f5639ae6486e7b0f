"""Schedules on their way: anything may be changed, and what is not free is put back.

A decision that is not free keeps the value of the base solver on the base grid, in everything that
is built: nothing else can be brought in by a seed or by crossing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from pydantic import ValidationError

from ...models.errors import SettingError
from ...models.schedule import Node
from ...solvers import StepSchedule
from ...solvers.exponential import Corrector, StepSpec
from ...solvers.interpolation import AUTO, LAM
from ...solvers.linear import place_steps
from .space import Space, nearest

GAP = 0.01  # nearest nodes in lam; nearer ones only amplify rounding
ROUNDING = 1e-6  # of lam, on its way to a time and back


@dataclass
class Draft:
    """A schedule on its way: anything may be changed, `build` makes it valid again.

    nodes:  those between the ends, in any order.
    start:  time of the first node.
    end:    time of the last node.
    steps:  one more than nodes.
    shifts: xi of each step.
    """

    nodes: list[Node]
    start: float
    end: float
    steps: list[StepSpec]
    afs: Any = None
    shifts: list[float] = field(default_factory=list)

    @classmethod
    def of(cls, schedule: StepSchedule) -> "Draft":
        """Returns its decisions; free coefficients and compiled tables stay behind."""
        nodes = schedule.grid().nodes
        return cls(
            nodes=list(nodes[1:-1]),
            start=schedule.t[0],
            end=schedule.t[-1],
            steps=list(schedule.steps),
            afs=schedule.afs,
            shifts=list(schedule.xi) or [0.0] * len(schedule.steps),
        )

    def build(self, space: Space) -> StepSchedule | None:
        """Returns the valid schedule nearest to this; None if the times cannot be told apart."""
        free = space.free
        start, end = self._ends(space)
        base = space.base(len(self.steps), end)
        inner = self._inner(space) if "times" in free else base.t[1:-1]
        if inner is None:
            return None
        afs = self.afs if "afs" in free else base.afs
        try:
            return StepSchedule(
                process=base.process,
                t=(start, *inner, end),
                steps=tuple(_fit_steps(self.steps, base, space, start, end)),
                afs=afs,
                nfe=len(self.steps) - (afs is not None),
                xi=self._xi() if "xi" in free else (),
            )
        except ValidationError:
            return None

    def _ends(self, space: Space) -> tuple[float, float]:
        """Allowed times for the first node and the last."""
        base = space.base(len(self.steps))
        start, end = (self.start, self.end) if "ends" in space.free else (base.t[0], base.t[-1])
        return nearest(space.starts, start), end if end in space.ends else base.t[-1]

    def _inner(self, space: Space) -> tuple[float, ...] | None:
        """Times between the ends, or None if two nodes are too near or one is out of range."""
        low, high = space.lams
        start, end = self._ends(space)
        inner = sorted(self.nodes, key=lambda node: node.lam)
        first = max(low, space.process.at(start).lam)
        last = high + GAP if end == space.process.t_zero else high
        lams = [first, *(node.lam for node in inner), last]
        if any(b - a < GAP - ROUNDING for a, b in pairwise(lams)):
            return None
        return tuple(node.t for node in inner)

    def _xi(self) -> tuple[float, ...]:
        shifts = (0.0, *self.shifts[1:])  # the first evaluation is that of the noise
        return shifts if any(shifts) else ()


def _fit_steps(
    steps: Sequence[StepSpec], base: StepSchedule, space: Space, start: float, end: float
) -> list[StepSpec]:
    """Steps as they can be where they stand, written in one way only."""
    first, out = space.process.at(start), []
    for i, step in enumerate(steps):
        spec = _fix_decisions(step, base, i, space.free)
        last = i == len(steps) - 1
        if last and end == space.process.t_zero:
            spec = StepSpec()
        if i == 0 and first.alpha == 0.0:  # where eps tells nothing of the data
            spec = spec.model_copy(update={"pred": "data", "mix_l": 1.0})
        out.append(_simplify(spec, i + 1, last))
    return place_steps(out, first, AUTO)


def _fix_decisions(step: StepSpec, base: StepSchedule, i: int, free: frozenset[str]) -> StepSpec:
    """Returns the step with decisions that are not free taken from the base's step i."""
    model = base.steps[i]
    values: dict[str, Any] = {"dA": 0.0, "dB": None}
    if "order" not in free:
        values |= {"order": model.order, "kmul": model.kmul}
    if "pred" not in free:
        values |= {"pred": model.pred, "mix_l": model.mix_l}
    elif "mixed" not in free and step.pred == "mixed":
        values |= {"pred": "data" if step.mix_l >= 0.5 else "noise", "mix_l": 1.0}
    if "est" not in free:
        values["est"] = ()
    if "relax" not in free:
        values |= {"relax": _find_relax(base), "c": 0.0}
    if "corr" not in free:
        values["corr"] = model.corr
    return step.model_copy(update=values)


def _find_relax(base: StepSchedule) -> str:
    in_lam = (step for step in base.steps if step.order > 1 and step.coordinate == LAM)
    return next((step.relax for step in in_lam), "none")


def _simplify(step: StepSpec, highest: int, last: bool) -> StepSpec:
    """Returns the step with at most that order, and nothing set that has no effect."""
    order = min(step.order, highest)
    points = [min(max(n, k), order - 1) for k, n in enumerate(step.est[: order - 1], start=1)]
    points += [order - 1] * (order - 1 - len(points))
    full = all(n == order - 1 for n in points)
    relax = step.relax if order > 1 else "none"
    corrected = step.corr.on and not last
    pred = step.pred if order > 1 or corrected or step.pred == "mixed" else "data"
    corr_relax = step.corr.relax if corrected and order == 1 else "none"
    return StepSpec(
        pred=pred,
        mix_l=step.mix_l if pred == "mixed" else 1.0,
        order=order,
        est=() if full else tuple(points),
        relax=relax,
        c=min(max(step.c, -1.0), 1.0) if relax == "linear" else 0.0,
        kmul=step.kmul if step.kmul is not None and len(step.kmul) == order - 1 > 0 else None,
        corr=Corrector(on=corrected, relax=corr_relax),
    )


def project(space: Space, schedule: StepSchedule) -> StepSchedule:
    """Returns the schedule with every decision that is not free put to the base's.

    Raises:
        SettingError: if its times are too near to each other.
    """
    built = Draft.of(schedule).build(space)
    if built is None:
        raise SettingError(
            "this schedule cannot be written with the decisions of the search; start from another"
            " solver"
        )
    return built
