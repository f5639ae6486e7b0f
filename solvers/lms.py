"""Linear multistep of orders 1 to 4 in the straight coordinate of the process."""

import math
from typing import Annotated, ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass

from ..models.schedule import Node, TimeGrid
from .adams import adams, between, mean_of_basis
from .base import SolverInfo, register
from .multistep import LinearSolver
from .table import Combination


@register
@dataclass(frozen=True)
class LMS(LinearSolver):
    """Adams-Bashforth on dy/dtau = d = (y - x0) / tau.

    y_s = y_t + sum_{j < p} d_j int_{tau_t}^{tau_s} l_j(tau) dtau, with l_j the Lagrange polynomials
    on the last p nodes. y and tau are those of `heun`: y = x / alpha and d = eps, but on rectified
    flow y = x / (alpha + sigma) and d the velocity. The step to sigma = 0 keeps its order.

    order: p; the first steps have order 1, 2, ...
    """

    info: ClassVar[SolverInfo] = SolverInfo(
        name="lms", order=2, calls_per_step=1, source="arXiv:2204.13902 (rhoAB-DEIS)"
    )
    order: Annotated[int, Field(ge=1, le=4)] = 4

    def combinations(self, grid: TimeGrid) -> list[Combination]:
        flow = grid.schedule.family == "flow"
        nodes = tuple(map(_straight, grid.nodes)) if flow else grid.nodes
        combos = []
        for n in range(grid.steps):
            taus = [node.kappa for node in nodes[max(n + 1 - self.order, 0) : n + 1]][::-1]
            end = nodes[n + 1].kappa
            means = mean_of_basis(taus, between(taus[0], end)) if n else []
            combos.append(adams(nodes, n, [(end - taus[0]) * mean for mean in means]))
        return list(map(_with_velocity, combos)) if flow else combos


@register
@dataclass(frozen=True)
class IPNDMV(LMS):
    """`lms` by the name it has in diff-sampler: iPNDM with the weights of the true steps."""

    info: ClassVar[SolverInfo] = SolverInfo(
        name="ipndm-v", order=2, calls_per_step=1, source="arXiv:2204.13902 (rhoAB-DEIS)"
    )


def _straight(node: Node) -> Node:
    """The node with alpha + sigma for alpha, so that kappa is tau and eps is the velocity."""
    scale = node.alpha + node.sigma
    lam = math.inf if node.sigma == 0.0 else math.log(scale / node.sigma)
    return Node(node.t, scale, node.sigma, lam)


def _with_velocity(combo: Combination) -> Combination:
    """The combination with the name that eps of `_straight` nodes has on true ones."""
    return {("v" if kind == "eps" else kind, n): weight for (kind, n), weight in combo.items()}
