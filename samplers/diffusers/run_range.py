"""Runs that begin or end between two steps, as a base and a refiner share one."""

import copy

from ...models.errors import SettingError
from ...solvers import SolverSettings
from ..plan import Plan
from .stepper import Stepper, list_calls, make_late_stepper


def choose_steps(plan: Plan, trained: int, start: float | None, end: float | None) -> range:
    """Returns the steps of a run that begins and ends at fractions of the way from noise to data.

    As diffusers has denoising_start and denoising_end: a step belongs to the run if its timestep
    lies below round(T (1 - start)) of T trained ones, and not below round(T (1 - end)).

    Raises:
        SettingError: for fractions out of range, or between which no step begins.
    """
    for name, share in (("denoising_start", start), ("denoising_end", end)):
        if share is not None and (isinstance(share, bool) or not 0.0 < share < 1.0):
            raise SettingError(f"{name}={share!r} must be a fraction of the run, above 0, below 1")
    grid = plan.grid
    if start is None and end is None:
        return range(grid.steps)
    if grid.schedule.family == "edm":
        raise SettingError(
            "a run on edm has no training timesteps to be divided by; drop denoising_start and"
            " denoising_end"
        )
    labels = [grid.schedule.label(node) for node in grid.nodes[:-1]]

    def count(share: float) -> int:
        return sum(label >= round(trained * (1.0 - share)) for label in labels)

    steps = range(0 if start is None else count(start), grid.steps if end is None else count(end))
    if not steps:
        shown = ", ".join(f"{label:.4g}" for label in labels)
        raise SettingError(
            f"no step of this run begins between denoising_start={start} and denoising_end={end};"
            f" its timesteps are {shown}: take more steps, or other fractions"
        )
    return steps


class RunRange:
    """The steps of a plan that a scheduler takes, from evaluation to evaluation.

    offset: the evaluations of the plan before the first one here.
    """

    def __init__(self, plan: Plan, steps: range) -> None:
        every = list_calls(plan)
        self.plan, self.steps = plan, steps
        self.offset = sum(call.step < steps.start for call in every)
        self.calls = [call for call in every if call.step in steps]

    def begin(self, settings: SolverSettings | None, n: int) -> Stepper:
        """Returns what runs the rest from evaluation n on, with no memory of what was before.

        Raises:
            SettingError: if the solver cannot begin there, or a schedule is to begin late.
        """
        if self.offset + n == 0:
            stepper = Stepper(self.plan.solver, self.plan.grid.nodes)
        elif settings is None:
            raise SettingError(
                "a schedule goes all the way from noise to data; use strength=1, or a named solver"
            )
        else:
            stepper = make_late_stepper(
                self.plan, settings, list_calls(self.plan)[self.offset + n :]
            )
        stepper.end -= self.left
        return stepper

    def go_on(self, before: "RunRange", stepper: Stepper | None, done: int, n: int) -> Stepper:
        """Returns what goes on at evaluation n where another scheduler has stopped, memory and all.

        before: the range of that scheduler; done: its evaluations so far.

        Raises:
            SettingError: if it stands elsewhere, or plans another run.
        """
        if before.what_runs != self.what_runs:
            raise SettingError(
                "the scheduler that this one continues has other steps or another solver; give both"
                " the same config, solver and number of steps"
            )
        if stepper is None or before.offset + done != self.offset + n:
            raise SettingError(
                f"the scheduler that this one continues has made {before.offset + done} evaluations"
                f" of the run, and this one begins after {self.offset + n}; run its pipeline first,"
                " to the same fraction"
            )
        further = copy.copy(stepper)
        further.sent, further.end = list(stepper.sent), further.end + before.left - self.left
        further.live, further.begun = None, not stepper.over
        return further

    @property
    def what_runs(self) -> tuple[object, ...]:
        """The grid, and the solver or schedule on it."""
        plan = self.plan
        return plan.grid, plan.settings, getattr(plan.solver, "schedule", None)

    @property
    def left(self) -> int:
        """The number of steps of the plan after the last one here."""
        return self.plan.grid.steps - self.steps.stop
