"""Ancestral sampling (DDPM) between any two nodes.

    x_s = (sigma_s^2 a / sigma_t^2) x_t + (alpha_s v / sigma_t^2) x0 + sqrt(variance) z,
    a = alpha_t / alpha_s,   v = sigma_t^2 - a^2 sigma_s^2

is a draw from q(x_s | x_t, x0) if the variance is v sigma_s^2 / sigma_t^2 (arXiv:2006.11239, eq. 6
and 7). The mean and that variance are those of SDE-DPM-Solver++1 with eta = 1.
"""

import math
from typing import ClassVar, Literal

from pydantic.dataclasses import dataclass

from ..models.schedule import Node, TimeGrid
from .base import SolverInfo, register
from .multistep import LinearSolver
from .sde_dpmpp import SDEDPMpp1
from .table import Combination


@register
@dataclass(frozen=True)
class DDPM(LinearSolver):
    """DDPM.

    variance: "small" is the posterior's, right where x0 is known; "large" is that of data with unit
              variance, which is beta_t where alpha^2 + sigma^2 = 1. No noise at sigma_s = 0.
    """

    info: ClassVar[SolverInfo] = SolverInfo(
        name="ddpm",
        order=1,
        calls_per_step=1,
        source="arXiv:2006.11239 eq. 6-7 and sec. 3.2",
        stochastic=True,
    )
    variance: Literal["small", "large"] = "small"

    def combinations(self, grid: TimeGrid) -> list[Combination]:
        combos = SDEDPMpp1(eta=1.0).combinations(grid)
        if self.variance == "large":
            for n, combo in enumerate(combos):
                combo[("z", n)] = _large(*grid.nodes[n : n + 2])
        return combos


def _large(t: Node, s: Node) -> float:
    """Standard deviation of x_s given x_t for data of unit variance."""
    if s.sigma == 0.0:
        return 0.0
    return math.hypot(s.alpha, s.sigma) * math.sqrt(1.0 - _signal(t) / _signal(s))


def _signal(node: Node) -> float:
    """The share of the signal in the variance of x."""
    return node.alpha**2 / (node.alpha**2 + node.sigma**2)
