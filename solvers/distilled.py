"""Updates of networks that were distilled to few steps: each asks once and makes noise anew.

With eps = (x_t - alpha_t x0) / sigma_t and standard normal z,

    x_s = alpha_s x0 + rho eps + sqrt(sigma_s^2 - rho^2) z,

and rho says how much of the noise is kept: sigma_s is DDIM, 0 is none of it. A step to sigma = 0
draws nothing.

re-noise: rho = 0. Multistep sampling of DMD2 (arXiv:2405.14867, sec. 4.4), the ping-pong sampler of
flow networks (arXiv:2505.08175), the stochastic steps of FlowMatchEuler and FlowMatchLCM, and, with
x = X / (sigma_d (cos theta + sin theta)) at tau = sin theta / (sin theta + cos theta), those of
SANA-Sprint on its state X of angle theta (arXiv:2503.09641).

LCM: re-noise of f = c_out x0 + c_skip x_t, where q = timestep_scaling n at timestep n and
c_skip = sigma_d^2 / (q^2 + sigma_d^2), c_out = q / sqrt(q^2 + sigma_d^2) (arXiv:2310.04378, eq. 9).

TCD: DDIM to the timestep q = floor((1 - gamma) p), where p is that of s, and from there forward to
s: rho = alpha_p sigma_q / alpha_q (arXiv:2402.19159, alg. 4). gamma = 0 is DDIM and draws nothing.
A run that ends at zero ends at timestep 0, as published: the little noise there stays.

Consistency models: x_s = f + sqrt(sigma_s^2 - sigma_min^2) z, where f, the prediction, is a sample
at sigma_min (arXiv:2303.01469, alg. 1).

Flow maps: Euler steps x_s = x_t - (tau_t - tau_s) u, where the network is told both times and u is
the mean velocity between them (arXiv:2406.07507). No other solver can use u, which is no slope.
"""

import math
from abc import abstractmethod
from itertools import pairwise
from typing import ClassVar

from pydantic.dataclasses import dataclass

from ..models.schedule import Node, TargetNode, TimeGrid, VPDiscrete
from .base import SolverInfo, check_family, register
from .linear import LinearSolver
from .multistep import DDIM
from .stochastic import Scale, Share
from .table import Combination, Evaluation, Table
from .table_steps import TableSteps

LCM_DATA = 0.5  # sigma_d of the scalings of LCM, whatever the data


@dataclass(frozen=True)
class OneCall(LinearSolver):
    """A solver that keeps some of the noise in each step and draws the rest.

    s_noise: factor on the noise that is drawn; other than 1 it changes the noise level.
    """

    s_noise: Scale = 1.0

    @abstractmethod
    def combine(self, grid: TimeGrid, t: Node, s: Node) -> tuple[float, float, float]:
        """Returns the weights of x_t, x0 and z in the step from t to s."""

    def combinations(self, grid: TimeGrid) -> list[Combination]:
        combos: list[Combination] = []
        for n, (t, s) in enumerate(pairwise(grid.nodes)):
            x, x0, z = self.combine(grid, t, s)
            combos.append({("x", n): x, ("x0", n): x0, ("z", n): self.s_noise * z})
        return combos


def keep_noise(
    t: Node, s: Node, rho: float, omega: float | None = None
) -> tuple[float, float, float]:
    """Returns the weights of x_t, x0 and z in the module's step, of which rho eps is kept."""
    x = rho / t.sigma
    return x, s.alpha - x * t.alpha, find_rest(s, rho) if omega is None else omega


def find_rest(s: Node, rho: float) -> float:
    """Returns sqrt(sigma_s^2 - rho^2), and 0 where they differ by rounding alone."""
    rest = s.sigma**2 - rho**2
    return math.sqrt(rest) if rest > 1e-12 * s.sigma**2 else 0.0


def _describe(name: str, source: str, *families: str, **facts: str) -> SolverInfo:
    return SolverInfo(
        name=name,
        order=1,
        source=source,
        stochastic=name != "flow-map",
        families=families,
        distilled=True,
        **facts,  # type: ignore[arg-type]
    )


@register
@dataclass(frozen=True)
class Renoise(OneCall):
    """Re-noise: x0 and new noise in every step; of DMD2, SANA-Sprint and flow LCMs."""

    info: ClassVar[SolverInfo] = _describe("renoise", "arXiv:2405.14867 sec. 4.4")

    def combine(self, grid: TimeGrid, t: Node, s: Node) -> tuple[float, float, float]:
        return keep_noise(t, s, 0.0)


@register
@dataclass(frozen=True)
class LCM(OneCall):
    """Multistep sampling of latent consistency models, with their scalings at the boundary.

    timestep_scaling: factor from a timestep to q, as the config has it.
    """

    info: ClassVar[SolverInfo] = _describe(
        "lcm", "arXiv:2310.04378 alg. 3 and eq. 9", "vp", grid="lcm"
    )
    timestep_scaling: Scale = 10.0

    def combine(self, grid: TimeGrid, t: Node, s: Node) -> tuple[float, float, float]:
        q = self.timestep_scaling * grid.schedule.label(t)
        skip, out = LCM_DATA**2 / (q**2 + LCM_DATA**2), q / math.hypot(q, LCM_DATA)
        return s.alpha * skip, s.alpha * out, s.sigma


@register
@dataclass(frozen=True)
class TCD(OneCall):
    """Strategic stochastic sampling of trajectory consistency models.

    gamma: 0 keeps all of the noise, 1 nearly none of it; `eta` in diffusers.
    """

    info: ClassVar[SolverInfo] = _describe("tcd", "arXiv:2402.19159 alg. 4", "vp", grid="lcm")
    gamma: Share = 0.3

    def combine(self, grid: TimeGrid, t: Node, s: Node) -> tuple[float, float, float]:
        schedule = grid.schedule
        assert isinstance(schedule, VPDiscrete)
        end = s if s.sigma > 0.0 else schedule.at(schedule.t_min)
        if self.gamma == 0.0:
            return keep_noise(t, end, end.sigma)
        label = math.floor((1.0 - self.gamma) * schedule.label(end) + 1e-6)
        between = schedule.at((label + 1) / schedule.num_train_timesteps)
        return keep_noise(t, end, min(end.sigma, end.alpha * between.sigma / between.alpha))


@register
@dataclass(frozen=True)
class Consistency(OneCall):
    """Multistep sampling of consistency models."""

    info: ClassVar[SolverInfo] = _describe(
        "consistency", "arXiv:2303.01469 alg. 1", "edm", grid="consistency"
    )

    def combine(self, grid: TimeGrid, t: Node, s: Node) -> tuple[float, float, float]:
        low = grid.schedule.at(grid.schedule.t_min).sigma
        return 0.0, 1.0, math.sqrt(max(0.0, s.sigma**2 - low**2))


@register
@dataclass(frozen=True)
class FlowMap:
    """Euler steps of a flow map, a network that is told where each step goes."""

    info: ClassVar[SolverInfo] = _describe("flow-map", "arXiv:2406.07507", "flow")

    def on(self, grid: TimeGrid) -> TableSteps:
        check_family(self.info, grid.schedule)
        asked = [Evaluation(TargetNode.of(t, s)) for t, s in pairwise(grid.nodes)]
        return TableSteps(Table(grid.nodes, DDIM().combinations(grid), asked))
