"""The plan of a run: a solver bound to a grid, from names, settings, a budget or a schedule."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, TypedDict

from ..models.arguments import Numbers, as_integer, as_numbers
from ..models.caching import Policy
from ..models.errors import SettingError
from ..models.node import check_normal
from ..models.prediction import Prediction
from ..models.registry import spell_name
from ..models.schedule import NoiseSchedule, TimeGrid, VPDiscrete
from ..solvers import (
    Bound,
    Executor,
    Solver,
    SolverSettings,
    dry_run,
    list_queries,
    take_solver,
)
from ..solvers.artefact import Artefact
from ..solvers.base import SOLVERS, check_family, list_evaluations
from ..solvers.rehearsal import warn_of_amplification
from ..solvers.steered import Steered
from ..solvers.switch import Switch
from .budget import fit_grid
from .grid import Final, choose_default_grid, time_grid, warn_of_steps

DEFAULT_SOLVER = SOLVERS.preferred
DEFAULT_NFE = 10


@dataclass(frozen=True)
class Plan:
    """A solver and the grid it steps over.

    solver: ready to run, its coefficients computed.
    grid:   the nodes.
    adaptive: the solver chooses its own steps between them.
    settings: what the solver was made of; None for a schedule.
    """

    solver: Solver[Any]
    grid: TimeGrid
    adaptive: bool = False
    settings: SolverSettings | None = None

    def check(self, kind: Prediction) -> None:
        """Raises SettingError if two solvers do not fit the run, as their boundary lies outside.

        Warns if it would enlarge errors of a network that predicts `kind`. Schedules and solvers
        that were measured on a network were seen to be right there.
        """
        if isinstance(self.settings, Switch):
            self.settings.check(self.grid)
        if self.settings is not None and not (self.adaptive or isinstance(self.solver, Bound)):
            settings = self.settings
            if isinstance(settings, Steered):
                settings = take_solver(settings.solver)
            warn_of_amplification(settings, self.grid, kind)

    @property
    def cache(self) -> Policy | None:
        """The cache that a schedule brings; None for any other run."""
        return self.solver.schedule.cache_policy if isinstance(self.solver, Executor) else None

    @property
    def nfe(self) -> int:
        """Evaluations per image, counted by a dry run; meaningless for an adaptive solver."""
        return len(list_queries(self.solver, self.grid))


class PlanChoices(TypedDict, total=False):
    """The choices that decide solver, steps and nodes of a run.

    solver: a name, `name:key=value,...`, a settings value, or a `Schedule`, which brings its own
            grid and takes none of the other choices; None is the default.
    nfe:    budget of evaluations per image; 10 if steps is not given either.
    steps:  number of steps, instead of a budget.
    grid:   a name, `name:key=value,...`, or falling times of the noise schedule that end where the
            run shall end; the default suits the process.
    final:  "zero", "sigma_min" or "denoise"; for named grids.
    recipe: a name of `fewstep list recipes`, which decides solver and times.
    """

    solver: str | SolverSettings | Artefact | None
    nfe: int | None
    steps: int | None
    grid: str | Numbers | None
    final: Final | str
    recipe: str | None


def make_plan(
    noise_schedule: NoiseSchedule,
    solver: str | SolverSettings | Artefact | None = None,
    *,
    nfe: int | None = None,
    steps: int | None = None,
    grid: str | Numbers | None = None,
    final: Final | str = Final.ZERO,
) -> Plan:
    """Decides solver, steps and nodes for the noise schedule of a network.

    solver, nfe, steps, grid, final: see `PlanChoices`.

    Raises:
        FewstepError: for names that do not exist and combinations that cannot be.
    """
    if isinstance(solver, Artefact):
        if (nfe, steps, grid, Final.named(final)) != (None, None, None, Final.ZERO):
            raise SettingError("a schedule decides the steps; drop nfe, steps, grid and final")
        solver.check_process(noise_schedule)
        return _check_noise(Plan(solver.make_solver(), solver.grid()), noise_schedule)
    settings = take_solver(DEFAULT_SOLVER if solver is None else solver)
    size = clean_choices(nfe=nfe, steps=steps, grid=grid)
    chosen = _make_grid(noise_schedule, settings, final=Final.named(final), **size)
    _check_whole(settings, chosen)
    plan = Plan(settings.on(chosen), chosen, settings.info.adaptive, settings)
    return _check_noise(plan, noise_schedule)


def _check_noise(plan: Plan, schedule: NoiseSchedule) -> Plan:
    """Returns a plan; raises SettingError if it adds normal noise to that of PFGM++."""
    if getattr(schedule, "aug_dim", None) is not None:
        name = "this schedule" if plan.settings is None else plan.settings.info.name
        steps = () if plan.adaptive else dry_run(plan.solver, plan.grid.nodes)
        if any(None in asked for asked in steps):
            check_normal(schedule, f"{name} adds normal noise")
    return plan


def _check_whole(settings: SolverSettings, grid: TimeGrid) -> None:
    """Raises SettingError for a solver that asks between the nodes a network of whole times knows.

    Such a node would be moved to the nearest timestep, while the weights of the step stay those of
    the place between.
    """
    schedule = grid.schedule
    if not (isinstance(schedule, VPDiscrete) and schedule.whole_times):
        return
    free = TimeGrid.of(
        replace(schedule, whole_times=False), [node.t for node in grid.nodes], grid.denoise
    )
    known = {node.t for node in free.nodes}
    nodes = [] if settings.info.adaptive else list_queries(settings.on(free), free)
    if settings.info.adaptive or any(node.t not in known for node in nodes):
        raise SettingError(
            f"{settings.info.name} asks its network at times between the nodes, and this one takes"
            " whole timesteps only; take unipc-2, or another solver that asks at the nodes alone"
        )


def clean_choices(**given: Any) -> dict[str, Any]:
    """Returns those arguments of `make_plan` that are not None, their numbers as Python's.

    Raises:
        SettingError: for what is no number; it names the argument.
    """
    choices = {name: value for name, value in given.items() if value is not None}
    for name in choices.keys() & {"nfe", "steps"}:
        choices[name] = as_integer(choices[name], name)
    if not isinstance(choices.get("grid", ""), str):
        choices["grid"] = as_numbers(choices["grid"], "grid")
    return choices


def count_stage_calls(
    solver: Solver[Any], grid: TimeGrid, first: int = 0, end: int | None = None
) -> Counter[int]:
    """Returns how often a run asks for x0 as the first, second, .. call of its step.

    first, end: the steps that count, up to the one before `end`.
    """
    steps = dry_run(solver, grid.nodes)[first:end]
    counts = (len(list_evaluations(step)) for step in steps)
    return Counter(chain.from_iterable(map(range, counts)))


def _make_span(
    noise_schedule: NoiseSchedule, settings: SolverSettings, given: tuple[Any, ...], final: Final
) -> TimeGrid:
    """Returns the two ends of an adaptive run: from t_max to t_min, and to zero from there."""
    if given != (None, None, None):
        name = settings.info.name
        raise SettingError(
            f"{name} chooses its own steps; drop nfe, steps and grid, set tolerances"
        )
    ends = 1 if final is Final.SIGMA_MIN else 2
    end = Final.SIGMA_MIN if final is Final.SIGMA_MIN else Final.ZERO
    return time_grid("logsnr", noise_schedule, ends, end)


def _make_grid(
    noise_schedule: NoiseSchedule,
    settings: SolverSettings,
    *,
    nfe: int | None = None,
    steps: int | None = None,
    grid: str | Sequence[float] | None = None,
    final: Final,
) -> TimeGrid:
    if nfe is not None and steps is not None:
        raise SettingError("give nfe, a budget of evaluations, or steps, not both")
    if grid is not None and not isinstance(grid, str):
        if (nfe, steps, final) != (None, None, Final.ZERO):
            raise SettingError("explicit times are the grid; drop nfe, steps and final")
        return TimeGrid.of(noise_schedule, grid)
    if settings.info.adaptive:
        return _make_span(noise_schedule, settings, (nfe, steps, grid), final)
    spec = grid or find_default_grid(noise_schedule, settings, nfe=nfe, steps=steps, final=final)

    def make_grid(n: int) -> TimeGrid:
        return time_grid(spec, noise_schedule, n, final)

    if steps is not None:
        return warn_of_steps(make_grid(steps), steps, spec)
    return fit_grid(DEFAULT_NFE if nfe is None else nfe, settings, make_grid)


def find_default_grid(
    noise_schedule: NoiseSchedule,
    settings: SolverSettings,
    *,
    nfe: int | None = None,
    steps: int | None = None,
    final: Final = Final.ZERO,
) -> str:
    """Returns the grid of a run that chooses none; other ends than zero are those of protocols."""
    if settings.info.grid:  # which suits no process but the solver's own
        check_family(settings.info, noise_schedule)
        return settings.info.grid
    budget = (nfe or DEFAULT_NFE) if steps is None else steps * settings.info.calls_per_step
    return choose_default_grid(noise_schedule, budget if final is Final.ZERO else None)


def settle_choices(noise_schedule: NoiseSchedule, choices: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments of `make_plan` with its defaults written out, which may change."""
    settled = {"solver": DEFAULT_SOLVER, **choices}
    if isinstance(settled["solver"], Artefact):
        return settled
    if isinstance(settled["solver"], str):
        settled["solver"] = SOLVERS.spell(settled["solver"])
    settings, size = take_solver(settled["solver"]), {"nfe", "steps", "grid"} & settled.keys()
    if settings.info.adaptive or not isinstance(settled.get("grid", ""), str):
        return settled
    if not size - {"grid"}:
        settled["nfe"] = DEFAULT_NFE
    if "grid" not in size:
        given = {name: settled[name] for name in ("nfe", "steps") if name in settled}
        final = Final.named(settled.get("final", Final.ZERO))
        settled["grid"] = find_default_grid(noise_schedule, settings, final=final, **given)
    return settled | {"grid": spell_name(settled["grid"])}
