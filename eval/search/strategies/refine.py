"""Gauss-Newton steps from the best of all that is known, on tables; see `search.newton`.

Each round takes the sensitivities of a schedule on the next batch of training noises and proposes a
step for each of three dampings, whose middle one is that of the last success. The first rounds
start from the best schedules of other strategies that differ in their times, since which of them
has the best valley behind it shows only then; all others start from the best of all.
"""

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from ....solvers import Schedule
from ..log import Trial
from ..newton import Point, damped, products, times_of
from ..problem import Block
from .base import Proposal, Task, register

STARTS = 6  # schedules of other strategies that a round each is spent on
APART = 0.02  # of the range, which one of the times of another start must differ by
BATCH = 64  # noises of a first round at least
RESIDUALS = 1 << 15  # numbers of their ends at least, where samples are small
THEN = 4  # times as many in the rounds from the best: a few noises in a hundred decide the error
FIRST = 1e-2  # damping
FACTORS = (0.1, 1.0, 10.0)
PATIENCE = 4  # rounds without a new best after which it ends
MORE = 2  # times as many noises in each of them,
STRONGER = 30.0  # and so much more damping, which repeats none


@register("refine")
def refine(task: Task) -> Iterator[Proposal]:
    """From the best schedules of every strategy, whatever made them."""
    while (start := _start(task)) is not None:
        made = _rounds(task)
        tried = sum(trial.parent == start.schedule_id for trial in _own(task)) // len(FACTORS)
        if tried >= PATIENCE:
            return
        damping = float(start.provenance.get("damping", FIRST)) * STRONGER**tried
        more = MORE**tried if made < len(_starts(task)) else THEN * MORE**tried
        yield from _steps(task, start, _noises(task, made, more), damping)
        if _rounds(task) == made:  # others made the same
            return


def _noises(task: Task, made: int, more: int) -> Block:
    """Those of the round after so many; others for every process."""
    train = task.problem.block("train")
    size = max(BATCH, RESIDUALS // train.noise[0].numel()) * more
    turn = made * _workers(task) + task.log.worker
    return train.pick([(turn * size + i) % len(train) for i in range(min(size, len(train)))])


def _steps(task: Task, start: Schedule, block: Block, damping: float) -> Iterator[Proposal]:
    """The proposals of one round."""
    point = Point.of(start)
    gram, against = products(task.problem, point, block)
    if "times" not in task.space.free:
        gram[point.times], gram[:, point.times], against[point.times] = 0.0, 0.0, 0.0
    for factor in FACTORS:
        moved = point.moved(damped(gram, against, factor * damping)).schedule()
        facts: dict[str, Any] = {
            "label": f"refine from {_label(start)}",
            "damping": min(max(factor * damping, 1e-6), 1e3),
        }
        yield Proposal(moved.model_copy(update={"provenance": facts}), start.schedule_id)


def _label(schedule: Schedule) -> str:
    """Of what the first round started from."""
    label = str(schedule.provenance.get("label", schedule.schedule_id[:12]))
    return label.removeprefix("refine from ")


def _start(task: Task) -> Schedule | None:
    """The start of a round that was broken off, or one of the first ones, or the best there is."""
    own = _own(task)
    if len(own) % len(FACTORS) and own[-1].parent in task.log.trials:
        return task.log.trials[own[-1].parent].schedule
    starts = [each for each in _starts(task) if all(t.parent != each.schedule_id for t in own)]
    if starts:
        return starts[0]
    found = task.best(1)
    if found and found[0].score is not None:
        return found[0].schedule
    return None if found or task.size.unit == "rows" else task.space.base(task.nfe)


def _starts(task: Task) -> list[Schedule]:
    """The best of other strategies whose times differ, this process's share of them."""
    known = [trial for trial in task.best() if trial.score is not None]
    chosen: list[tuple[Schedule, Tensor]] = []
    for trial in (trial for trial in known if trial.strategy != "refine"):
        if len(chosen) == STARTS:
            break
        u = times_of(trial.schedule)
        if all(_apart(u, other) for _, other in chosen):
            chosen.append((trial.schedule, u))
    return [schedule for schedule, _ in chosen][task.log.worker :: _workers(task)]


def _apart(u: Tensor, other: Tensor) -> bool:
    return len(u) != len(other) or float((u - other).abs().max()) > APART


def _rounds(task: Task) -> int:
    """That this process has finished."""
    return len(_own(task)) // len(FACTORS)


def _own(task: Task) -> list[Trial]:
    """What this process proposed here."""
    return [
        trial
        for trial in task.log.own
        if trial.strategy == "refine" and task.size.fits(trial.schedule)
    ]


def _workers(task: Task) -> int:
    """How many have written to the log so far."""
    return max(task.log.worker + 1, len(list(task.log.folder.glob("worker-*.jsonl"))))
