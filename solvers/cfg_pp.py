"""CFG++ samplers of ComfyUI: guided x0, and the noise of the unconditional branch.

They combine the branches of the network themselves, so they run without another guidance, on
networks that have an unconditional branch. With u and c the predictions of both branches,
g = u + w (c - u), eps_u = (x_t - alpha_t u) / sigma_t and the rest as `euler-ancestral` has it,

    euler-cfg-pp, euler-ancestral-cfg-pp:  x_s = alpha_s g + rho eps_u + sqrt(sigma_s^2 - rho^2) z.

dpmpp-2m-cfg-pp: with y = x / alpha, E = kappa_s / kappa_t and r = (lam_t - lam_{t-1}) / h,

    y_s = g + E (y_t - u) + (1 - E) / (2 r) (g - u_{t-1}).

The scale w is that of classifier-free guidance, but the noise does not follow it, so 1 to 2 are
usual; it is lambda of arXiv:2406.08070, of which `cfg-pp` is the guidance for `ddim` and `euler`.
"""

import math
from collections.abc import Sequence
from dataclasses import field, replace
from itertools import pairwise
from typing import ClassVar

from pydantic.dataclasses import dataclass

from ..models.schedule import Node, TimeGrid
from .ancestral import Ancestral, choose_line, find_lower
from .base import SolverInfo, register
from .distilled import keep_noise
from .linear import LinearSolver
from .stochastic import Scale
from .table import BOTH, Combination, Evaluation, Table, add_terms


@dataclass(frozen=True)
class CFGPPSampler(LinearSolver):
    """A base of them.

    scale: w; 1 leaves the conditional prediction, and the noise of the other branch.
    """

    scale: Scale = field(default=1.0, kw_only=True)

    def table(self, grid: TimeGrid) -> Table:
        asked = [Evaluation(node, BOTH) for node in grid.nodes[:-1]]
        return replace(super().table(grid), evaluations=asked)

    def guide(self, n: int, weight: float) -> Combination:
        """Returns weight times g of step n."""
        return {("u0", n): weight * (1.0 - self.scale), ("x0", n): weight * self.scale}


def _describe(name: str, order: int = 1, stochastic: bool = False) -> SolverInfo:
    source = f"arXiv:2406.08070, as ComfyUI's {name.replace('-', '_')}"
    return SolverInfo(name=name, order=order, source=source, stochastic=stochastic, guided=True)


@register
@dataclass(frozen=True)
class EulerAncestralCFGPP(Ancestral, CFGPPSampler):
    """Order 1, with noise."""

    info: ClassVar[SolverInfo] = _describe("euler-ancestral-cfg-pp", stochastic=True)

    def combinations(self, grid: TimeGrid) -> list[Combination]:
        line, combos = choose_line(grid, self.form), list[Combination]()
        for n, (t, s) in enumerate(pairwise(grid.nodes)):
            rho = s.alpha * find_lower(t, s, self.eta, line)
            x, rest, z = keep_noise(t, s, rho)
            combo: Combination = {("x", n): x, ("z", n): self.s_noise * z}
            combos.append(combo | add_terms(self.guide(n, s.alpha), {("u0", n): rest - s.alpha}))
        return combos


@register
@dataclass(frozen=True)
class EulerCFGPP(CFGPPSampler):
    """Order 1, without noise."""

    info: ClassVar[SolverInfo] = _describe("euler-cfg-pp")

    def combinations(self, grid: TimeGrid) -> list[Combination]:
        return EulerAncestralCFGPP(eta=0.0, scale=self.scale).combinations(grid)


@register
@dataclass(frozen=True)
class DPMpp2MCFGPP(CFGPPSampler):
    """Two terms, of order 2 only where both branches agree."""

    info: ClassVar[SolverInfo] = _describe("dpmpp-2m-cfg-pp", order=2)

    def combinations(self, grid: TimeGrid) -> list[Combination]:
        return [self._combine(grid.nodes, n) for n in range(grid.steps)]

    def _combine(self, nodes: Sequence[Node], n: int) -> Combination:
        t, s = nodes[n], nodes[n + 1]
        ratio = s.sigma / t.sigma
        combo = add_terms(self.guide(n, s.alpha), {("u0", n): -t.alpha * ratio})
        combo[("x", n)] = ratio
        if n and s.sigma > 0.0 and nodes[n - 1].alpha > 0.0:
            h, before = s.lam - t.lam, t.lam - nodes[n - 1].lam
            weight = -0.5 * s.alpha * math.expm1(-h) * h / before
            difference = add_terms(self.guide(n, 1.0), {("u0", n - 1): -1.0})
            combo = add_terms(combo, difference, weight)
        return combo
