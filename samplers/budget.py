"""From a budget of evaluations to the number of steps that spends it."""

from collections.abc import Callable

from ..models.errors import ScheduleError, SettingError
from ..models.schedule import TimeGrid
from ..solvers import SolverSettings, list_queries
from ..solvers.artefact import MAX_STEPS
from .grid import check_steps


def predict_nfe(settings: SolverSettings, grid: TimeGrid) -> int:
    """Returns the evaluations a run on this grid will make, counted by a dry run."""
    return len(list_queries(settings.on(grid), grid))


def fit_grid(nfe: int, settings: SolverSettings, make_grid: Callable[[int], TimeGrid]) -> TimeGrid:
    """Returns the grid on which the solver spends exactly `nfe` evaluations.

    Raises:
        SettingError: if nfe is out of range, or no number of steps costs exactly that; it names
            those near.
        ScheduleError: if the nodes of so many steps do not fall.
    """
    check_steps(nfe, "nfe must be")
    guess = -(-nfe // settings.info.calls_per_step)
    grids, refusals = [], []
    for steps in range(max(1, guess - 2), min(guess + 2, MAX_STEPS + 1)):
        try:
            grids.append(make_grid(steps))
        except ScheduleError as refusal:  # of so many steps; fewer may be what is asked for
            refusals.append(refusal)
    costs = [predict_nfe(settings, grid) for grid in grids]
    if nfe in costs:
        return grids[costs.index(nfe)]
    if refusals:
        raise refusals[0]
    near = " or ".join(str(cost) for cost in sorted(costs, key=lambda cost: abs(cost - nfe))[:2])
    raise SettingError(
        f"{settings.info.name} cannot spend exactly {nfe} evaluations; {near} it can"
    )
