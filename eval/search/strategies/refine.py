"""The last step of a search: descent from the best of all that is known, at small rates."""

from collections.abc import Iterator

from ..descent import Descent
from .base import Proposal, Task, register
from .grad import descents

TIMES, WEIGHTS = 1e-2, 5e-3  # rates, a half of those of grad


@register("refine")
def refine(task: Task) -> Iterator[Proposal]:
    """From the best schedules of every strategy, grad included."""
    yield from descents(task, "refine", Descent(seed=task.seed, times=TIMES, weights=WEIGHTS))
