"""tAB-DEIS: eps is interpolated in the schedule's own t over the last K + 1 nodes.

    x_s = (alpha_s / alpha_t) x_t + sum_j C_j eps_{t-j},
    C_j = alpha_s int l_j(tau) dkappa(tau), from kappa_t to kappa_s,

with l_j the Lagrange polynomials in t, over fewer nodes in the first steps. The integral is taken
over kappa, of which t is a smooth function down to kappa = 0, where kappa itself goes as a root
of t; 32 Gauss-Legendre points. The step to sigma = 0 has the full order, and the node alpha = 0
stays in use, as t and eps are finite there.
"""

import math
from typing import ClassVar

from pydantic.dataclasses import dataclass

from ..models.schedule import TimeGrid
from .adams import adams, between, mean_of_basis
from .base import SolverInfo, register
from .multistep import LinearSolver
from .table import Combination


@dataclass(frozen=True)
class DEISTab(LinearSolver):
    """All four; no settings."""

    k: ClassVar[int]

    def combinations(self, grid: TimeGrid) -> list[Combination]:
        return [adams(grid.nodes, n, self._past(grid, n)) for n in range(grid.steps)]

    def _past(self, grid: TimeGrid, n: int) -> list[float]:
        """C_j / alpha_s of the nodes before n, nearest first."""
        t, s = grid.nodes[n], grid.nodes[n + 1]
        places = [node.t for node in grid.nodes[max(n - self.k, 0) : n + 1]][::-1]
        if len(places) == 1:
            return []
        kappas = between(t.kappa, s.kappa)
        times = [grid.schedule.at_lam(-math.log(kappa)).t for kappa in kappas]
        return [(s.kappa - t.kappa) * mean for mean in mean_of_basis(places, times)]


def _info(k: int, order: int) -> SolverInfo:
    source = f"arXiv:2204.13902 eq. 15, r = {k}"
    return SolverInfo(name=f"deis-tab{k}", order=order, calls_per_step=1, source=source)


@register
@dataclass(frozen=True)
class DEISTab0(DEISTab):
    """The DDIM step."""

    info: ClassVar[SolverInfo] = _info(0, order=1)
    k: ClassVar[int] = 0


@register
@dataclass(frozen=True)
class DEISTab1(DEISTab):
    info: ClassVar[SolverInfo] = _info(1, order=2)
    k: ClassVar[int] = 1


@register
@dataclass(frozen=True)
class DEISTab2(DEISTab):
    info: ClassVar[SolverInfo] = _info(2, order=2)
    k: ClassVar[int] = 2


@register
@dataclass(frozen=True)
class DEISTab3(DEISTab):
    info: ClassVar[SolverInfo] = _info(3, order=2)
    k: ClassVar[int] = 3
