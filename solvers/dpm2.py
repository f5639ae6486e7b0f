"""DPM-Solver-2 in the form of k-diffusion: a midpoint in log tau, Euler on the step to sigma = 0.

In the straight coordinate, with m at tau_m = sqrt(tau_t tau_s),

    d  = (y_t - x0(y_t, t)) / tau_t,   y' = y_t + (tau_m - tau_t) d,
    d' = (y' - x0(y', m)) / tau_m,     y_s = y_t + (tau_s - tau_t) d'

(k-diffusion's sample_dpm_2, after arXiv:2206.00927 and arXiv:2206.00364). Every process
but rectified flow has tau = kappa, so that m halves the step in lam; DPM-Solver-2 itself would
weigh d too, which changes nothing at second order.
"""

import math
from dataclasses import dataclass as plain
from typing import ClassVar

from pydantic.dataclasses import dataclass

from ..models.schedule import Node, TimeGrid
from .base import SolverInfo, register
from .coordinates import Straight
from .runge_kutta import EULER, RungeKuttaSteps, Tableau, midpoint


@register
@dataclass(frozen=True)
class DPM2:
    """A run of N steps to sigma = 0 costs 2 N - 1 calls."""

    info: ClassVar[SolverInfo] = SolverInfo(
        name="dpm2", order=2, calls_per_step=2, source="arXiv:2206.00927, as in k-diffusion"
    )

    def on(self, grid: TimeGrid) -> "DPM2Steps":
        return DPM2Steps(Straight.of(grid), EULER)


@plain(frozen=True, slots=True)
class DPM2Steps(RungeKuttaSteps):
    """The rule as a Runge-Kutta step whose second stage stands at (tau_m - tau_t) / h."""

    def tableau_at(self, t: Node, s: Node) -> Tableau:
        if not (root := math.sqrt(self.line.tau(s))):
            return EULER
        # (tau_m - tau_t) / (tau_s - tau_t) with the common factor taken out
        return midpoint(1.0 / (1.0 + root / math.sqrt(self.line.tau(t))), 1.0)
