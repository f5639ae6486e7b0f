"""A run rehearsed on data whose exact answer is known, before a network is asked.

Where alpha is nearly 0, the state says almost nothing of the data, and some rules of several calls
a step, or in noise prediction, multiply the answers there by 1 / alpha. With few steps, what
was multiplied is not taken back. No list of names says where that happens: it depends on the
solver, the grid and the process. So the run is made on numbers first, with Gaussian data N(m, s^2),
whose x0 and whose probability flow have closed forms.
"""

import math
import warnings
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ..models.errors import SettingError
from ..models.gaussian import GaussianMixture
from ..models.prediction import Prediction
from ..models.schedule import Node, TimeGrid
from .base import Asked, Solver, SolverSettings, Split, drive, list_queries
from .multistep import UniPC2

TOLERATED = 1.25  # of the data's own size; the mean of the data, a guess of one call, is 1 off
GAIN = 200.0  # an error of half a per cent in eps then moves the first state by its own size
LATER = (-4.0, -3.0, -2.3, -1.6)  # lam of other places to begin at

MEANS, STDS = (0.0, 1.0), (0.05, 0.2, 0.5, 1.0)
CASES = torch.cartesian_prod(torch.tensor(MEANS).double(), torch.tensor(STDS).double())


def measure_deviation(solver: Solver[Any], grid: TimeGrid) -> float:
    """Returns the largest distance of a run from the exact result on Gaussian data of unit size.

    The means are 0 and 1, the standard deviations .05 to 1, and the runs begin at z = -1, 0 and 1
    times the noise. Stochastic solvers are given no noise, and only z = 0 counts, where their mean
    is exact too.
    """
    law = GaussianMixture.single(*CASES.unbind(1))
    z = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64).reshape(3, 1, 1, 1)
    first, last = grid.nodes[0], grid.nodes[-1]
    x = start = z.expand(3, len(CASES), 1, 1) * grid.schedule.noise_scale(first)
    noisy, state = False, solver.init()

    def answer(x_t: Tensor, node: Asked) -> Tensor:
        nonlocal noisy
        if node is None:
            noisy = True
            return torch.zeros_like(x_t)
        if isinstance(node, Split):
            return torch.stack([law.x0(x_t, node.node)] * len(node.branches))
        assert isinstance(node, Node)  # rewards are rehearsed without
        return law.x0(x_t, node)

    for t, s in pairwise(grid.nodes):
        x, state = drive(solver.step(x, state, t, s), answer)
    off = (x - law.flow_map(start, first, last)).abs()
    return float((off[1] if noisy else off).max())


def measure_gain(solver: Solver[Any], grid: TimeGrid) -> float:
    """Returns by how much an error of the first eps is enlarged in the state after the first step.

    It is relative to the size of that state, sqrt(alpha^2 + sigma^2).
    """
    t, s, *_ = grid.nodes
    errors = iter([1.0])

    def answer(x_t: Tensor, node: Asked) -> Tensor:
        error = 0.0 if node is None else next(errors, 0.0)
        like = torch.full_like(x_t, error)
        return torch.stack([like] * len(node.branches)) if isinstance(node, Split) else like

    x = torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    x, _ = drive(solver.step(x, solver.init(), t, s), answer)
    kappa = t.sigma / t.alpha if t.alpha else math.inf
    return float(x.abs().max()) * kappa / math.hypot(s.alpha, s.sigma)


def measure_step_weights(solver: Solver[Any], grid: TimeGrid) -> list[tuple[float, float]]:
    """Returns (a, b) of each step x_s = a x + b x0 + noise of a solver that remembers nothing.

    Raises:
        SettingError: for a solver of several calls a step or with a memory, and for one whose steps
            are not those of the grid.
    """
    zero = torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    one, weights, state = torch.ones_like(zero), list[tuple[float, float]](), solver.init()
    if list_queries(solver, grid) != list(grid.nodes[:-1]):
        raise SettingError("the solver makes several evaluations a step; take ddim or ddpm")
    for t, s in pairwise(grid.nodes):

        def step(x: Tensor, x0: Tensor) -> tuple[float, Any]:
            work = solver.step(x, state, t, s)  # noqa: B023  # it is run at once
            x_s, after = drive(work, lambda _, node: zero if node is None else x0)
            return float(x_s), after

        (a, _), (b, after), (rest, _) = step(one, zero), step(zero, one), step(zero, zero)
        if rest != 0.0:
            raise SettingError("the solver remembers earlier evaluations; take ddim or ddpm")
        if not math.isclose(a * t.alpha + b, s.alpha, rel_tol=1e-6, abs_tol=1e-9):
            raise SettingError("the solver does not step over this grid alone; take one network")
        weights.append((a, b))
        state = after
    return weights


def warn_of_amplification(settings: SolverSettings, grid: TimeGrid, kind: Prediction) -> None:
    """Warns if a solver on a grid enlarges errors, and says where and with what it does not.

    Either a rehearsal ends farther than 1.25 from the exact result on data of unit size, or the
    first step enlarges errors of eps more than 200 times, for a network that predicts eps.
    """
    solver, first = settings.on(grid), grid.nodes[0]
    name, place = settings.info.name, f"t={first.t:g}, where alpha={first.alpha:.2g}"
    off = measure_deviation(solver, grid)
    if not off <= TOLERATED:
        warnings.warn(
            f"{name} with {grid.steps} steps from {place} and sigma={first.sigma:.2g} amplifies"
            f" errors: on Gaussian data of unit size it ends {off:.3g} from the exact result; take"
            f" {_name_better(grid)}more steps{_name_later(settings, grid)}",
            stacklevel=2,
        )
    elif kind is Prediction.EPS and (gain := measure_gain(solver, grid)) > GAIN:
        node = grid.schedule.at_lam(LATER[0])
        warnings.warn(
            f"the first step from {place}, amplifies errors of this network's eps {gain:.3g} times;"
            f" take more steps, or begin at t={node.t:.4g}, where alpha={node.alpha:.2g}",
            stacklevel=2,
        )


def _name_better(grid: TimeGrid) -> str:
    """Names a solver that is right on this grid, if the usual ones are."""
    right = measure_deviation(UniPC2().on(grid), grid) <= TOLERATED
    return f"{UniPC2.info.name}, " if right else ""


def _name_later(settings: SolverSettings, grid: TimeGrid) -> str:
    """Says where the solver could begin and be right."""
    for node in _list_starts(grid):
        rest = [each for each in grid.nodes if each.lam > node.lam + 0.1]
        later = TimeGrid(grid.schedule, (node, *rest), grid.denoise)
        if rest and measure_deviation(settings.on(later), later) <= TOLERATED:
            return f", or begin at t={node.t:.4g}, where alpha={node.alpha:.2g}"
    return ""


def _list_starts(grid: TimeGrid) -> Iterator[Node]:
    return (grid.schedule.at_lam(lam) for lam in LATER if lam > grid.nodes[0].lam)
