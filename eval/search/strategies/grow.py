"""The best schedule so far with one step more in it: a start that is as good as that one.

Between evaluations n and n + 1 of its table a state z' is put,

    z' = a z_n + b z_{n+1},
    a alpha_n + b alpha_{n+1} = alpha',  a sigma_n + b sigma_{n+1} = sigma',

and the network is asked there; all other states are left as they are, so that the new prediction
has no weight yet and the run ends where it did. `refine` gives it one. Where a constant may stand
for a first evaluation, that is a step before all others, likewise without weight at first.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import Literal

from ....models.schedule import Node
from ....solvers import StepSchedule
from ....solvers.artefact import MeanImage
from ....solvers.exponential import StepSpec
from ....solvers.step_schedule import Compiled, compiled, weights_of
from ..coordinate import Coordinate
from ..guided import table_of
from ..log import Trial
from ..size import SearchSize
from .base import Proposal, Task, register

Afs = Literal["zero"] | MeanImage | None


@register("grow")
def grow(task: Task) -> Iterator[Proposal]:
    """One proposal for each place of a new evaluation, and for each constant that is free."""
    if (smaller := _smaller(task)) is not None:
        yield from _larger(task, smaller)
    same = next((t for t in task.best() if t.score is not None and t.schedule.afs is None), None)
    if same is not None and "afs" in task.space.free:
        for afs in task.space.afs:
            label = {"label": f"NFE {task.nfe} with a first step that costs nothing"}
            yield Proposal(
                preceded(same.schedule, afs).model_copy(update={"provenance": label}), same.id
            )


def _larger(task: Task, parent: Trial) -> Iterator[Proposal]:
    schedule = parent.schedule
    while schedule.nfe < task.nfe - 1:
        schedule = grown(schedule, _widest(schedule))
    for place in range(len(schedule.steps)):
        made = grown(schedule, place)
        label = f"NFE {parent.schedule.nfe} grown after {place}"
        yield Proposal(made.model_copy(update={"provenance": {"label": label}}), parent.id)


def _smaller(task: Task) -> Trial | None:
    """The best trial of the largest smaller NFE there is."""
    found = (task.log.best(SearchSize(nfe), 1) for nfe in reversed(range(1, task.nfe)))
    return next((best[0] for best in found if best and best[0].score is not None), None)


def grown(schedule: StepSchedule, place: int) -> StepSchedule:
    """The schedule with one more evaluation, after that of step `place`; it ends where it did."""
    table, coordinate = compiled(schedule), Coordinate(schedule.process.schedule())
    here, there = _gaps(schedule)[place]
    node = coordinate.schedule.at(coordinate.time(sum(_ends(coordinate, here, there)) / 2.0))
    rows = _rows(table)
    between = _between(rows[place], rows[place + 1], here, there, node)
    width = place + 2  # the noise and the predictions before the new one
    later = [[*row[:width], 0.0, *row[width:]] for row in rows[place + 1 :]]
    tau = [*table.tau[: place + 1], node.t, *table.tau[place + 1 :]]
    made = table_of([*rows[1 : place + 1], between, *later], tau, None)
    return _with(schedule, made, place + 1, None)


def preceded(schedule: StepSchedule, afs: Afs) -> StepSchedule:
    """The schedule with a step before its first evaluation that takes a constant for one."""
    table = compiled(schedule)
    rows = [[1.0, 0.0], *([row[0], 0.0, *row[1:]] for row in _rows(table)[1:])]
    made = table_of(rows, [schedule.t[0], *table.tau], None)
    return _with(schedule, made, 1, afs)


def _rows(table: Compiled) -> list[list[float]]:
    """Weights of all states, the noise included."""
    return [[1.0], *(weights_of(table, n) for n in range(table.steps))]


def _between(
    row: list[float], after: list[float], here: Node, there: Node, node: Node
) -> list[float]:
    """Weights of z', a row as wide as the one after it."""
    det = here.alpha * there.sigma - there.alpha * here.sigma
    a = (node.alpha * there.sigma - there.alpha * node.sigma) / det
    b = (here.alpha * node.sigma - node.alpha * here.sigma) / det
    padded = [*row, *[0.0] * (len(after) - len(row))]
    return [a * x + b * y for x, y in zip(padded, after, strict=True)]


def _with(schedule: StepSchedule, table: Compiled, place: int, afs: Afs) -> StepSchedule:
    """The schedule that runs the table; a step more says where it came from."""
    t, steps = schedule.t, schedule.steps
    return StepSchedule(
        process=schedule.process,
        t=(*t[:place], (t[place - 1] + t[place]) / 2.0, *t[place:]),
        afs=schedule.afs if afs is None else afs,
        steps=(*steps[:place], StepSpec(), *steps[place:]),
        compiled=table,
        nfe=schedule.nfe + (afs is None),
    )


def _gaps(schedule: StepSchedule) -> list[tuple[Node, Node]]:
    """Between evaluations, and between the last one and the end."""
    process = schedule.process.schedule()
    return list(pairwise(process.at(t) for t in (*compiled(schedule).tau, schedule.t[-1])))


def _ends(coordinate: Coordinate, *nodes: Node) -> list[float]:
    """Nodes in the search's coordinate, as far as the network is asked."""
    low, high = coordinate.ends
    return [min(max(coordinate.of(node), low), high) for node in nodes]


def _widest(schedule: StepSchedule) -> int:
    """The place of the widest gap."""
    coordinate = Coordinate(schedule.process.schedule())
    ends = [_ends(coordinate, *gap) for gap in _gaps(schedule)]
    return max(range(len(ends)), key=lambda place: ends[place][1] - ends[place][0])
