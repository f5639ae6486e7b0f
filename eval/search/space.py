"""The decision space of a search (arXiv:2312.07243): how schedules are drawn, changed and crossed.

Every product is a valid `StepSchedule` of the process. Times live in lam, where a change of the
same size means the same everywhere. A decision that is not free keeps the value of the base solver
on the base grid, in every product: nothing else can be brought in by a seed or by crossing.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from random import Random
from typing import Any

from pydantic import ValidationError

from ...models.errors import SettingError, UnknownNameError
from ...models.registry import parse_spec
from ...models.schedule import Node, NoiseSchedule, TimeGrid
from ...samplers.grid import Final, time_grid
from ...samplers.ramps import find_lam_ends
from ...solvers import StepSchedule, take_solver
from ...solvers.exponential import Corrector, StepSpec
from ...solvers.linear import Encoder

DECISIONS = {
    "times": "the nodes between the ends",
    "ends": "where a run starts, of t_max and the edge of grids in lam, and whether it ends at 0",
    "order": "of each step, 1 to 4",
    "pred": "data or noise prediction",
    "mixed": "predictions between data and noise",
    "est": "points the first derivative is estimated from",
    "relax": "factor on the first derivative",
    "corr": "the corrector",
    "afs": "an analytic first step, and one step more",
    "xi": "shifts of the evaluation times",
}
DEFAULT = frozenset(DECISIONS) - {"afs", "xi", "mixed"}
ORDERS, ORDER_WEIGHTS = (1, 2, 3, 4), (0.2, 0.4, 0.3, 0.1)
GAP = 0.01  # nearest nodes in lam; nearer ones only amplify rounding
ROUNDING = 1e-6  # of lam, on its way to a time and back
WIDTHS = (0.005, 0.02, 0.06)  # of a moved node, as shares of the range of lam
RESHUFFLES = 50  # tries to draw something valid that differs from its parent


class Exhausted(SettingError):
    """There is nothing left to draw."""


@dataclass(frozen=True, kw_only=True)
class Space:
    """What may vary, and what the rest is.

    process: the noise schedule.
    free:    the decisions that may vary; see DECISIONS.
    ends:    times at which a run may end; the first is the base's.
    solver:  name of the solver that fixes the other decisions.
    grid:    name of the grid that fixes the times.
    afs:     the analytic first steps to choose from.
    """

    process: NoiseSchedule
    free: frozenset[str] = DEFAULT
    ends: tuple[float, ...] = ()
    solver: str = "dpmpp-2m"
    grid: str = "logsnr"
    afs: tuple[Any, ...] = ("zero",)
    _bases: dict[Any, StepSchedule] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        for name in sorted(self.free - DECISIONS.keys()):
            raise UnknownNameError("decision", name, DECISIONS)
        if not isinstance(take_solver(self.solver), Encoder):
            raise SettingError(f"{self.solver} cannot be the base: it is no exponential multistep")
        if not self.ends:
            object.__setattr__(self, "ends", (self.process.t_zero, self.process.t_min))

    @property
    def starts(self) -> tuple[float, ...]:
        """Times at which a run may start: t_max, and on rectified flow where lam is finite."""
        top = self.process.t_max
        return (top, self.process.at_lam(self.lams[0]).t) if self._blind else (top,)

    @property
    def _blind(self) -> bool:
        return self.process.at(self.process.t_max).alpha == 0.0

    @property
    def lams(self) -> tuple[float, float]:
        """Where nodes between the ends may lie."""
        return find_lam_ends(self.process)

    def base(self, steps: int, end: float | None = None) -> StepSchedule:
        """The base solver on the base grid, to the first of the ends or to another."""
        key = steps, self.ends[0] if end is None else end
        if key not in self._bases:
            made = encoded(self.solver, grid_to(self, self.grid, *key))
            start = nearest(self.starts, made.t[0])
            self._bases[key] = made.model_copy(update={"t": (start, *made.t[1:])})
        return self._bases[key]

    def named(self, solver: str, grid: TimeGrid) -> StepSchedule:
        """A named solver on a grid, as a starting point of the space."""
        return self.projected(encoded(solver, grid))

    def projected(self, schedule: StepSchedule) -> StepSchedule:
        """The schedule with every decision that is not free put to the base's."""
        found = Draft.of(schedule).built(self)
        if found is None:
            raise SettingError("this schedule cannot be put into the space of the search")
        return found


def nearest(times: Sequence[float], t: float) -> float:
    """The one of some times that is nearest to t."""
    return min(times, key=lambda each: abs(each - t))


def encoded(solver: str, grid: TimeGrid) -> StepSchedule:
    """A named exponential multistep solver on a grid, as data; raises SettingError for others."""
    settings = take_solver(solver)
    if not isinstance(settings, Encoder):
        raise SettingError(f"{solver} is no exponential multistep method, so no starting point")
    return settings.step_schedule(grid)


def grid_to(space: Space, name: str, steps: int, end: float | None = None) -> TimeGrid:
    """A named grid of so many steps that ends at one of the space's ends."""
    end = space.ends[0] if end is None else end
    kind, settings = parse_spec(name)
    zero = end == space.process.t_zero
    final = Final.ZERO if zero else Final.SIGMA_MIN
    grid = time_grid(kind, space.process, steps, final, **settings)
    return grid if zero else TimeGrid.of(space.process, [*(n.t for n in grid.nodes[:-1]), end])


@dataclass
class Draft:
    """A schedule on its way: anything may be changed, `built` makes it valid again.

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
        """Its decisions; free coefficients and compiled tables stay behind."""
        nodes = schedule.grid().nodes
        return cls(
            nodes=list(nodes[1:-1]),
            start=schedule.t[0],
            end=schedule.t[-1],
            steps=list(schedule.steps),
            afs=schedule.afs,
            shifts=list(schedule.xi) or [0.0] * len(schedule.steps),
        )

    def built(self, space: Space) -> StepSchedule | None:
        """The valid schedule nearest to this; None if the times cannot be told apart."""
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
                steps=tuple(_fitted(self.steps, base, space, start, end)),
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
        inner = sorted(self.nodes, key=lambda node: node.lam)
        last = high + GAP if self._ends(space)[1] == space.process.t_zero else high
        lams = [low, *(node.lam for node in inner), last]
        if any(b - a < GAP - ROUNDING for a, b in pairwise(lams)):
            return None
        return tuple(node.t for node in inner)

    def _xi(self) -> tuple[float, ...]:
        shifts = (0.0, *self.shifts[1:])  # the first evaluation is that of the noise
        return shifts if any(shifts) else ()


def _fitted(
    steps: Sequence[StepSpec], base: StepSchedule, space: Space, start: float, end: float
) -> list[StepSpec]:
    """Steps as they can be where they stand, written in one way only."""
    blind = int(space.process.at(start).alpha == 0.0)  # nothing can be learned at lam = -inf
    out = []
    for i, step in enumerate(steps):
        spec = _as_base(step, base, i, space.free)
        last = i == len(steps) - 1
        if (last and end == space.process.t_zero) or (i < blind):
            spec = StepSpec()
        out.append(_canonical(spec, max(1, i + 1 - blind), last))
    return out


def _as_base(step: StepSpec, base: StepSchedule, i: int, free: frozenset[str]) -> StepSpec:
    """The step with decisions that are not free taken from the base's step i."""
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
        values |= {"relax": _usual_relax(base), "c": 0.0}
    if "corr" not in free:
        values["corr"] = model.corr
    return step.model_copy(update=values)


def _usual_relax(base: StepSchedule) -> str:
    return next((step.relax for step in base.steps if step.order > 1), "none")


def _canonical(step: StepSpec, highest: int, last: bool) -> StepSpec:
    """The step with at most that order, and nothing set that has no effect."""
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


# --- what evolution does with schedules


def random_schedule(space: Space, nfe: int, rng: Random) -> StepSchedule:
    """A schedule of random decisions, with the frequencies of the published search."""

    def draw() -> StepSchedule | None:
        afs = rng.choice((None, *space.afs)) if "afs" in space.free else None
        steps = nfe + (afs is not None)
        low, high = space.lams
        nodes = [space.process.at_lam(rng.uniform(low, high)) for _ in range(steps - 1)]
        specs = [_random_step(rng) for _ in range(steps)]
        start, end = rng.choice(space.starts), rng.choice(space.ends)
        return Draft(nodes, start, end, specs, afs, [0.0] * steps).built(space)

    return _until_valid(draw)


def mutated(space: Space, schedule: StepSchedule, rng: Random) -> StepSchedule:
    """A neighbour of the same NFE: some nodes moved, some decisions drawn again."""
    own = schedule.schedule_id

    def draw() -> StepSchedule | None:
        draft = Draft.of(schedule)
        if "afs" in space.free and rng.random() < 0.15:
            _toggle_afs(draft, space, rng)
        if "ends" in space.free and rng.random() < 0.1:
            draft.start, draft.end = rng.choice(space.starts), rng.choice(space.ends)
        for i in range(len(draft.steps)):
            _mutate_step(draft, i, space, rng)
        found = draft.built(space)
        return None if found is None or found.schedule_id == own else found

    return _until_valid(draw)


def crossed(space: Space, a: StepSchedule, b: StepSchedule, rng: Random) -> StepSchedule:
    """A child of two: each field from either, and half of the time each step from either.

    Parents that differ in their number of steps cannot be crossed; then it is the first one.
    """
    first, second = Draft.of(a), Draft.of(b)
    if len(first.steps) != len(second.steps) or (first.afs is None) != (second.afs is None):
        return space.projected(a)
    if rng.random() < 0.5:
        first.nodes, first.shifts = second.nodes, second.shifts
        first.start, first.end = second.start, second.end
    groups = [names for names in FIELDS if rng.random() < 0.5]
    deep = rng.random() < 0.5
    for i, other in enumerate(second.steps):
        taken = {name: getattr(other, name) for names in groups for name in names}
        mixed = first.steps[i].model_copy(update=taken)
        first.steps[i] = other if deep and rng.random() < 0.5 else mixed
    return first.built(space) or space.projected(a)


FIELDS = (("order", "est", "kmul", "relax", "c"), ("pred", "mix_l"), ("corr",))


def resized(space: Space, schedule: StepSchedule, nfe: int, rng: Random) -> StepSchedule:
    """The schedule with steps inserted or deleted until it takes that many evaluations."""

    def draw() -> StepSchedule | None:
        draft = Draft.of(schedule)
        wanted = nfe + (draft.afs is not None)
        while len(draft.steps) > wanted:
            _delete(draft, rng)
        while len(draft.steps) < wanted:
            _insert(draft, space, rng)
        return draft.built(space)

    return _until_valid(draw)


def _until_valid(draw: Callable[[], StepSchedule | None]) -> StepSchedule:
    for _ in range(RESHUFFLES):
        found = draw()
        if found is not None:
            return found
    raise Exhausted(
        f"{RESHUFFLES} draws in a row gave nothing new; free more decisions, or search a larger NFE"
    )


def _insert(draft: Draft, space: Space, rng: Random) -> None:
    """One step more: a random node, and a random step from it."""
    low, high = space.lams
    draft.nodes.append(space.process.at_lam(rng.uniform(low, high)))
    place = rng.randrange(len(draft.steps) + 1)
    draft.steps.insert(place, _random_step(rng))
    draft.shifts.insert(place, 0.0)


def _delete(draft: Draft, rng: Random) -> None:
    place = rng.randrange(len(draft.nodes))
    del draft.nodes[place], draft.steps[place], draft.shifts[place]


def _toggle_afs(draft: Draft, space: Space, rng: Random) -> None:
    """The first evaluation is left out and a step won, or the other way round: the NFE stays."""
    if draft.afs is None:
        draft.afs = rng.choice(space.afs)
        _insert(draft, space, rng)
    elif len(space.afs) > 1 and rng.random() < 0.5:
        draft.afs = rng.choice(space.afs)
    else:
        draft.afs = None
        _delete(draft, rng)


def _random_step(rng: Random) -> StepSpec:
    """Before it is fitted to its place; so it may hold more than the place can take."""
    order, relax = rng.choices(ORDERS, ORDER_WEIGHTS)[0], rng.choice(RELAX)
    return StepSpec.model_construct(
        order=order,
        est=_random_points(rng, order),
        pred=rng.choice(("data", "noise")),
        relax=relax,
        c=rng.gauss(0.0, 0.05) if relax == "linear" else 0.0,
        corr=_random_corrector(rng, rng.random() < 0.5),
    )


RELAX = ("none", "bh1", "bh2", "linear")


def _random_points(rng: Random, order: int) -> tuple[int, ...]:
    """Most often all points; else the first derivative from one or two."""
    return _low_points(rng, order) if rng.random() < 0.3 else ()


def _low_points(rng: Random, order: int) -> tuple[int, ...]:
    """The first derivative from one or two points, the others from all."""
    return (rng.choice((1, 2)), *[order - 1] * (order - 2)) if order > 1 else ()


def _random_corrector(rng: Random, on: bool) -> Corrector:
    return Corrector(on=on, relax=rng.choice(("none", "bh1", "bh2")))


def _mutate_step(draft: Draft, i: int, space: Space, rng: Random) -> None:
    """Each decision of step i with its own chance; what is not free is put back when built."""
    if i < len(draft.nodes) and rng.random() < 0.3:
        draft.nodes[i] = _moved(draft.nodes[i], space, rng)
    if "xi" in space.free and rng.random() < 0.2:
        draft.shifts[i] += _shift_unit(draft, i, space) * rng.gauss(0.0, 0.05)
    values: dict[str, Any] = {}
    if rng.random() < 0.2:
        order = rng.choices(ORDERS, ORDER_WEIGHTS)[0]
        values |= {"order": order, "est": _random_points(rng, order), "kmul": None}
    elif rng.random() < 0.2:
        values["est"] = _low_points(rng, draft.steps[i].order)
    if rng.random() < 0.2:
        values |= _other_prediction(space, rng)
    if rng.random() < 0.2:
        values |= _other_relax(draft.steps[i], rng)
    if rng.random() < 0.2:
        values["corr"] = _random_corrector(rng, not draft.steps[i].corr.on)
    draft.steps[i] = draft.steps[i].model_copy(update=values)


def _moved(node: Node, space: Space, rng: Random) -> Node:
    """The node moved in lam, or where it was if that would carry it out of range."""
    low, high = space.lams
    lam = node.lam + rng.gauss(0.0, rng.choice(WIDTHS) * (high - low))
    return space.process.at_lam(lam) if low < lam < high else node


def _shift_unit(draft: Draft, i: int, space: Space) -> float:
    """xi is a factor on t for edm, else added to t: then in shares of the node's own time."""
    if space.process.family == "edm" or not 0 < i <= len(draft.nodes):
        return 1.0
    return sorted(node.t for node in draft.nodes)[-i]


def _other_prediction(space: Space, rng: Random) -> dict[str, Any]:
    if "mixed" in space.free and rng.random() < 0.4:
        return {"pred": "mixed", "mix_l": rng.random()}
    return {"pred": rng.choice(("data", "noise")), "mix_l": 1.0}


def _other_relax(step: StepSpec, rng: Random) -> dict[str, Any]:
    if step.relax == "linear" and rng.random() < 0.7:
        return {"c": step.c + rng.gauss(0.0, 0.05)}
    return {"relax": rng.choice(RELAX), "c": 0.0}
