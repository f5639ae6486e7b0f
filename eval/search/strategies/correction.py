"""A learned correction of the best table in the log; see `search.train_correction`.

One of the last step is trained first, in seconds, as no evaluation comes after it; then one of the
last two, through the last evaluation. Validation noises choose between them and the table.
"""

from collections.abc import Callable, Iterator
from functools import partial

from ....models.errors import SettingError
from ....solvers import Schedule
from ....solvers.correction import MOST_PARAMETERS, Correction
from ..log import Trial
from ..train_correction import BATCH, RecordedRuns
from .base import Proposal, Task

LAST = ((1, 0.25), (2, 1.0))  # so many steps are corrected; where in the budget their training ends
EPOCHS = 15  # at most
WIDTHS = (24, 16, 12, 8, 4)  # the first that is small enough


def describe_correction(shape: tuple[int, ...], evaluations: int, last: int = 1) -> Correction:
    """Returns an untrained correction of the last steps.

    Raises:
        SettingError: for samples of a shape that none is made for.
    """
    steps = tuple(range(max(evaluations - last, 0), evaluations))
    for width in WIDTHS:
        try:
            return Correction(shape=shape, steps=steps, width=width)
        except ValueError:
            continue
    raise SettingError(
        f"samples of shape {shape} have no learned correction, which is for (channels, height,"
        f" width), (channels, length) or (numbers,) with at most {MOST_PARAMETERS:,} parameters;"
        " leave correction out"
    )


def propose(task: Task) -> Iterator[Proposal]:
    """From the best table in the log; from the space's own if there is none."""
    if (best := _find_best(task)) is None:
        yield Proposal(task.space.base(task.nfe))
        best = _find_best(task)
    if best is None:
        return
    made, block = best.schedule, task.problem.block("train")
    table = made if isinstance(made, Schedule) else Schedule.of_steps(made)
    shape, runs = tuple(task.problem.network.shape), None
    for last, end in LAST[: task.nfe]:
        empty = describe_correction(shape, task.nfe, last)
        runs = runs or RecordedRuns.of(task.problem, table, block)
        trained = runs.train(empty, _make_progress(task, len(block), end), task.seed)
        trained.write_files(task.log.folder)
        facts = {"label": f"correction of the last {last} of {best.id[:12]}"}
        yield Proposal(trained.model_copy(update={"provenance": facts}), best.id)


def _find_best(task: Task) -> Trial | None:
    """Returns the best trial that can be corrected; of refined ones that on most noises."""
    usable = [trial for trial in task.best() if trial.score is not None and _is_usable(trial)]
    wide = [trial for trial in usable if "wide" in trial.schedule.provenance]
    best = min(wide, key=lambda trial: trial.schedule.provenance["wide"], default=None)
    return best or next(iter(usable), None)


def _is_usable(trial: Trial) -> bool:
    """Returns whether a schedule has no correction yet, and asks something in every step."""
    schedule = trial.schedule
    corrected = isinstance(schedule, Schedule) and schedule.correction is not None
    return not corrected and schedule.nfe == len(schedule.steps)


def _make_progress(task: Task, noises: int, end: float) -> Callable[[int], float]:
    """Returns what tells how much of a training is done: by its epochs, or by the budget."""
    most, start = EPOCHS * -(-noises // BATCH), task.meter.used()
    return partial(_measure_progress, task, most, (start, max(end, start + 1e-9)))


def _measure_progress(task: Task, most: int, span: tuple[float, float], done: int) -> float:
    start, end = span
    return max(done / most, (task.meter.used() - start) / (end - start))
