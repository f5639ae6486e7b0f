"""The toy of schedule search: a mixture in 32 dimensions whose denoiser is known exactly.

Twelve components of rank 6 and a little isotropic noise, data of standard deviation 0.57, on EDM
from sigma 80 to 0.002. The teacher is Heun with 400 steps on the karras grid. It is small enough
that whole searches take seconds, and hard enough that few-step solvers err by a third of the data.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...models.denoiser import Denoiser, Network
from ...models.prediction import Prediction
from ...models.schedule import EDM, Node
from ...samplers.grid import Final, time_grid
from ...samplers.guidance import Unguided
from ...samplers.loop import integrate
from ...samplers.noise import make_generator
from ...samplers.plan import make_plan
from ...solvers import StepSchedule, take_solver
from ...solvers.linear import Encoder
from ...solvers.mean_image import MeanImage
from .problem import Block, Problem, Teacher

DIMENSIONS, COMPONENTS, RANK = 32, 12, 6
F64 = torch.float64
FLOOR = 0.03  # standard deviation of the isotropic part
TEACHER = Teacher(solver="heun", nfe=None, steps=400, grid="karras", final="sigma_min")


@dataclass(frozen=True, eq=False)
class LowRankMixture:
    """sum_k w_k N(m_k, F_k F_k^T + s^2 I) in d dimensions, its eigenvectors worked out.

    weights: (K,).  means: (K, d).
    axes:    (K, d, r), orthonormal columns that span F_k.
    spread:  (K, r), variance along them, s^2 included.
    floor:   s.
    """

    weights: Tensor
    means: Tensor
    axes: Tensor
    spread: Tensor
    floor: float

    @property
    def mean(self) -> Tensor:
        """Of the whole law, (d,)."""
        return self.weights @ self.means

    def x0(self, x_t: Tensor, node: Node) -> Tensor:
        """E[x0 | x_t] for x_t (B, d); any schedule.

        With y = x_t / alpha, kappa = sigma / alpha and C_k the covariances it is
        sum_k r_k [m_k + C_k (C_k + kappa^2)^{-1} (y - m_k)], r_k the posterior weights.
        """
        y, noise = x_t.to(self.means.dtype) / node.alpha, node.kappa**2
        off = y[:, None] - self.means  # (B, K, d)
        along = torch.einsum("bkd,kdr->bkr", off, self.axes)
        across, wide = self.floor**2 + noise, self.spread + noise
        shrink = self.floor**2 / across
        r = self._log_posterior(off, along, across, wide).softmax(-1)
        inner = along * (self.spread / wide - shrink)
        moved = torch.einsum("bkr,kdr->bkd", inner, self.axes) + shrink * off + self.means
        return torch.einsum("bk,bkd->bd", r, moved).to(x_t.dtype)

    def _log_posterior(self, off: Tensor, along: Tensor, across: float, wide: Tensor) -> Tensor:
        """ln of the components' weights given y, up to a constant; (B, K)."""
        rest = off.square().sum(-1) - along.square().sum(-1)
        distance = rest / across + (along.square() / wide).sum(-1)
        return self.weights.log() - 0.5 * (distance + wide.log().sum(-1))

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """n samples, (n, d)."""
        k = torch.multinomial(self.weights, n, True, generator=generator)
        noise = _normal(generator, n, self.means.shape[1])
        inner = _normal(generator, n, self.spread.shape[1])
        scale = (self.spread - self.floor**2).clamp_min(0.0).sqrt()
        low_rank = torch.einsum("bdr,br->bd", self.axes[k], scale[k] * inner)
        return self.means[k] + low_rank + self.floor * noise

    def network(self, schedule: EDM) -> Network:
        """As a network on EDM that predicts x0."""

        def forward(x: Tensor, node: Node, conditions: Mapping[str, Any]) -> Tensor:
            return self.x0(x, node)

        shape = (self.means.shape[1],)
        return Network(
            forward=forward, schedule=schedule, prediction=Prediction.X0, shape=shape, name="toy"
        )


def _normal(generator: torch.Generator, *size: int) -> Tensor:
    return torch.randn(size, generator=generator, dtype=F64)


@cache
def mixture(seed: int = 0) -> LowRankMixture:
    """Returns the law of the toy; other seeds give others of its kind."""
    g = make_generator(seed)
    means = 0.45 * _normal(g, COMPONENTS, DIMENSIONS)
    weights = torch.softmax(0.5 * _normal(g, COMPONENTS), 0)
    profile = torch.logspace(-0.2, -1.6, RANK, dtype=F64) * math.sqrt(1.5)
    axes, spread = [], []
    for _ in range(COMPONENTS):
        factor = _normal(g, DIMENSIONS, RANK) * profile / DIMENSIONS**0.25
        u, s, _ = torch.linalg.svd(factor, full_matrices=False)
        axes.append(u)
        spread.append(s**2 + FLOOR**2)
    return LowRankMixture(weights, means, torch.stack(axes), torch.stack(spread), FLOOR)


def toy(
    sizes: tuple[int, int, int] = (256, 512, 4096), cache: Path | None = None, seed: int = 0
) -> Problem:
    """Returns the toy as a problem, with blocks of these sizes."""
    network = mixture(seed).network(EDM())
    return Problem.of(network, sizes, teacher=TEACHER, cache=cache, batch=4096)


def table_block(n: int = 4096) -> Block:
    """Returns the test noises of the table the toy comes from: one generator, seed 303, in float64.

    They are those of no seeds, so the block's are only numbers.
    """
    problem = toy()
    noise = torch.randn(4096, DIMENSIONS, generator=torch.Generator().manual_seed(303), dtype=F64)
    plan = make_plan(problem.network.schedule, **TEACHER.choices())
    denoiser = Denoiser(problem.network)
    with torch.no_grad():
        start = 80.0 * noise[:n]
        ends = integrate(denoiser, plan.solver, plan.grid, start, Unguided())
    return Block("test", tuple(range(n)), None, noise[:n], ends)


def toy_mean(seed: int = 0) -> MeanImage:
    """Returns the mean of the data, for AFS."""
    return MeanImage.of(mixture(seed).mean.tolist(), (DIMENSIONS,))


def encode_named(solver: str, grid: str, nfe: int, **settings: Any) -> StepSchedule:
    """Returns a named solver on a named grid, down to sigma 0.002."""
    made = take_solver(solver)
    assert isinstance(made, Encoder)
    return made.step_schedule(time_grid(grid, EDM(), nfe, Final.SIGMA_MIN, **settings))
