"""CAB: Adams-Bashforth steps in kappa with a multiple of the second difference added.

With y = x / alpha, h = kappa_s - kappa_t, r = h / h_1 and r' = h_1 / h_2, where h_1 and h_2 are the
steps before,

    y_s = y_t + h [(1 + r / 2) e0 - (r / 2) e1] + theta h [e0 - (1 + r') e1 + r' e2]

is order 2 of the method; order 3 has the Adams-Bashforth step of three terms in place of the first
bracket. The second bracket is a second difference of eps. So order 3 is of order 2 unless theta is
0, and order 2 of order 3 on even steps at theta = 5/12, where it is Adams-Bashforth of three terms.

The first step is DDIM's, the second Adams-Bashforth's of two terms. A node at alpha = 0, where
kappa is infinite, has no weight in the first bracket, and in the second its limit.
"""

from collections.abc import Sequence
from typing import Annotated, ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass

from ..models.schedule import Node, TimeGrid
from .adams import combine_adams, integrate_basis
from .base import SolverInfo, register
from .linear import LinearSolver
from .table import Combination


@register
@dataclass(frozen=True)
class CAB(LinearSolver):
    """Adams-Bashforth with a correction, one call a step.

    order: terms of the Adams-Bashforth step, 2 or 3.
    theta: weight of the second difference; published are .2, the default (Qwen-Image), and .9 (EDM
           and DiT), which overshoots on Gaussian data.
    """

    info: ClassVar[SolverInfo] = SolverInfo(name="cab", order=2, source="arXiv:2605.16736")
    order: Annotated[int, Field(ge=2, le=3)] = 2
    theta: Annotated[float, Field(ge=0.0, le=1.0)] = 0.2

    def combinations(self, grid: TimeGrid) -> list[Combination]:
        return [
            combine_adams(grid.nodes, n, self._weigh_past(grid.nodes, n)) for n in range(grid.steps)
        ]

    def _weigh_past(self, nodes: Sequence[Node], n: int) -> list[float]:
        """Returns what `combine_adams` takes as the weights of eps in step n."""
        used = nodes[max(n + 1 - self.order, 0) : n + 1][::-1]
        places = [node.kappa for node in used if node.alpha > 0.0]
        weights = integrate_basis(places, nodes[n + 1].kappa)
        if n < 2:
            return weights
        h = nodes[n + 1].kappa - nodes[n].kappa
        ratio = (nodes[n].kappa - nodes[n - 1].kappa) / (nodes[n - 1].kappa - nodes[n - 2].kappa)
        first, second = [*weights, 0.0, 0.0][:2]
        shift = self.theta * h
        return [first - shift * (1.0 + ratio), second + shift * ratio]
