"""Exponential Runge-Kutta methods in lam on x0 (the singlestep RES).

y = x / alpha obeys dy/dlam = -y + x0. With h = lam_s - lam_t, the states stand at lam_t + c_i h,

    y_i = e^{-c_i h} y_t + h sum_{j < i} a_ij x0_j,   y_s = e^{-h} y_t + h sum_j b_j x0_j,

where phi_k = phi_k(-h), phi_k,i = phi_k(-c_i h), a_i1 and b_1 make the sums c_i phi_1,i and phi_1,

    order 2: b_2 = phi_2 / c_2
    order 3: g = (3 c_3 - 2) c_3 / ((2 - 3 c_2) c_2),   b_3 = phi_2 / (g c_2 + c_3),   b_2 = g b_3,
             a_32 = g c_2 phi_2,2 + (c_3^2 / c_2) phi_2,3

(Hochbruck and Ostermann 2005, SIAM J. Numer. Anal. 43, p. 1069, sec. 5; for diffusion
arXiv:2308.02157). Where h is infinite, at sigma_s = 0 and alpha_t = 0, the step is DDIM's.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass as plain
from typing import Annotated, ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass

from ..models.schedule import Node, TimeGrid
from .base import SolverInfo, register
from .coordinates import Straight
from .exponential import phi
from .runge_kutta import StageRows, StageSteps

Weights = list[list[float]]  # h a_ij of each inner state, and h b_j


@register
@dataclass(frozen=True)
class RES2S:
    """Second order; a run of N steps to sigma = 0 costs 2 N - 1 calls.

    c2: in (0, 1], where the second evaluation stands.
    """

    info: ClassVar[SolverInfo] = SolverInfo(
        name="res-2s", order=2, calls_per_step=2, source="arXiv:2308.02157, single step, order 2"
    )
    c2: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5

    def on(self, grid: TimeGrid) -> "ExponentialSteps":
        return ExponentialSteps(Straight.of(grid), (self.c2,), self._compute_weights)

    def _compute_weights(self, h: float) -> Weights:
        second = phi(2, -h) / self.c2
        return [_make_row(self.c2, h), _make_row(1.0, h, second)]


@register
@dataclass(frozen=True)
class RES3S:
    """Third order; a run of N steps to sigma = 0 costs 3 N - 2 calls.

    c2: in (0, 2/3), where the second evaluation stands.
    c3: in [2/3, 1], where the third does; at 2/3 the second does not enter y_s.
    """

    info: ClassVar[SolverInfo] = SolverInfo(
        name="res-3s", order=3, calls_per_step=3, source="arXiv:2308.02157, single step, order 3"
    )
    c2: Annotated[float, Field(gt=0.0, lt=2 / 3)] = 0.5
    c3: Annotated[float, Field(ge=2 / 3, le=1.0)] = 1.0

    def on(self, grid: TimeGrid) -> "ExponentialSteps":
        return ExponentialSteps(Straight.of(grid), (self.c2, self.c3), self._compute_weights)

    def _compute_weights(self, h: float) -> Weights:
        c2, c3 = self.c2, self.c3
        g = (3.0 * c3 - 2.0) * c3 / ((2.0 - 3.0 * c2) * c2)
        third = phi(2, -h) / (g * c2 + c3)
        inner = g * c2 * phi(2, -c2 * h) + c3 * c3 / c2 * phi(2, -c3 * h)
        return [_make_row(c2, h), _make_row(c3, h, inner), _make_row(1.0, h, g * third, third)]


def _make_row(c: float, h: float, *later: float) -> list[float]:
    """Returns h times the weights of x0 at c; the first makes their sum h c phi_1(-c h)."""
    return [h * (c * phi(1, -c * h) - sum(later)), *(h * weight for weight in later)]


@plain(frozen=True, slots=True)
class ExponentialSteps(StageSteps):
    """Steps through the places lam_t + c h, with the weights of x0 as a function of h."""

    places: Sequence[float]
    weights: Callable[[float], Weights]

    def make_rows(self, t: Node, s: Node) -> StageRows:
        if t.alpha == 0.0 or s.sigma == 0.0:
            ratio = s.sigma / t.sigma
            return StageRows((t,), ((ratio, s.alpha - t.alpha * ratio),), ((),))
        h, at = s.lam - t.lam, self.line.schedule.at_lam
        inner = [s if c == 1.0 else at(t.lam + c * h) for c in self.places]
        rows = [
            (node.sigma / t.sigma, *(node.alpha * weight for weight in row))
            for node, row in zip([*inner, s], self.weights(h), strict=True)
        ]
        return StageRows((t, *inner), tuple(rows), ((),) * len(rows))
