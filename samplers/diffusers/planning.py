"""From a scheduler's choices and what a pipeline asks of `set_timesteps` to a plan."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ...models.arguments import as_integer, as_numbers
from ...models.distillation import FLOW_MAP
from ...models.errors import SettingError, UnknownNameError
from ...models.schedule import NoiseSchedule, RectifiedFlow, TimeGrid
from ...solvers import Revisable, Schedule, SolverSettings, take_solver
from ..distilled import check_distilled
from ..grid import Final
from ..plan import DEFAULT_SOLVER, Plan, make_plan
from ..recipes import RecipeRun, read_recipe
from ..schedule_choice import find_schedule
from .stepper import PlannedCall, list_calls
from .timesteps import is_ramp, make_grid_at_labels, make_grid_at_sigmas, refuse_final
from .trained_process import TrainedProcess, choose_grid

Numbers = Sequence[float] | Tensor


@dataclass(frozen=True)
class TimestepsRequest:
    """The arguments of `set_timesteps`."""

    steps: int | None
    nfe: int | None
    sigmas: Sequence[float] | None
    labels: Sequence[float] | None
    mu: float | None

    @classmethod
    def of(
        cls, steps: int | None, nfe: int | None, mu: float | None, **listed: Numbers | None
    ) -> "TimestepsRequest":
        """Raises SettingError if there are two lists, or a list and another number of steps."""
        sigmas, labels = (_read_floats(name, listed[name]) for name in ("sigmas", "timesteps"))
        if sigmas is not None and labels is not None:
            raise SettingError("give sigmas or timesteps, not both; each determines the other")
        if [] in (sigmas, labels):
            raise SettingError("an empty list of times is no run; list one per step")
        _check_count("num_inference_steps", steps)
        _check_count("nfe", nfe)
        return cls(steps, nfe, sigmas, labels, mu)

    @property
    def listed(self) -> bool:
        return self.sigmas is not None or self.labels is not None


@dataclass(frozen=True)
class Choices:
    """The choices of a run, by their names in `SolverScheduler.from_config`.

    solver: a name with settings; None is unipc-2.
    grid:   a name with settings or falling times; None is the network's own.
    nfe:    a budget that stands in for a number of steps.
    schedule: what stands in for all of these.
    recipe: a name of `fewstep list recipes`, which stands in for solver and grid.
    final:  as `make_plan` takes it.
    denoising_start, denoising_end: fractions of the run at which it begins and ends.
    state:  "vp" | "ve", what the pipeline holds of a variance-preserving network's state; None is
        what the scheduler does that the config comes from.
    check_finite: wait for the network's answers, and raise if one is not finite.
    """

    solver: str | None = None
    grid: str | list[float] | None = None
    nfe: int | None = None
    schedule: Schedule | None = None
    recipe: str | None = None
    final: str = "zero"
    denoising_start: float | None = None
    denoising_end: float | None = None
    state: str | None = None
    check_finite: bool = False

    @classmethod
    def of(
        cls,
        *,
        grid: str | Numbers | None = None,
        schedule: Schedule | str | Path | None = None,
        **others: Any,
    ) -> "Choices":
        """Makes them of arguments: times may be any row, a schedule a text or a file's name."""
        times = grid if isinstance(grid, str) else _read_floats("grid", grid)
        return cls(grid=times, schedule=_read_schedule(schedule), **others)

    @property
    def config(self) -> dict[str, Any]:
        """The same as a config carries it: a schedule as JSON text."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return values | {"schedule": None if self.schedule is None else self.schedule.dump()}

    @property
    def fractions(self) -> tuple[float | None, float | None]:
        """Where the run begins and ends; None is at noise and at data."""
        return self.denoising_start, self.denoising_end

    def explodes(self, process: TrainedProcess) -> bool:
        """Tells whether the pipeline holds x0 + (sigma / alpha) eps: the state divided by alpha."""
        return process.explodes if self.state is None else self.state == "ve"

    def check(self, process: TrainedProcess) -> None:
        """Raises FewstepError for names and combinations that cannot be."""
        Final.named(self.final)
        _check_count("nfe", self.nfe)
        if not isinstance(self.check_finite, bool):
            raise SettingError(f"check_finite={self.check_finite!r} must be True or False")
        if self.state not in (None, "vp", "ve"):
            raise UnknownNameError("state", str(self.state), ("vp", "ve"))
        if self.state is not None and process.fixed.family != "vp":
            raise SettingError(
                f"state={self.state!r} is for variance-preserving networks, not for"
                f" {process.fixed.family}; drop it"
            )
        if not (self.solver is None or isinstance(self.solver, str)):
            raise SettingError(f"solver={self.solver!r} must be a name, as in solver='unipc-3'")
        if self.schedule is not None:
            if (self.solver, self.grid, self.nfe, self.final) != (None, None, None, "zero"):
                raise SettingError(
                    "a schedule decides everything; drop solver, grid, nfe and final"
                )
            list_calls(make_plan(process.fixed, self.schedule))
        elif self.recipe is not None:
            self._check_recipe(process)
        elif self.settings.info.adaptive:
            raise SettingError(
                f"{self.settings.info.name} chooses its steps as it goes, and a pipeline wants them"
                " listed before; take a solver with fixed steps, such as unipc-2, or Sampler"
            )
        else:
            sized = self.nfe is not None or isinstance(self.grid, list)
            self.plan(process, TimestepsRequest(None if sized else 4, None, None, None, mu=1.0))
        settings = None if self.schedule is not None else self.settings
        meant, network, distilled = self.recipe is not None, "the network of this config", None
        if meant and settings is not None and settings.info.name == FLOW_MAP:
            distilled = process.as_flow_map
        check_distilled(settings, distilled or process.distilled, network, meant)

    def _check_recipe(self, process: TrainedProcess) -> None:
        if (self.solver, self.grid, self.nfe, self.final) != (None, None, None, "zero"):
            raise SettingError(
                "a recipe decides solver and times; drop solver, grid, nfe and final"
            )
        recipe, number, _ = read_recipe(str(self.recipe))
        recipe.warn()
        steps = number or (recipe.steps or (4,))[0]
        self.plan(process, TimestepsRequest(steps, None, None, None, mu=1.0))

    @property
    def settings(self) -> SolverSettings:
        if self.recipe is not None:
            return take_solver(read_recipe(self.recipe)[0].solver)
        return take_solver(DEFAULT_SOLVER if self.solver is None else self.solver)

    def stand_in(self, process: TrainedProcess) -> "Choices":
        """Returns the choices with the update of a distilled network, if none is chosen."""
        chosen = (self.solver, self.schedule, self.recipe) != (None, None, None)
        if chosen or process.distilled is None:
            return self
        return replace(self, solver=process.distilled.solver)

    def plan(self, process: TrainedProcess, request: TimestepsRequest) -> Plan:
        """Returns the plan of a run; raises FewstepError if there is none."""
        schedule, given = process.make_schedule(request.mu), request.sigmas or request.labels
        if self.recipe is not None:
            return self._plan_recipe(schedule, request, process)
        if given is None:
            return self._plan_steps(schedule, request, process)
        if isinstance(schedule, RectifiedFlow) and request.sigmas and is_ramp(given):
            same = TimestepsRequest(len(given), request.nfe, None, None, request.mu)
            plan = self._plan_steps(schedule, same, process)
        else:
            if isinstance(schedule, RectifiedFlow) and request.sigmas:
                refuse_final(schedule, given)
            read = make_grid_at_sigmas if request.sigmas else make_grid_at_labels
            plan = self._plan_list(read(schedule, given), request.nfe)
        if request.steps not in (None, plan.grid.steps):
            raise SettingError(
                f"{plan.grid.steps} times were given for {request.steps} steps; drop"
                " num_inference_steps"
            )
        return plan

    def _plan_recipe(
        self, schedule: NoiseSchedule, request: TimestepsRequest, process: TrainedProcess
    ) -> Plan:
        """Returns the plan of a recipe; of a ramp, which pipelines pass, the number counts."""
        steps = request.steps or request.nfe
        if request.sigmas is not None and is_ramp(request.sigmas):
            steps = len(request.sigmas)
        elif request.listed:
            raise SettingError(f"recipe {self.recipe} lists its times; drop sigmas and timesteps")
        run = RecipeRun.find(str(self.recipe), steps)
        times = run.place(schedule, process.prediction)
        return make_plan(schedule, run.recipe.solver, grid=times)

    def _plan_list(self, grid: TimeGrid, nfe: int | None) -> Plan:
        """Times that somebody chose; they are taken as they are or not at all."""
        set_too = [name for name in ("grid", "nfe") if getattr(self, name) is not None]
        if nfe is not None or set_too or self.schedule is not None or self.final != "zero":
            what = "a schedule" if self.schedule is not None else " and ".join(set_too or ["nfe"])
            raise SettingError(
                f"explicit sigmas or timesteps are the grid, and this scheduler has {what} already;"
                " drop one of them"
            )
        return make_plan(grid.schedule, self.settings, grid=[node.t for node in grid.nodes])

    def _plan_steps(
        self, schedule: NoiseSchedule, request: TimestepsRequest, process: TrainedProcess
    ) -> Plan:
        nfe = self.nfe if request.nfe is None else request.nfe
        if self.schedule is not None:
            plan, what = make_plan(schedule, self.schedule), "the schedule"
        elif self.grid is not None and not isinstance(self.grid, str):
            plan, what = make_plan(schedule, self.settings, grid=self.grid), "the grid"
        elif nfe is not None:
            plan, what = self._plan_named(schedule, {"nfe": nfe}, process), f"{nfe} evaluations"
        elif request.steps is None:
            raise SettingError("set_timesteps needs num_inference_steps, sigmas, timesteps or nfe")
        else:
            return self._plan_named(schedule, {"steps": request.steps}, process)
        _check_steps(what, plan.grid.steps, request.steps)
        fixed = self.schedule is not None or isinstance(self.grid, list)
        if fixed and nfe not in (None, plan.nfe):
            raise SettingError(f"{what} takes {plan.nfe} evaluations, not nfe={nfe}; drop nfe")
        return plan

    def _plan_named(
        self, schedule: NoiseSchedule, size: Mapping[str, int], process: TrainedProcess
    ) -> Plan:
        assert not isinstance(self.grid, list)
        grid = self.grid or choose_grid(schedule, process)
        return make_plan(schedule, self.settings, grid=grid, final=self.final, **size)


def _read_schedule(schedule: Schedule | str | Path | None) -> Schedule | None:
    """Reads a schedule: itself, its JSON text, a file, or the name of a preset."""
    if schedule is not None and not isinstance(schedule, Schedule):
        text = str(schedule)
        is_json = text.lstrip().startswith("{")
        schedule = Schedule.parse(text) if is_json else find_schedule(text)
    if schedule is not None and schedule.correction is not None:
        raise SettingError(
            "this schedule has a learned correction, whose weights the config of a scheduler does"
            " not carry; draw with fewstep.Sampler, or take schedule.with_correction(None)"
        )
    return schedule


def _check_steps(what: str, has: int, asked: int | None) -> None:
    if asked not in (None, has):
        raise SettingError(
            f"{what} is {has} steps, not {asked}; call the pipeline with num_inference_steps={has}"
        )


def _read_floats(name: str, values: Numbers | None) -> list[float] | None:
    return None if values is None else as_numbers(values, name)


def check_markov(plan: Plan, calls: Sequence[PlannedCall]) -> None:
    """Raises SettingError unless each step of a plan depends on its own state and answer alone."""
    remembers = isinstance(plan.solver, Revisable) and plan.solver.reach > 0
    if remembers or len(calls) != plan.grid.steps or plan.settings is None:
        raise SettingError(
            "a step with a probability depends on nothing but the state, and this solver remembers"
            " more or asks twice; take solver='ddim' (or 'euler')"
        )


def _check_count(name: str, value: int | None) -> None:
    if value is not None and as_integer(value, name) < 1:
        raise SettingError(f"{name}={value!r} must be a positive whole number")
