"""Mask and table together: the table is refitted to the best mask, then the mask to that table.

Rows are fitted to where the run should be: to the reference, or to the run without a cache where
drift is lowered; see `search.refit`. Then neighbours of the mask are scored on that table, and if
one is better, the table is fitted once more.
"""

from collections.abc import Generator, Iterator
from functools import partial

from torch import Tensor

from ....solvers import Schedule
from ..refit import RIDGES, find_targets, record_states, refit
from ..trajectories import keep_tensors
from ..uncached import DRIFT
from .base import Proposal, Task
from .masks import REFITTED, MaskedRun, Masks, list_neighbours, make_guess

STARTS = 2  # masks whose table is fitted
TURNS = 2  # of fitting the table and moving the mask
TRIED = 12  # neighbours of a mask


def propose(task: Task) -> Iterator[Proposal]:
    """From the best masks that others found for the table of the base."""
    base = Masks(task)
    if base.full == base.calls:
        return
    (targets,) = keep_tensors(task, f"targets-{base.mark}", partial(_find_targets, base))
    for candidate in base.list_known((REFITTED,))[:STARTS]:
        masks = base
        for _ in range(TURNS):
            masks = yield from _fit(masks, candidate, targets)
            moved = yield from _move(base, masks, candidate)
            if moved == candidate:
                break
            candidate = moved


def _find_targets(masks: Masks) -> tuple[Tensor]:
    task = masks.task
    if task.objective.name == DRIFT:
        return (record_states(task.problem, masks.plain, task.scored),)
    return (find_targets(task.problem, masks.plain.grid(), task.scored),)


def _fit(masks: Masks, candidate: MaskedRun, targets: Tensor) -> Generator[Proposal, None, Masks]:
    """Returns the masks of the best table that is fitted to a candidate."""
    task, start = masks.task, masks.make(candidate)
    for ridge in RIDGES:
        if (start.schedule_id, ridge) not in _list_fitted(task):
            made = refit(task.problem, start, task.scored, targets, ridge)
            label = f"{candidate.predictor} at {list(candidate.mask)}, table refitted"
            facts = {"label": label, "ridge": ridge}
            made = made.model_copy(update={"provenance": facts})
            yield Proposal(made, start.schedule_id)
    scored = [
        (score, ridge, schedule)
        for (parent, ridge), (score, schedule) in _list_fitted(task).items()
        if parent == start.schedule_id
    ]
    if not scored:  # others are at it
        return masks
    return Masks(task, min(scored, key=lambda each: each[:2])[2].with_cache(None))


def _list_fitted(task: Task) -> dict[tuple[str | None, float], tuple[float, Schedule]]:
    """Returns the tables so far with their scores, by what they were fitted from and the ridge."""
    return {
        (trial.parent, trial.schedule.provenance["ridge"]): (trial.rank[0], trial.schedule)
        for trial in task.best()
        if isinstance(trial.schedule, Schedule) and "ridge" in trial.schedule.provenance
    }


def _move(base: Masks, masks: Masks, candidate: MaskedRun) -> Generator[Proposal, None, MaskedRun]:
    """Returns the best neighbour on a table, of those with the least predicted cost, or itself."""
    best = candidate
    least = yield from masks.score(candidate)
    for child in list_neighbours(base, candidate, make_guess(base))[:TRIED]:
        score = yield from masks.score(child)
        if score < least:
            best, least = child, score
    return best
