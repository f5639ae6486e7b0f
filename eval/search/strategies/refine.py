"""Gauss-Newton steps on tables, from schedules that other strategies found; see `search.newton`.

Each round takes the sensitivities of a schedule on the next batch of training noises and proposes a
step for each of three dampings, whose middle one is that of the last success. Which start has the
best valley behind it shows after some rounds only: so the best starts that differ in their times
get a round each, the best few of them some more, and the best one the rest.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from torch import Tensor

from ....solvers import Schedule
from ..log import Trial, ranked
from ..newton import Point, damped, products, times_of
from ..problem import Block
from .base import Proposal, Task, register

LADDER = ((8, 1), (4, 4))  # so many of the best starts get so many rounds; then the best alone
APART = 0.02  # of the range, which one of the times of another start must differ by
BATCH = 64  # noises of a first round at least
RESIDUALS = 1 << 15  # numbers of their ends at least, where samples are small
THEN = 4  # times as many in later rounds: a few noises in a hundred decide the error
FIRST = 1e-2  # damping
FACTORS = (0.1, 1.0, 10.0)
WORTH = 3e-3  # of its score, which a round must gain to count
PATIENCE = 2  # rounds that do not count after which a start is left
MORE = 2  # times as many noises in each of them,
STRONGER = 30.0  # and so much more damping, which repeats none


@dataclass(frozen=True)
class Line:
    """A start and what the rounds have made of it, in order."""

    root: Trial
    made: tuple[Trial, ...]

    @property
    def best(self) -> Trial:
        return ranked((self.root, *self.made))[0]

    @property
    def rounds(self) -> int:
        """That are finished."""
        return len(self.made) // len(FACTORS)

    @property
    def tried(self) -> int:
        """Rounds in a row, up to now, that gained next to nothing."""
        least, tried = self.root.rank[0], 0
        for n in range(self.rounds):
            found = ranked(self.made[n * len(FACTORS) : (n + 1) * len(FACTORS)])[0].rank[0]
            tried = 0 if found < (1.0 - WORTH) * least else tried + 1
            least = min(least, found)
        return tried

    @property
    def noises(self) -> int:
        """Of the next round, in batches."""
        batches = THEN if self.rounds else 1
        return int(batches * MORE**self.tried)

    @property
    def damping(self) -> float:
        """The middle one of the next round."""
        last = float(self.best.schedule.provenance.get("damping", FIRST))
        return last * STRONGER**self.tried


@register("refine")
def refine(task: Task) -> Iterator[Proposal]:
    """From the best schedules of every strategy; from the space's own if there are none."""
    if not _roots(task) and task.size.unit == "nfe":
        yield Proposal(task.space.base(task.nfe))
    while (found := _next(task)) is not None:
        made, (line, start) = len(_own(task)), found
        yield from _steps(task, start, line)
        if len(_own(task)) == made:  # others made the same
            return


def _next(task: Task) -> tuple[Line, Trial] | None:
    """The line of the next round and where it starts: one that was broken off is taken up."""
    lines = _lines(task)
    for line in lines:
        if over := len(line.made) % len(FACTORS):
            start = task.log.trials[line.made[-1].parent or ""]
            return Line(line.root, line.made[:-over]), start
    usable = [line for line in lines if line.tried < PATIENCE]
    for count, rounds in LADDER:
        for line in usable[:count]:
            if line.rounds < rounds:
                return line, line.best
    return (usable[0], usable[0].best) if usable else None


def _lines(task: Task) -> list[Line]:
    """The best one first."""
    own, lines = _own(task), []
    for root in _roots(task):
        known: dict[str | None, Trial] = {root.id: root}
        for trial in own:
            if trial.parent in known:
                known[trial.id] = trial
        lines.append(Line(root, tuple(known.values())[1:]))
    return sorted(lines, key=lambda line: line.best.rank)


def _roots(task: Task) -> list[Trial]:
    """The best of each other strategy, the second best, and so on; this process's share of them.

    What another strategy makes of its schedules is not comparable by score before the first round.
    """
    found = [trial for trial in task.best() if trial.score is not None and not _is_step(trial)]
    by = {trial.strategy: None for trial in found}  # in the order of their best
    each = (_apart([t for t in found if t.strategy == name]) for name in by)
    in_turn = (trial for turn in zip_longest(*each) for trial in turn if trial is not None)
    chosen, worker = _apart(in_turn), task.log.worker
    return chosen[worker :: _workers(task)] or chosen[worker % max(len(chosen), 1) :][:1]


def _apart(trials: Iterable[Trial]) -> list[Trial]:
    """The first few of which no two have the same times."""
    chosen: list[tuple[Trial, Tensor]] = []
    for trial in trials:
        u = times_of(trial.schedule)
        if len(chosen) < LADDER[0][0] and all(_differ(u, other) for _, other in chosen):
            chosen.append((trial, u))
    return [trial for trial, _ in chosen]


def _differ(u: Tensor, other: Tensor) -> bool:
    return len(u) != len(other) or float((u - other).abs().max()) > APART


def _steps(task: Task, start: Trial, line: Line) -> Iterator[Proposal]:
    """The proposals of one round."""
    point, free = Point.of(start.schedule), "times" in task.space.free
    gram, against = products(task.problem, point, _noises(task, line.noises))
    if not free:
        gram[point.times], gram[:, point.times], against[point.times] = 0.0, 0.0, 0.0
    for factor in FACTORS:
        damping = factor * line.damping
        moved = point.moved(damped(gram, against, damping)).schedule()
        facts: dict[str, Any] = {
            "label": f"refine from {_label(line.root.schedule)}",
            "damping": min(max(damping, 1e-6), 1e3),
        }
        yield Proposal(moved.model_copy(update={"provenance": facts}), start.id)


def _noises(task: Task, batches: int) -> Block:
    """Those of the next round; others for every process."""
    train = task.problem.block("train")
    size = max(BATCH, RESIDUALS // train.noise[0].numel()) * batches
    turn = len(_own(task)) // len(FACTORS) * _workers(task) + task.log.worker
    return train.pick([(turn * size + i) % len(train) for i in range(min(size, len(train)))])


def _label(schedule: Schedule) -> str:
    return str(schedule.provenance.get("label", schedule.schedule_id[:12]))


def _own(task: Task) -> list[Trial]:
    """The steps that this process took."""
    return [trial for trial in task.log.own if _is_step(trial) and task.size.fits(trial.schedule)]


def _is_step(trial: Trial) -> bool:
    return trial.strategy == "refine" and trial.parent is not None


def _workers(task: Task) -> int:
    """How many have written to the log so far."""
    return max(task.log.worker + 1, len(list(task.log.folder.glob("worker-*.jsonl"))))
