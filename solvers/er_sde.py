"""ER-SDE-Solver of stages 1, 2 and 3: an SDE whose noise is chosen through a function phi.

With kappa = sigma / alpha, y = x / alpha and r = phi(kappa_s) / phi(kappa_t),

    y_s = r y_t + (1 - r) x0 + sum_{k = 1, 2} w_k x0^{(k)} + sqrt(kappa_s^2 - kappa_t^2 r^2) z
    w_k = (kappa_s - kappa_t)^k / k!
          + phi(kappa_s) int_{kappa_s}^{kappa_t} (kappa - kappa_t)^{k-1} / ((k-1)! phi) dkappa,

the exact solution if x0 is a polynomial in kappa (arXiv:2309.06169). phi = kappa is the ODE and
phi = kappa^2 the SDE of `sde-dpmpp`; the paper's choice is phi = kappa (e^{kappa^0.3} + 10).
"""

import math
from collections.abc import Callable, Sequence
from itertools import islice
from typing import ClassVar, Literal

import numpy as np
from pydantic.dataclasses import dataclass

from ..models.schedule import Node, TimeGrid
from .base import Clock, SolverInfo, register
from .exponential import find_derivative_weights
from .linear import LinearSolver, LowerOrderFinal, plan_orders
from .table import Combination

LogPhi = Callable[[float], float]  # lam -> log(phi(kappa)), kappa = e^{-lam}
_PLACES, _WEIGHTS = (part.tolist() for part in np.polynomial.legendre.leggauss(32))


def log_phi(lam: float) -> float:
    """Returns log(kappa (e^{kappa^0.3} + 10))."""
    return -lam + float(np.logaddexp(math.exp(-0.3 * lam), math.log(10.0)))


def find_er_clock(node: Node) -> float:
    """Returns ln C with C = (kappa / phi)^2: the noise of a step is alpha_s phi(kappa_s) dW(C)."""
    return -2.0 * float(np.logaddexp(math.exp(-0.3 * node.lam), math.log(10.0)))


def combine_er_step(
    nodes: Sequence[Node], n: int, order: int, published: bool, phi: LogPhi = log_phi
) -> Combination:
    """Returns the module's update from node n to the next, by the last `order` predictions."""
    t, s = nodes[n], nodes[n + 1]
    if s.sigma == 0.0:
        return {("x0", n): s.alpha}
    if t.alpha == 0.0:  # r = 0
        return {("x0", n): s.alpha, ("z", n): s.sigma}
    r = math.exp(phi(s.lam) - phi(t.lam))
    noise = s.kappa * math.sqrt(max(0.0, 1.0 - (r * t.kappa / s.kappa) ** 2))
    combo = {("x", n): s.alpha * r / t.alpha, ("x0", n): s.alpha * (1.0 - r)}
    combo[("z", n)] = s.alpha * noise
    finite = (j for j in range(n - 1, -1, -1) if nodes[j].alpha > 0.0)
    past = list(islice(finite, order - 1))
    for k in range(1, len(past) + 1):
        weight = s.alpha * _compute_weight(t, s, k, phi)
        for j, part in _weigh_derivative(nodes, n, past, k, published).items():
            combo[("x0", j)] = combo.get(("x0", j), 0.0) + weight * part
    return combo


def _compute_weight(t: Node, s: Node, k: int, phi: LogPhi) -> float:
    """Returns w_k, its integral taken in lam, where phi is smooth."""
    half, middle = 0.5 * (s.lam - t.lam), 0.5 * (s.lam + t.lam)
    total = 0.0
    for place, weight in zip(_PLACES, _WEIGHTS, strict=True):
        lam = middle + half * place
        kappa = math.exp(-lam)
        power = (kappa - t.kappa) ** (k - 1) / math.factorial(k - 1)
        total += weight * half * power * kappa * math.exp(phi(s.lam) - phi(lam))
    return (s.kappa - t.kappa) ** k / math.factorial(k) + total


def _weigh_derivative(
    nodes: Sequence[Node], n: int, past: Sequence[int], k: int, published: bool
) -> dict[int, float]:
    """Returns the k-th derivative of x0 in kappa at node n, as weights of predictions."""
    used = past[:1] if published and k == 1 else past
    weights = find_derivative_weights([nodes[j].kappa - nodes[n].kappa for j in used], k)
    return {n: -math.fsum(weights), **dict(zip(used, weights, strict=True))}


@dataclass(frozen=True)
class ERSDE(LinearSolver):
    """The settings of the three stages."""

    p: ClassVar[int]

    @property
    def published(self) -> bool:
        return True

    def combinations(self, grid: TimeGrid) -> list[Combination]:
        chosen = plan_orders(grid, self.p, LowerOrderFinal.NEVER)
        return [combine_er_step(grid.nodes, n, p, self.published) for n, p in enumerate(chosen)]

    def make_clock(self, grid: TimeGrid) -> Clock:
        return find_er_clock


def _describe(p: int, order: int) -> SolverInfo:
    source = f"arXiv:2309.06169, VE form, stage {p}; phi of app. A.8"
    return SolverInfo(name=f"er-sde-{p}", order=order, source=source, stochastic=True)


@register
@dataclass(frozen=True)
class ERSDE1(ERSDE):
    info: ClassVar[SolverInfo] = _describe(1, order=1)
    p: ClassVar[int] = 1


@register
@dataclass(frozen=True)
class ERSDE2(ERSDE):
    info: ClassVar[SolverInfo] = _describe(2, order=2)
    p: ClassVar[int] = 2


@register
@dataclass(frozen=True)
class ERSDE3(ERSDE):
    """Stage 3.

    third_order: "published" takes the first derivative from two predictions only, as the paper
                 does; "exact" from three.
    """

    info: ClassVar[SolverInfo] = _describe(3, order=2)
    p: ClassVar[int] = 3
    third_order: Literal["published", "exact"] = "published"

    @property
    def published(self) -> bool:
        return self.third_order == "published"
