"""Runs schedules that are given as data, and holds them to the network they were made for."""

from ..models.denoiser import Network
from ..models.errors import ScheduleError
from ..models.probe import are_alike, sketch
from .artefact import ANSWER, Artefact
from .schedule_data import Schedule
from .step_schedule import StepSchedule, compile_steps
from .table import Table
from .table_steps import TableSteps


class Executor(TableSteps):
    """Runs the table of a schedule."""

    def __init__(self, schedule: Artefact) -> None:
        self.schedule = schedule
        super().__init__(table_of(schedule))

    def check_network(self, network: Network) -> None:
        """As the function below, for the schedule that is run."""
        check_network(self.schedule, network)


def table_of(schedule: Artefact) -> Table:
    """Returns the table of a schedule: the one it holds, or the one its steps are compiled to."""
    if isinstance(schedule, StepSchedule):
        return compile_steps(schedule)
    assert isinstance(schedule, Schedule)
    return schedule.table()


def check_network(schedule: Artefact, network: Network) -> None:
    """Raises ScheduleError if a schedule was searched for a network that answers otherwise.

    That is one evaluation of one row, outside the run and its counts; schedules that do not say
    what their network answered, such as those of named solvers, are for any.
    """
    _check_mean(None if schedule.mean is None else schedule.mean.shape, network)
    if (told := schedule.provenance.get(ANSWER)) is None:
        return
    own = sketch(network)
    if own is not None and not are_alike(own, told):
        name = schedule.provenance.get("model", "?")
        raise ScheduleError(
            f"this schedule was searched for another network ({name}): {network.name} answers a"
            " fixed noise otherwise; run `fewstep search` for it, or add --force (in Python"
            " schedule.for_any()) to use the schedule all the same"
        )


def _check_mean(given: tuple[int, ...] | None, network: Network) -> None:
    """Raises ScheduleError unless what stands for predictions broadcasts to a sample."""
    if given is None:
        return
    own = network.shape
    same = all(g in (1, n) for g, n in zip(reversed(given), reversed(own), strict=False))
    if len(given) > len(own) or not same:
        raise ScheduleError(
            f"the mean in this schedule has shape {given}, but samples of {network.name} have"
            f" {own}; use a schedule made for this network"
        )
