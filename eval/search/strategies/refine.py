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
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
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
    while (line := _find_next(task)) is not None:
        made = len(_list_own(task))
        yield _propose_round(task, line)
        if len(_list_own(task)) == made:  # others made the same
            return


def _find_next(task: Task) -> Line | None:
    """Returns the line of the next round."""
    usable = [line for line in _find_lines(task) if line.tried < PATIENCE]
    for count, rounds in task.settings.get("ladder", LADDER):
        for line in usable[:count]:
            if len(line.made) < rounds:
                return line
    return usable[0] if usable else None


def _find_lines(task: Task) -> list[Line]:
    """Returns the best one first."""
    steps, lines = _list_own(task), []
    for root in _find_roots(task):
        known: dict[str | None, Trial] = {root.id: root}
        for trial in steps:
            if trial.parent in known:
                known[trial.id] = trial
        lines.append(Line(root, tuple(known.values())[1:]))
    return sorted(lines, key=lambda line: line.rank)


def _find_roots(task: Task) -> list[Trial]:
    """The best of each other strategy, the second best, and so on; this process's share of them.

    What another strategy makes of its schedules is not comparable by score before the first round.
    """
    usable = [trial for trial in task.best() if trial.score is not None and not _is_step(trial)]
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


def _propose_round(task: Task, line: Line) -> Proposal:
    """Returns the best step from the best of a line, better than that or not."""
    start, free = line.best, "times" in task.space.free
    point = TablePoint.of(start.schedule)
    gram, against = sum_products(task.problem, point, _noises(task, line.noises))
    if not free:
        gram[point.times], gram[:, point.times], against[point.times] = 0.0, 0.0, 0.0
    tried: list[tuple[float, float, Schedule]] = []
    for factor in FACTORS:
        damping = min(max(factor * line.damping, 1e-6), 1e3)
        moved = point.move(solve_damped(gram, against, damping)).schedule()
        tried.append((_score_widely(task, moved), damping, moved))
    wide, damping, best = min(tried, key=lambda each: each[:2])
    facts = {
        "label": f"refine from {_label(line.root.schedule)}",
        "damping": damping,
        "before": _wide_score(start) or _score_widely(task, start.schedule),
        "wide": wide,
    }
    return Proposal(best.model_copy(update={"provenance": facts}), start.id)


def _score_widely(task: Task, schedule: Artefact) -> float:
    """Returns the objective on the wider block; infinite where it is not finite."""
    train = task.problem.block("train")
    value = task.objective(task.problem, schedule, train.first(min(WIDE, len(train))))
    return value if math.isfinite(value) else sys.float_info.max


def _noises(task: Task, batches: int) -> Block:
    """Returns those of the next round; others for every process."""
    train = task.problem.block("train")
    size = max(BATCH, RESIDUALS // train.noise[0].numel()) * batches
    turn = len(_list_own(task)) * _workers(task) + task.log.worker
    return train.pick([(turn * size + i) % len(train) for i in range(min(size, len(train)))])


def _label(schedule: Artefact) -> str:
    return str(schedule.provenance.get("label", schedule.schedule_id[:12]))


def _list_own(task: Task) -> list[Trial]:
    """Returns the steps that this process took."""
    return [trial for trial in task.log.own if _is_step(trial) and task.size.fits(trial.schedule)]


def _is_step(trial: Trial) -> bool:
    return trial.strategy == "refine" and _wide_score(trial) is not None


def _workers(task: Task) -> int:
    """Returns how many have written to the log so far."""
    return max(task.log.worker + 1, len(list(task.log.folder.glob("worker-*.jsonl"))))
