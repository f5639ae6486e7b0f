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

from ....models.schedule import Node, TimeGrid
from ....solvers import Schedule
from ....solvers.artefact import Artefact
from ....solvers.mean_image import MeanImage
from ....solvers.table import BOTH, Evaluation
from ..canonical import make_canonical, rows_of, schedule_of, times_of
from ..coordinate import Coordinate
from ..log import Trial
from ..size import SearchSize
from .base import Proposal, Task


def propose(task: Task) -> Iterator[Proposal]:
    """One proposal for each place of a new evaluation, and for each constant that is free."""
    if (smaller := _smaller(task)) is not None:
        yield from _larger(task, smaller)
    usable = (t for t in task.best() if t.score is not None and t.linear)
    same = next((t for t in usable if t.schedule.nfe == _steps(t.schedule)), None)
    if same is not None and "afs" in task.space.free:
        for afs in task.space.afs:
            label = {"label": f"NFE {task.nfe} with a first step that costs nothing"}
            yield Proposal(
                prepend_constant(same.schedule, afs).model_copy(update={"provenance": label}),
                same.id,
            )


def _larger(task: Task, parent: Trial) -> Iterator[Proposal]:
    schedule: Artefact = parent.schedule
    while schedule.nfe < task.nfe - 1:
        schedule = insert_evaluation(schedule, find_widest(schedule))
    for place in _places(schedule):
        made = insert_evaluation(schedule, place)
        label = f"NFE {parent.schedule.nfe} grown after {place}"
        yield Proposal(made.model_copy(update={"provenance": {"label": label}}), parent.id)


def _smaller(task: Task) -> Trial | None:
    """Returns the best trial of the largest smaller NFE there is."""
    for nfe in reversed(range(1, task.nfe)):
        for trial in task.log.best(SearchSize(nfe)):
            if trial.score is not None and trial.linear:
                return trial
    return None


def insert_evaluation(schedule: Artefact, place: int) -> Schedule:
    """Returns the schedule with one more evaluation, after that of step `place`.

    Where the table combines the branches itself, it asks for the conditional one alone.
    """
    table, coordinate = make_canonical(schedule), Coordinate(schedule.process.schedule())
    here, there = _gaps(schedule)[place]
    middle = (coordinate.clamp(here) + coordinate.clamp(there)) / 2.0
    node = coordinate.schedule.at(coordinate.time(middle))
    rows = [[1.0], *rows_of(table)]
    between = _between(rows[place], rows[place + 1], here, there, node)
    width = len(rows[place + 1])  # the noise and the predictions before the new one
    later = [[*row[:width], 0.0, *row[width:]] for row in rows[place + 1 :]]
    asked = list(table.evaluations)
    asked.insert(place + 1, Evaluation(node, BOTH[1:] if table.guided else ()))
    grid = _with_time(schedule, place + 1)
    return schedule_of([*rows[1 : place + 1], between, *later], grid, asked, table.given)


def prepend_constant(schedule: Artefact, afs: Literal["zero"] | MeanImage) -> Schedule:
    """Returns the schedule with a step before all others that takes a constant for a prediction."""
    table = make_canonical(schedule)
    rows = [[1.0, 0.0], *([row[0], 0.0, *row[1:]] for row in rows_of(table))]
    given = afs.tensor() if isinstance(afs, MeanImage) else None
    return schedule_of(rows, _with_time(schedule, 1), [None, *table.evaluations], given)


def _with_time(schedule: Artefact, place: int) -> TimeGrid:
    """Returns the grid of a schedule with one time more, between those around the place."""
    t = schedule.t
    middle = (t[place - 1] + t[place]) / 2.0
    return TimeGrid.of(schedule.process.schedule(), (*t[:place], middle, *t[place:]))


def _between(
    row: list[float], after: list[float], here: Node, there: Node, node: Node
) -> list[float]:
    """Weights of z', a row as wide as the one after it."""
    det = here.alpha * there.sigma - there.alpha * here.sigma
    a = (node.alpha * there.sigma - there.alpha * node.sigma) / det
    b = (here.alpha * node.sigma - node.alpha * here.sigma) / det
    padded = [*row, *[0.0] * (len(after) - len(row))]
    return [a * x + b * y for x, y in zip(padded, after, strict=True)]


def _steps(schedule: Artefact) -> int:
    return len(schedule.t) - 1


def _gaps(schedule: Artefact) -> list[tuple[Node, Node]]:
    """Between evaluations, and between the last one and the end."""
    process = schedule.process.schedule()
    return list(pairwise(process.at(t) for t in (*times_of(schedule), schedule.t[-1])))


def _places(schedule: Artefact) -> list[int]:
    """Returns the steps after which there is room for an evaluation."""
    return [place for place, (here, there) in enumerate(_gaps(schedule)) if here.t > there.t]


def find_widest(schedule: Artefact) -> int:
    """Returns the step after whose evaluation the widest gap is."""
    coordinate = Coordinate(schedule.process.schedule())
    widths = [coordinate.clamp(b) - coordinate.clamp(a) for a, b in _gaps(schedule)]
    return max(range(len(widths)), key=widths.__getitem__)
