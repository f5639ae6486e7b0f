"""Gradient descent on times and weights from the best schedules that are known (arXiv:2510.17699).

Each descent keeps the discrete choices of its start (orders, predictions, correctors, AFS, guided
steps) and proposes one schedule. Processes that share a log take the starts in turn, best first.
"""

from collections.abc import Iterator, Set
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from ....models.errors import ScheduleError, SettingError
from ....models.files import write_bytes
from ....solvers import StepSchedule
from ..descent import Descent, descend
from .base import Proposal, Task, register

STARTS = 4  # descents of each worker, if the budget lasts
LATER = ("grad", "refine")  # what it does not start from


@register("grad")
def grad(task: Task) -> Iterator[Proposal]:
    """From what other strategies found; from the base solver of the space if there is nothing.

    One proposal per start, while it is claimed; so no two processes descend from one. Each start is
    written down, so that a killed search goes on with it. Settings of the task named as fields of
    `Descent` replace the usual ones.
    """
    descent, taken = _set(task, _usual(task)), set[str]()
    while len(taken) < STARTS:
        with _start(task, taken) as start:
            if start is None:
                return
            taken.add(start.schedule_id)
            yield _descended(task, start, descent)


def _usual(task: Task) -> Descent:
    """Settings of a descent. At rows it starts from fitted ones, and moves by less."""
    if task.size.unit == "rows":
        return Descent(seed=task.seed, batch=16, times=5e-3, weights=2e-3)
    return Descent(seed=task.seed)


def _descended(task: Task, start: StepSchedule, descent: Descent) -> Proposal:
    found = descend(
        task.problem,
        start,
        descent,
        _path(task, start).with_suffix(".pt"),
        lambda iterations, score: task.meter.used(),
    )
    label = f"grad from {start.provenance.get('label', start.schedule_id[:12])}"
    made = found.schedule.model_copy(update={"provenance": {"label": label}})
    return Proposal(made, parent=start.schedule_id)


def _set(task: Task, descent: Descent) -> Descent:
    known = {name: task.settings[name] for name in vars(descent) if name in task.settings}
    if "times" not in task.space.free:
        if known.get("times"):
            raise SettingError("the times of this search are fixed; free them to set their rate")
        known["times"] = 0.0
    return replace(descent, **known)


@contextmanager
def _start(task: Task, taken: Set[str]) -> Iterator[StepSchedule | None]:
    """The next start that nobody has descended from, held for this process; None if none is left.

    Those that someone has begun and left come first, then the best.
    """
    begun, known = _begun(task), _known(task)
    starts = {start.schedule_id: start for start in (*begun, *known)}
    for key, start in starts.items():
        with task.log.claim(f"grad-{key}") as mine:
            if mine and key not in taken and not _done(task, key):
                write_bytes(_path(task, start), start.dump().encode())
                yield start
                return
    yield None


def _known(task: Task) -> list[StepSchedule]:
    """What may be descended from, best first."""
    found = [t.schedule for t in task.best() if t.score is not None and t.strategy not in LATER]
    if found or task.size.unit == "rows":
        return found
    return [task.space.base(task.nfe)]


def _begun(task: Task) -> list[StepSchedule]:
    """Starts that were written down."""
    found = []
    for path in sorted(task.log.folder.glob(f"grad-{task.size.mark}-*.json")):
        try:
            found.append(StepSchedule.load(path))
        except ScheduleError as error:
            raise SettingError(f"{error}; delete it to start anew") from error
    return found


def _done(task: Task, key: str) -> bool:
    """Whether a descent from this start is in the log."""
    mine = (trial for trial in task.log.trials.values() if trial.strategy == "grad")
    return any(trial.parent == key and task.size.fits(trial.schedule) for trial in mine)


def _path(task: Task, start: StepSchedule) -> Path:
    return task.log.folder / f"grad-{task.size.mark}-{start.schedule_id[:16]}.json"
