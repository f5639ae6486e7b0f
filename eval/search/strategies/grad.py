"""Gradient descent on times and weights from the best schedules that are known (arXiv:2510.17699).

Each descent keeps the discrete choices of its start (orders, predictions, correctors, AFS) and
proposes one schedule. A worker starts from the best, the next worker from the next best, and so on.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from ....models.errors import ScheduleError, SettingError
from ....samplers.images import write_bytes
from ....solvers import Schedule
from ..descent import Descent, descend
from .base import Proposal, Task, register

STARTS = 4  # descents of each worker, if the budget lasts
GRADIENT = ("grad", "refine")


@register("grad")
def grad(task: Task) -> Iterator[Proposal]:
    """From what other strategies found; from the base solver of the space if there is nothing."""
    yield from descents(task, "grad", Descent(seed=task.seed))


def descents(task: Task, name: str, descent: Descent) -> Iterator[Proposal]:
    """One proposal per start; each start is written down, so that a killed search goes on with it.

    Settings of the task named as fields of `Descent` replace those given.
    """
    descent = _set(task, descent)
    for turn in range(STARTS):
        mark = task.log.folder / f"{name}-{task.nfe}-{task.log.worker}-{turn}"
        start = _start(task, name, turn, mark.with_suffix(".json"))
        if start is None:
            return
        found = descend(
            task.problem,
            start,
            descent,
            mark.with_suffix(".pt"),
            lambda iterations, score: task.meter.used(),
        )
        label = f"{name} from {start.provenance.get('label', start.schedule_id[:12])}"
        made = found.schedule.model_copy(update={"provenance": {"label": label}})
        yield Proposal(made, parent=start.schedule_id)


def _set(task: Task, descent: Descent) -> Descent:
    known = {name: task.settings[name] for name in vars(descent) if name in task.settings}
    if "times" not in task.space.free:
        if known.get("times"):
            raise SettingError("the times of this search are fixed; free them to set their rate")
        known["times"] = 0.0
    return replace(descent, **known)


def _start(task: Task, name: str, turn: int, path: Path) -> Schedule | None:
    """Where a descent starts: as written down, or the best that is left for this worker."""
    if path.exists():
        try:
            return Schedule.load(path)
        except ScheduleError as error:
            raise SettingError(f"{error}; delete it to start anew") from error
    known = [
        trial.schedule
        for trial in task.best()
        if trial.score is not None and (name == "refine" or trial.strategy not in GRADIENT)
    ]
    known = known or [task.space.base(task.nfe)]
    place = turn * _workers(task) + task.log.worker
    if place >= len(known):
        return None
    write_bytes(path, known[place].dump().encode())
    return known[place]


def _workers(task: Task) -> int:
    """How many have written to the log so far."""
    return max(task.log.worker + 1, len(list(task.log.folder.glob("worker-*.jsonl"))))
