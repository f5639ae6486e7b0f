"""Adams-Bashforth methods: eps of the past nodes, integrated over kappa (iPNDM, LMS, tAB-DEIS).

A step from node n to s is x_s = alpha_s (x_n / alpha_n + sum_j b_j eps_{n-j}), where the b_j sum to
kappa_s - kappa_n. So it is the DDIM step and differences of eps,

    x_s = (sigma_s / sigma_n) x_n + (alpha_s - alpha_n sigma_s / sigma_n) x0_n
          + alpha_s sum_{j >= 1} b_j (eps_{n-j} - eps_n),

which is finite at both ends: the step from alpha = 0 has no past, and at sigma_s = 0 only
kappa_s = 0 enters.

iPNDM of orders 1 to 4 takes the classical Adams-Bashforth weights on eps, then a DDIM step,

    e = sum_{j < p} a_j eps_{t-j},   x_s = (alpha_s / alpha_t) (x_t - sigma_t e) + sigma_s e

with the weights a of even steps, whatever the steps are: that limits the order to 2, and at few
steps it damps the extrapolation. The first steps have order 1, 2, ...; the step to sigma = 0 has
the full order. With the weights of the true steps in kappa this is `ipndm-v`, or `lms`.

tAB-DEIS interpolates eps in the schedule's own t over the last K + 1 nodes,

    x_s = (alpha_s / alpha_t) x_t + sum_j C_j eps_{t-j},
    C_j = alpha_s int l_j(tau) dkappa(tau), from kappa_t to kappa_s,

with l_j the Lagrange polynomials in t, over fewer nodes in the first steps. The integral is taken
over kappa, of which t is a smooth function down to kappa = 0, where kappa itself goes as a root
of t. The step to sigma = 0 has the full order, and the node alpha = 0
stays in use, as t and eps are finite there. Where t is kappa, on EDM, `deis-tab3` is `lms`.
"""

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass

from ..models.schedule import Node, TimeGrid
from .base import SolverInfo, register
from .coordinates import Straight
from .interpolation import average_basis, place_points
from .linear import LinearSolver
from .table import Combination, add_terms


def combine_adams(nodes: Sequence[Node], n: int, past: Sequence[float]) -> Combination:
    """Returns the step of the module's docstring; past: b_1, b_2, ..."""
    t, s = nodes[n], nodes[n + 1]
    ratio = s.sigma / t.sigma
    combo: Combination = {("x", n): ratio, ("x0", n): s.alpha - t.alpha * ratio}
    for j, weight in enumerate(past, start=1):
        difference = {("eps", n - j): 1.0, ("eps", n): -1.0}
        combo = add_terms(combo, difference, s.alpha * weight)
    return combo


def integrate_basis(places: Sequence[float], end: float) -> list[float]:
    """Returns the integrals of l_j, j >= 1, from the first of the places to the end."""
    if len(places) < 2:
        return []
    means = average_basis(places, place_points(places[0], end))
    return [(end - places[0]) * mean for mean in means]


_PAST = {  # weights of eps_{t-1}, eps_{t-2}, ...; all weights of an order sum to 1
    1: (),
    2: (-1 / 2,),
    3: (-16 / 12, 5 / 12),
    4: (-59 / 24, 37 / 24, -9 / 24),
}


@dataclass(frozen=True)
class IPNDM(LinearSolver):
    """All four orders; no settings."""

    p: ClassVar[int]

    def combinations(self, grid: TimeGrid) -> list[Combination]:
        combos = []
        for n, (t, s) in enumerate(zip(grid.nodes, grid.nodes[1:], strict=False)):
            past = _PAST[min(self.p, n + 1)]
            combos.append(combine_adams(grid.nodes, n, [(s.kappa - t.kappa) * a for a in past]))
        return combos


def _describe_ipndm(p: int) -> SolverInfo:
    source = f"arXiv:2204.13902 (iPNDM), {p} terms; after arXiv:2202.09778"
    same_as = "ddim" if p == 1 else ""
    return SolverInfo(name=f"ipndm-{p}", order=min(p, 2), source=source, same_as=same_as)


@register
@dataclass(frozen=True)
class IPNDM1(IPNDM):
    """The DDIM step."""

    info: ClassVar[SolverInfo] = _describe_ipndm(1)
    p: ClassVar[int] = 1


@register
@dataclass(frozen=True)
class IPNDM2(IPNDM):
    info: ClassVar[SolverInfo] = _describe_ipndm(2)
    p: ClassVar[int] = 2


@register
@dataclass(frozen=True)
class IPNDM3(IPNDM):
    info: ClassVar[SolverInfo] = _describe_ipndm(3)
    p: ClassVar[int] = 3


@register
@dataclass(frozen=True)
class IPNDM4(IPNDM):
    info: ClassVar[SolverInfo] = _describe_ipndm(4)
    p: ClassVar[int] = 4


@dataclass(frozen=True)
class Slopes(LinearSolver):
    """A method on dy/dtau in the straight coordinate: a velocity from alpha = 0 on, else eps."""

    @abstractmethod
    def weigh_past(self, nodes: Sequence[Node], n: int) -> list[float]:
        """Returns what `combine_adams` takes as the weights of the slopes in step n."""

    def combinations(self, grid: TimeGrid) -> list[Combination]:
        flow = Straight.of(grid).flow
        nodes = tuple(map(_straighten, grid.nodes)) if flow else grid.nodes
        combos = [combine_adams(nodes, n, self.weigh_past(nodes, n)) for n in range(grid.steps)]
        return list(map(_name_velocity, combos)) if flow else combos


@register
@dataclass(frozen=True)
class LMS(Slopes):
    """Adams-Bashforth on dy/dtau = d = (y - x0) / tau.

    y_s = y_t + sum_{j < p} d_j int_{tau_t}^{tau_s} l_j(tau) dtau, with l_j the Lagrange polynomials
    on the last p nodes. y and tau are those of `heun`: y = x / alpha and d = eps, but on paths
    from alpha = 0 they are y = x / (alpha + sigma) and d = eps - x0. The step to sigma = 0 keeps
    its order.

    order: p; the first steps have order 1, 2, ...
    """

    info: ClassVar[SolverInfo] = SolverInfo(
        name="lms", order=2, source="arXiv:2204.13902 (rhoAB-DEIS)"
    )
    order: Annotated[int, Field(ge=1, le=4)] = 4

    def weigh_past(self, nodes: Sequence[Node], n: int) -> list[float]:
        taus = [node.kappa for node in nodes[max(n + 1 - self.order, 0) : n + 1]][::-1]
        return integrate_basis(taus, nodes[n + 1].kappa)


@register
@dataclass(frozen=True)
class IPNDMV(LMS):
    """`lms` by the name it has in diff-sampler: iPNDM with the weights of the true steps."""

    info: ClassVar[SolverInfo] = replace(LMS.info, name="ipndm-v", same_as="lms")


@register
@dataclass(frozen=True)
class GradientEstimation(Slopes):
    """Euler's step with the slope d_t + (gamma - 1) (d_t - d_{t-1}) for d_t (arXiv:2306.04848).

    tau and d are those of `lms`. The first step is Euler's, and so is that to sigma = 0.

    gamma: 2 is published; 1 is Euler, and 1.5 is `ipndm-2` up to its last step.
    """

    info: ClassVar[SolverInfo] = SolverInfo(
        name="gradient-estimation", order=1, source="arXiv:2306.04848 alg. 2"
    )
    gamma: Annotated[float, Field(ge=1.0, le=5.0)] = 2.0

    def weigh_past(self, nodes: Sequence[Node], n: int) -> list[float]:
        step = nodes[n + 1].kappa - nodes[n].kappa
        return [step * (1.0 - self.gamma)] if n and nodes[n + 1].sigma > 0.0 else []


def _straighten(node: Node) -> Node:
    """Returns the node with alpha + sigma for alpha: kappa is then tau and eps the velocity."""
    scale = node.alpha + node.sigma
    lam = math.inf if node.sigma == 0.0 else math.log(scale / node.sigma)
    return Node(node.t, scale, node.sigma, lam)


def _name_velocity(combo: Combination) -> Combination:
    """Returns the combination with the name that eps of `_straighten` nodes has on true ones."""
    return {("v" if kind == "eps" else kind, n): weight for (kind, n), weight in combo.items()}


@dataclass(frozen=True)
class DEISTab(LinearSolver):
    """All four; no settings."""

    k: ClassVar[int]

    def combinations(self, grid: TimeGrid) -> list[Combination]:
        return [combine_adams(grid.nodes, n, self._weigh_past(grid, n)) for n in range(grid.steps)]

    def _weigh_past(self, grid: TimeGrid, n: int) -> list[float]:
        """Returns C_j / alpha_s of the nodes before n, nearest first."""
        t, s = grid.nodes[n], grid.nodes[n + 1]
        places = [node.t for node in grid.nodes[max(n - self.k, 0) : n + 1]][::-1]
        if len(places) == 1:
            return []
        kappas = place_points(t.kappa, s.kappa)
        times = [grid.schedule.at_lam(-math.log(kappa)).t for kappa in kappas]
        return [(s.kappa - t.kappa) * mean for mean in average_basis(places, times)]


def _describe_deis_tab(k: int, order: int) -> SolverInfo:
    source = f"arXiv:2204.13902 eq. 15, r = {k}"
    same_as = "ddim" if k == 0 else ""
    return SolverInfo(name=f"deis-tab{k}", order=order, source=source, same_as=same_as)


@register
@dataclass(frozen=True)
class DEISTab0(DEISTab):
    """The DDIM step."""

    info: ClassVar[SolverInfo] = _describe_deis_tab(0, order=1)
    k: ClassVar[int] = 0


@register
@dataclass(frozen=True)
class DEISTab1(DEISTab):
    info: ClassVar[SolverInfo] = _describe_deis_tab(1, order=2)
    k: ClassVar[int] = 1


@register
@dataclass(frozen=True)
class DEISTab2(DEISTab):
    info: ClassVar[SolverInfo] = _describe_deis_tab(2, order=2)
    k: ClassVar[int] = 2


@register
@dataclass(frozen=True)
class DEISTab3(DEISTab):
    info: ClassVar[SolverInfo] = _describe_deis_tab(3, order=2)
    k: ClassVar[int] = 3
