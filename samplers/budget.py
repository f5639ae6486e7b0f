"""From a budget of network evaluations to a number of steps."""

from collections.abc import Callable

from ..models.errors import SettingError
from ..models.schedule import TimeGrid
from ..solvers import SolverSettings, queries
from ..solvers.schedule_data import MAX_STEPS
from .grid import check_steps


def predicted_nfe(settings: SolverSettings, grid: TimeGrid) -> int:
    """The evaluations a run on this grid will make, counted by a dry run."""
    return len(queries(settings.on(grid), grid))


def steps_for(nfe: int, settings: SolverSettings, make_grid: Callable[[int], TimeGrid]) -> TimeGrid:
    """The grid on which the solver spends exactly `nfe` evaluations.

    Raises:
        SettingError: if nfe is out of range, or no number of steps costs exactly that; it names
            those near.
    """
    check_steps(nfe, "nfe must be")
    guess = -(-nfe // settings.info.calls_per_step)
    near_it = range(max(1, guess - 2), min(guess + 2, MAX_STEPS + 1))
    grids = [make_grid(steps) for steps in near_it]
    costs = [predicted_nfe(settings, grid) for grid in grids]
    if nfe in costs:
        return grids[costs.index(nfe)]
    near = " or ".join(str(cost) for cost in sorted(costs, key=lambda cost: abs(cost - nfe))[:2])
    raise SettingError(
        f"{settings.info.name} cannot spend exactly {nfe} evaluations; {near} it can"
    )
