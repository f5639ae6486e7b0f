"""Gauss-Newton steps on tables, from what other strategies gave; see `search.newton`.

Each round takes the sensitivities of a schedule on the next batch of training noises, steps with
three dampings, whose middle one is that of the last success, and proposes the best of the three. A
few noises, whose ends another sample would take elsewhere, decide much of the error: so steps are
told apart on more noises than candidates are scored on. Which start has the best valley behind it
shows after some rounds only: so the best starts that differ in their times get a round each, the
best few of them some more, and the best one the rest.
"""

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import takewhile, zip_longest

from torch import Tensor

from ....solvers import Schedule
from ....solvers.artefact import Artefact
from ..log import Trial
from ..newton import TablePoint, find_shares, solve_damped, sum_products
from ..problem import Block
from .base import Proposal, Task

LADDER = ((8, 1), (4, 4))  # so many of the best starts get so many rounds; then the best alone
APART = 0.02  # of the range, which one of the times of another start must differ by
BATCH = 64  # noises of a first round at least
RESIDUALS = 1 << 15  # numbers of their ends at least, where samples are small
THEN = 4  # times as many in later rounds
WIDE = 512  # noises that the steps of a round are told apart on
FIRST = 1e-2  # damping
FACTORS = (0.1, 1.0, 10.0)
WORTH = 3e-3  # of its score, which a round must gain to count
PATIENCE = 2  # rounds that do not count after which a start is left
MORE = 2  # times as many noises in each of them,
STRONGER = 30.0  # and so much more damping, which repeats none


@dataclass(frozen=True)
class Line:
    """A start and what the rounds have made of it, one trial each, in order."""

    root: Trial
    made: tuple[Trial, ...]

    @property
    def best(self) -> Trial:
        """The last one that was worth its round."""
        return next((trial for trial in reversed(self.made) if _has_gained(trial)), self.root)

    @property
    def rank(self) -> tuple[float, str]:
        """Lines are sorted by it: what is known of the best on most noises."""
        return _wide_score(self.best) or self.best.rank[0], self.root.id

    @property
    def tried(self) -> int:
        """Rounds in a row, up to now, that gained next to nothing."""
        return len(list(takewhile(lambda trial: not _has_gained(trial), reversed(self.made))))

    @property
    def noises(self) -> int:
        """Of the next round, in batches."""
        batches = THEN if self.made else 1
        return int(batches * MORE**self.tried)

    @property
    def damping(self) -> float:
        """The middle one of the next round."""
        last = float(self.best.schedule.provenance.get("damping", FIRST))
        return last * STRONGER**self.tried


def _wide_score(trial: Trial) -> float | None:
    """Returns the score on the wider block, where a round has told it."""
    value = trial.schedule.provenance.get("wide")
    return None if value is None else float(value)


def _has_gained(trial: Trial) -> bool:
    """Returns whether a round lowered that score by what a round must."""
    facts = trial.schedule.provenance
    return bool(facts["wide"] < (1.0 - WORTH) * facts["before"])


def propose(task: Task) -> Iterator[Proposal]:
    """From the best schedules of every strategy; from the space's own if there are none."""
    if not _find_roots(task) and task.size.unit == "nfe":
        yield Proposal(task.space.base(task.nfe))
    ladder = task.settings.get("ladder", LADDER)
    yield from Rounds(task, "refine", partial(_find_roots, task), ladder).take()


@dataclass(frozen=True)
class Rounds:
    """Rounds of Gauss-Newton steps, as far as the log of a task holds them.

    strategy:   the name that they have in the log.
    find_roots: returns the trials that they start from, those that differ, the best first.
    ladder:     so many of the best starts get so many rounds; then the best alone.
    least:      batches of noises in each round.
    """

    task: Task
    strategy: str
    find_roots: Callable[[], list[Trial]]
    ladder: Sequence[tuple[int, int]]
    least: int = 1

    def take(self) -> Iterator[Proposal]:
        """Yields the best step of each round until none gains."""
        while (line := self._find_next()) is not None:
            made = len(self._list_own())
            yield self._propose_round(line)
            if len(self._list_own()) == made:  # others made the same
                return

    def _find_next(self) -> Line | None:
        """Returns the line of the next round."""
        usable = [line for line in self._find_lines() if line.tried < PATIENCE]
        for count, rounds in self.ladder:
            for line in usable[:count]:
                if len(line.made) < rounds:
                    return line
        return usable[0] if usable else None

    def _find_lines(self) -> list[Line]:
        """Returns the best one first."""
        steps, lines = self._list_own(), []
        for root in self.find_roots():
            known: dict[str | None, Trial] = {root.id: root}
            for trial in steps:
                if trial.parent in known:
                    known[trial.id] = trial
            lines.append(Line(root, tuple(known.values())[1:]))
        return sorted(lines, key=lambda line: line.rank)

    def _propose_round(self, line: Line) -> Proposal:
        """Returns the best step from the best of a line, better than that or not."""
        task, start, free = self.task, line.best, "times" in self.task.space.free
        point = TablePoint.of(start.schedule)
        gram, against = sum_products(task.problem, point, self._draw(max(line.noises, self.least)))
        if not free:
            gram[point.times], gram[:, point.times], against[point.times] = 0.0, 0.0, 0.0
        tried: list[tuple[float, float, Schedule]] = []
        for factor in FACTORS:
            damping = min(max(factor * line.damping, 1e-6), 1e3)
            moved = point.move(solve_damped(gram, against, damping)).schedule()
            tried.append((_score_widely(task, moved), damping, moved))
        wide, damping, best = min(tried, key=lambda each: each[:2])
        facts = {
            "label": f"{self.strategy} from {_label(line.root.schedule)}",
            "damping": damping,
            "before": _wide_score(start) or _score_widely(task, start.schedule),
            "wide": wide,
        }
        return Proposal(best.model_copy(update={"provenance": facts}), start.id)

    def _draw(self, batches: int) -> Block:
        """Returns the noises of the next round; others for every process."""
        train = self.task.problem.block("train")
        size = max(BATCH, RESIDUALS // train.noise[0].numel()) * batches
        turn = len(self._list_own()) * _workers(self.task) + self.task.log.worker
        return train.pick([(turn * size + i) % len(train) for i in range(min(size, len(train)))])

    def _list_own(self) -> list[Trial]:
        """Returns the steps that this process took."""
        own = [trial for trial in self.task.log.own if self.task.size.fits(trial.schedule)]
        return [trial for trial in own if is_step(trial, self.strategy)]


def is_step(trial: Trial, strategy: str) -> bool:
    """Returns whether a trial is a step of a strategy's rounds."""
    return trial.strategy == strategy and _wide_score(trial) is not None


def _find_roots(task: Task) -> list[Trial]:
    """The best of each other strategy, the second best, and so on; this process's share of them.

    What another strategy makes of its schedules is not comparable by score before the first round.
    """
    linear = [trial for trial in task.best() if trial.score is not None and trial.linear]
    usable = [trial for trial in linear if not is_step(trial, "refine")]
    by = {trial.strategy: None for trial in usable}  # in the order of their best
    each = (_keep_apart([t for t in usable if t.strategy == name]) for name in by)
    in_turn = (trial for turn in zip_longest(*each) for trial in turn if trial is not None)
    chosen, worker = _keep_apart(in_turn), task.log.worker
    return chosen[worker :: _workers(task)] or chosen[worker % max(len(chosen), 1) :][:1]


def _keep_apart(trials: Iterable[Trial]) -> list[Trial]:
    """Returns the first few of which no two have the same times."""
    chosen: list[tuple[Trial, Tensor]] = []
    for trial in trials:
        u = find_shares(trial.schedule)
        if len(chosen) < LADDER[0][0] and all(_differ(u, other) for _, other in chosen):
            chosen.append((trial, u))
    return [trial for trial, _ in chosen]


def _differ(u: Tensor, other: Tensor) -> bool:
    return len(u) != len(other) or float((u - other).abs().max()) > APART


def _score_widely(task: Task, schedule: Artefact) -> float:
    """Returns the objective on the wider block; infinite where it is not finite."""
    train, wide = task.problem.block("train"), int(task.settings.get("wide", WIDE))
    value = task.objective(task.problem, schedule, train.first(min(wide, len(train))))
    return value if math.isfinite(value) else sys.float_info.max


def _label(schedule: Artefact) -> str:
    return str(schedule.provenance.get("label", schedule.schedule_id[:12]))


def _workers(task: Task) -> int:
    """Returns how many have written to the log so far."""
    return max(task.log.worker + 1, len(list(task.log.folder.glob("worker-*.jsonl"))))
