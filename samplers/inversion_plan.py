"""Inversion planning: one grid between image and noise, and the solvers of either direction.

A run over the nodes from data to noise takes the same steps as sampling, between the same nodes,
the other way round. Solvers whose step holds between any two nodes run as they are. Multistep
solvers in lam step the mirrored process: with alpha' = sigma, sigma' = alpha, lam' = -lam and
x0' = eps the ODE has the same form, and lam' rises on the way to the noise as lam does on the way
back; their history starts anew.

At sigma = 0 a prediction x0 determines no slope. On rectified flow the clean end of the grid is
therefore at t = 1e-6, and the state is float64, in which x0 = x - sigma v keeps ten digits of v
there. Other processes have no network there at all; their clean end is t_min of the schedule.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..models.arguments import Numbers
from ..models.denoiser import Network
from ..models.errors import FewstepError, ScheduleError, SettingError
from ..models.schedule import Node, RectifiedFlow, TimeGrid
from ..solvers import Solver, SolverSettings, dry_run, names, solver, take_solver
from ..solvers.artefact import Artefact
from ..solvers.exponential import StepSpec, combine_steps
from ..solvers.linear import Encoder
from ..solvers.runge_kutta import RungeKuttaSteps
from ..solvers.slope_reuse import SlopeReuseSteps
from ..solvers.table import Evaluation, Table, mirror, mirror_nodes
from ..solvers.table_steps import TableSteps
from .grid import Final, choose_default_grid
from .plan import clean_choices, make_plan

DEFAULT_SOLVER = "rf-solver"
DEFAULT_NFE = 30
CLEAN = 1e-6  # t of the clean end on rectified flow
BETWEEN_ANY_NODES = (RungeKuttaSteps, SlopeReuseSteps)
WAY_BACK = {"uni-inv": "euler"}  # made for the way to the noise; this is what goes with it


@dataclass(frozen=True)
class InversionPlan:
    """One grid that is walked both ways.

    settings: the solver on the way to the noise; back: the one on the way to the data.
    grid:     its nodes, noisiest first; the last has sigma > 0.
    """

    settings: SolverSettings
    back: SolverSettings
    grid: TimeGrid

    @property
    def rising(self) -> tuple[Node, ...]:
        """The nodes from data to noise."""
        return self.grid.nodes[::-1]

    @property
    def solvers(self) -> tuple[Solver[Any], Solver[Any]]:
        """The solver over the rising nodes, and the one over the grid."""
        return make_backward_solver(self.settings, self.grid), self.back.on(self.grid)

    def calls(self) -> tuple[list[int], list[int]]:
        """Returns the evaluations in each step of both ways, by a dry run."""
        there, back = self.solvers
        ways = dry_run(there, self.rising), dry_run(back, self.grid.nodes)
        return list(map(len, ways[0])), list(map(len, ways[1]))


def list_invertible() -> list[str]:
    """Returns the names of the solvers that can run from data to noise."""
    return [name for name in names() if _runs_backward(name)]


def plan_inversion(
    network: Network,
    solver: str | SolverSettings = DEFAULT_SOLVER,
    *,
    nfe: int | None = None,
    steps: int | None = None,
    grid: str | Numbers | None = None,
    t_min: float | None = None,
) -> InversionPlan:
    """Returns the grid and the solvers of both directions.

    Args:
        solver: a name, `name:key=value,...` or a settings value; one of `list_invertible`.
        nfe: evaluations per image on the way to the noise; 30 if steps is not given either.
        steps: number of steps, instead of a budget.
        grid: a name or falling times, as `make_plan` takes them.
        t_min: the time of the clean end, in the schedule's own units: the image is taken for alpha
            x0 there. Default: 1e-6 on rectified flow (1e-3 without float64), elsewhere the
            schedule's own t_min.

    Raises:
        SettingError: for a solver that cannot run backwards, or a budget it cannot spend.
    """
    settings = take_invertible(solver)
    size = clean_choices(nfe=nfe, steps=steps, grid=grid)
    nfe, steps, grid = (size.get(name) for name in ("nfe", "steps", "grid"))
    schedule, clean = network.schedule, _find_clean_end(network, t_min)
    grid = choose_default_grid(schedule) if grid is None else grid  # from the noise itself

    def make(count: int | None) -> InversionPlan:
        final = Final.ZERO if schedule.family == "flow" or not _is_named(grid) else Final.SIGMA_MIN
        nodes = make_plan(schedule, settings, steps=count, grid=grid, final=final).grid.nodes
        times = [node.t for node in nodes if node.t > clean * (1.0 + 1e-9)]
        return make_inversion_plan(settings, TimeGrid.of(schedule, [*times, clean]))

    if nfe is not None and (steps is not None or not _is_named(grid)):
        raise SettingError("give nfe, a budget of evaluations, or steps or times, not both")
    if steps is not None or not _is_named(grid):
        return make(steps)
    return _fit_plan(DEFAULT_NFE if nfe is None else nfe, settings, make)


def make_backward_solver(settings: SolverSettings, grid: TimeGrid) -> Solver[Any]:
    """Returns the solver over a grid from data to noise; raises SettingError if there is none."""
    steps = settings.on(grid)
    if isinstance(steps, BETWEEN_ANY_NODES):
        return steps
    if isinstance(settings, Encoder) and all(map(_plain, settings.steps(grid))):
        return _mirror_steps(settings.steps(grid), grid)
    raise SettingError(f"{settings.info.name} cannot invert: its steps hold in one direction only")


def _mirror_steps(specs: Sequence[StepSpec], grid: TimeGrid) -> TableSteps:
    """Returns steps to the noise as long and of the same order as those of the same number back."""
    nodes = mirror_nodes(grid.nodes[::-1])
    if nodes[-1].sigma == 0.0:
        specs = [*specs[:-1], specs[-1].model_copy(update={"order": 1, "est": ()})]
    steps = combine_steps(specs, TimeGrid(grid.schedule, tuple(nodes)))  # in lam, not in t
    table = Table(nodes, steps, list(map(Evaluation, nodes[:-1])))
    return TableSteps(mirror(table))


def make_inversion_plan(settings: SolverSettings, grid: TimeGrid) -> InversionPlan:
    back = WAY_BACK.get(settings.info.name)
    return InversionPlan(settings, settings if back is None else solver(back), grid)


def _fit_plan(
    nfe: int, settings: SolverSettings, make: Callable[[int], InversionPlan]
) -> InversionPlan:
    """Returns the plan with which inversion spends exactly nfe evaluations."""
    if nfe < 1:
        raise SettingError(f"nfe must be at least 1, not {nfe}")
    guess = -(-nfe // settings.info.calls_per_step)
    plans = {sum(way.calls()[0]): way for way in map(make, range(max(1, guess - 2), guess + 2))}
    if nfe not in plans:
        near = " or ".join(map(str, sorted(plans, key=lambda cost: abs(cost - nfe))[:2]))
        name = settings.info.name
        raise SettingError(f"{name} cannot invert in exactly {nfe} evaluations; {near} it can")
    return plans[nfe]


def take_invertible(given: Any) -> SolverSettings:
    """Returns the settings of a solver that has a way back, as far as its facts tell."""
    if isinstance(given, Artefact):
        raise SettingError(
            "a searched schedule runs from noise to data only; name a solver that runs both ways:"
            f" {', '.join(list_invertible())}"
        )
    settings = take_solver(given)
    info = settings.info
    if info.stochastic or getattr(settings, "s_churn", False):
        reason = "it adds noise, and what was added cannot be told from the image"
        raise _make_error(info.name, reason)
    if info.adaptive:
        reason = "it chooses its steps, and would choose others on the way back"
        raise _make_error(info.name, reason)
    if info.name not in list_invertible():
        raise _make_error(info.name, "its steps hold in one direction only")
    return settings


def _make_error(name: str, reason: str) -> SettingError:
    return SettingError(
        f"{name} cannot invert: {reason}; these can: {', '.join(list_invertible())}"
    )


def _runs_backward(name: str) -> bool:
    settings, process = solver(name), RectifiedFlow()
    if settings.info.stochastic or settings.info.adaptive:
        return False
    try:
        make_backward_solver(settings, TimeGrid.of(process, [1.0, 0.5, 0.25, CLEAN]))
    except FewstepError:
        return False
    return True


def _plain(spec: StepSpec) -> bool:
    """Returns whether a step is its predictor and nothing else, so that it can be mirrored."""
    return not (spec.corr.on or spec.dA or any(spec.dB or ()))


def _is_named(grid: str | Sequence[float] | None) -> bool:
    return grid is None or isinstance(grid, str)


def choose_state_dtype(network: Network) -> torch.dtype:
    """Returns float64 where the network's device has it."""
    return torch.float32 if network.device.type == "mps" else torch.float64


def _find_clean_end(network: Network, t_min: float | None) -> float:
    schedule = network.schedule
    if t_min is None:
        wide = schedule.family == "flow" and choose_state_dtype(network) == torch.float64
        return CLEAN if wide else schedule.t_min
    if not schedule.t_zero < t_min < schedule.t_max:
        raise ScheduleError(
            f"t_min={t_min:g} must lie between {schedule.t_zero:g} (data) and {schedule.t_max:g}"
            " (noise); 0.01 leaves out what networks are hardly trained on"
        )
    return t_min
