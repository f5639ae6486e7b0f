"""Children screened by the ranking predictor before any of them is evaluated."""

from ..log import Trial
from ..ranking import Ranking, fit
from .base import Proposal, Task, random_of
from .evolve import Pools, is_child, new_child

REFIT = 100  # trials from one fit to the next, and before the first
CHILDREN = 400  # drawn for each batch
BATCH = 20  # of which so many are evaluated
UNSCREENED = 0.3  # share of a batch that is taken as it comes, against premature agreement


class Screen:
    """Makes batches of proposals. A batch depends on the trials before it alone, so that a search
    that was stopped in the middle of one makes the same one again.
    """

    def __init__(self, task: Task) -> None:
        self.task = task
        self._batch: tuple[int, list[Proposal]] = (-1, [])
        self._fit: tuple[int, Ranking | None] = (0, None)

    def proposal(self, made: int) -> Proposal | None:
        """The next of the present batch that was not tried, or a child as it comes, if any."""
        task, first = self.task, made - made % BATCH
        if self._batch[0] != first:
            self._batch = first, self._new_batch(first)
        left = (p for p in self._batch[1] if p.schedule.schedule_id not in task.log.trials)
        late = random_of(task, f"{made} late")
        return next(left, None) or new_child(task, Pools(task, task.log.trials), late)

    def _new_batch(self, first: int) -> list[Proposal]:
        before = self._before(first)
        pools, rng = Pools(self.task, before), random_of(self.task, f"{first} batch")
        ranking = self._ranking(list(before.values()))
        count = BATCH if ranking is None else CHILDREN
        drawn = [new_child(self.task, pools, rng) for _ in range(count)]
        proposals = list({p.schedule.schedule_id: p for p in drawn if p is not None}.values())
        if ranking is None:
            return proposals
        plain = round(UNSCREENED * BATCH)
        scores = ranking.scores([p.schedule for p in proposals[plain:]])
        order = sorted(range(len(scores)), key=lambda i: scores[i])
        return [*proposals[:plain], *(proposals[plain + i] for i in order[: BATCH - plain])]

    def _before(self, first: int) -> dict[str, Trial]:
        """The trials up to the first child of the batch."""
        found, children = {}, 0
        for name, trial in self.task.log.trials.items():
            if children == first and is_child(self.task, trial):
                break
            children += is_child(self.task, trial)
            found[name] = trial
        return found

    def _ranking(self, trials: list[Trial]) -> Ranking | None:
        """The predictor fitted to the first hundreds of trials; none before the first hundred."""
        usable = [trial for trial in trials if trial.score is not None]
        count = len(usable) // REFIT * REFIT
        if count and self._fit[0] != count:
            self._fit = count, fit(usable[:count], self.task.seed)
        return self._fit[1]
