"""How near solvers come to the exact solution: on a closed-form mixture and on the networks here.

The mixture: six isotropic Gaussians in eight dimensions on EDM, 2000 samples in float64 from sigma
80, grid logsnr to 0.002 and a denoising evaluation. Figures are the root mean square error to the
exact end of the probability-flow ODE (Runge-Kutta of order 8, to 1e-12) and the Frechet distance
between Gaussian fits of the two sets of ends. On a network the reference is 200 calls of unipc-3
and the grids are those used by default.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...models.denoiser import Denoiser
from ...models.errors import ScheduleError, SettingError
from ...models.gaussian import GaussianMixture
from ...models.schedule import EDM
from ...samplers.grid import check_steps
from ...samplers.guidance import Unguided
from ...samplers.loop import integrate
from ...samplers.noise import Noise
from ...samplers.plan import Plan, make_plan
from ...samplers.sampler import Sampler
from ...solvers import names, take_solver
from .. import statistics
from ..statistics import Statistics

Ends = Callable[[str, int], Tensor]  # (solver, NFE) -> end states
Measure = Callable[[Tensor, Tensor], float]
SHAPE = (2, 2, 2)
REFERENCE = 200
EXACT = "ode-dopri8:rtol=1e-12,atol=1e-12"


@dataclass(frozen=True)
class OdeProblem:
    """Something to be solved: what solvers give for a budget, and what they should give."""

    ends: Ends
    exact: Tensor


def make_toy(samples: int = 2000) -> OdeProblem:
    """Returns the closed-form mixture."""
    law, edm = draw_mixture(), EDM()
    start = torch.Generator().manual_seed(1)
    x = edm.sigma_max * torch.randn(samples, *SHAPE, generator=start, dtype=torch.float64)

    def ends(name: str, nfe: int) -> Tensor:
        return solve(law, x, make_plan(edm, name, nfe=nfe, grid="logsnr", final="denoise"))

    return OdeProblem(ends, solve(law, x, make_plan(edm, EXACT, final="sigma_min")))


def draw_mixture() -> GaussianMixture:
    """Returns six Gaussians in eight dimensions, drawn from seed 0."""
    g = torch.Generator().manual_seed(0)
    means = 0.5 * torch.randn(6, 8, generator=g, dtype=torch.float64)
    stds = 0.05 + 0.2 * torch.rand(6, generator=g, dtype=torch.float64)
    weights = torch.rand(6, generator=g, dtype=torch.float64)
    return GaussianMixture(means, stds[:, None], weights / weights.sum())


def solve(law: GaussianMixture, x: Tensor, plan: Plan) -> Tensor:
    """Returns the end of a run on EDM from states x (B, *)."""
    shape = tuple(x.shape[1:])
    noise, denoiser = Noise(range(len(x)), shape), Denoiser(law.network(EDM(), shape))
    return integrate(denoiser, plan.solver, plan.grid, x, Unguided(), noise=noise.draw)


def make_problem(model: str, images: int = 32) -> OdeProblem:
    """Returns a network of the package; all its classes in turn."""
    sampler = Sampler.from_pretrained(model)
    classes = sampler.network.num_classes
    labels = [i % classes for i in range(images)] if classes else None

    def ends(name: str, nfe: int) -> Tensor:
        return sampler(range(images), class_labels=labels, solver=name, nfe=nfe).samples

    return OdeProblem(ends, ends("unipc-3", REFERENCE))


def rmse(ends: Tensor, exact: Tensor) -> float:
    return float((ends - exact).square().mean().sqrt())


def frechet(ends: Tensor, exact: Tensor) -> float:
    """Returns |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)) of Gaussian fits, in float64, ddof 0."""
    a, b = (each.flatten(1).double().numpy() for each in (ends, exact))
    fits = (
        Statistics(each.mean(0), np.cov(each, rowvar=False, ddof=0), len(each)) for each in (a, b)
    )
    return statistics.frechet(*fits)


def report(model: str, solvers: Sequence[str], budgets: Sequence[int]) -> Iterator[str]:
    """Yields the table: one row per solver, RMSE and for the mixture Frechet distance."""
    solvers = solvers or list_fixed_solvers()
    for name in solvers:  # what is unknown shows before the reference is computed
        take_solver(name)
    for nfe in budgets:
        check_steps(nfe, "nfe must be")
    measures = (rmse, frechet) if model == "toy" else (rmse,)
    problem = make_toy() if model == "toy" else make_problem(model)
    width = 2 + max(map(len, solvers))
    yield f"{'NFE':{width}}" + "".join(f"{nfe:>{8 * len(measures)}}" for nfe in budgets)
    for name in solvers:
        cells = (cell(problem, name, nfe, measures) for nfe in budgets)
        yield f"{name:{width}}" + "".join(cells)


def list_fixed_solvers() -> list[str]:
    """Returns all solvers that take a budget."""
    return [name for name in names() if not take_solver(name).info.adaptive]


def cell(problem: OdeProblem, name: str, nfe: int, measures: Sequence[Measure]) -> str:
    """Returns the figures of one run; a dash where the solver cannot spend that budget."""
    try:
        ends = problem.ends(name, nfe)
    except (SettingError, ScheduleError):
        return f"{'-':>{8 * len(measures)}}"
    figures = (f"{measure(ends, problem.exact):.4f}".lstrip("0") for measure in measures)
    return "".join(f"{figure:>8}" for figure in figures)
