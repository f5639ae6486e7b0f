"""STORK: a stabilised Runge-Kutta method whose stages are extrapolated, as a multistep method.

Its s stages ask for slopes at times between the nodes, and get them from the last three. None of
them depends on the states of other stages, so a step is a combination of what is known at its
start. With tau and d of `lms`, D = tau_t - tau_s and derivatives d', d'' in tau,

    y_s = y_t - D d + a2 D^2 d' - a3 D^3 d''.

a2 and a3 come out of the recursion of second-order Runge-Kutta-Gegenbauer methods (RKG2), read at
the times of the stages of Runge-Kutta-Legendre methods (RKL2), as released:

    s = 10    a2 = 0.46537   a3 = 0.10891
    s = 50    a2 = 0.48962   a3 = 0.12147
    s = 200   a2 = 0.49711   a3 = 0.12408

In a Taylor step they are 1/2 and 1/6. So the order is 1 in the limit, and what is called stability
is the weaker weight of the derivatives. The first step is Euler's, the second has d' alone.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field
from pydantic.dataclasses import dataclass

from ..models.schedule import Node
from .adams import Slopes
from .base import SolverInfo, register


@register
@dataclass(frozen=True)
class STORK(Slopes):
    """STORK-2 with derivatives of two orders: one call a step.

    stages:  s, which costs nothing; a2 and a3 tend to 1/2 and 1/8 as it grows.
    spacing: "published" takes d' by the weights of even steps, whatever the steps are; "exact" by
             those of the true ones.
    """

    info: ClassVar[SolverInfo] = SolverInfo(
        name="stork", order=1, source="arXiv:2505.24210, STORK-2 as released"
    )
    stages: Annotated[int, Field(ge=2, le=1000)] = 50
    spacing: Literal["published", "exact"] = "published"

    def weigh_past(self, nodes: Sequence[Node], n: int) -> list[float]:
        h = [nodes[j - 1].kappa - nodes[j].kappa for j in range(n, max(n - 2, 0), -1)]
        step = nodes[n].kappa - nodes[n + 1].kappa
        a2, a3 = compute_weights(self.stages)
        if len(h) < 2:
            return [a2 * step**2 / each for each in h]
        first = [2.0 / h[0], -0.5 / h[0]]
        if self.spacing == "exact":
            first = [1.0 / h[0] + 1.0 / h[1], -h[0] / (h[1] * (h[0] + h[1]))]
        second = [-2.0 / (h[0] * h[1]), 2.0 / (h[1] * (h[0] + h[1]))]
        return [step**2 * (a2 * p - a3 * step * q) for p, q in zip(first, second, strict=True)]


@lru_cache
def compute_weights(stages: int) -> tuple[float, float]:
    """Returns a2 and a3, by the recursion over the moments of its stages."""
    scale, legendre = 6.0 / ((stages + 4) * (stages - 1)), stages**2 + stages - 2
    before, last = np.zeros(2), np.zeros(2)
    for j in range(2, stages + 1):
        share = _gegenbauer(j) / j
        mu, nu = (2 * j + 1) * share / _gegenbauer(j - 1), -(j + 1) * share / _gegenbauer(j - 2)
        time = (4.0 / 3.0 if j == 2 else j**2 - j - 2) / legendre
        slope = mu * scale * np.array([time, 0.5 * time**2])
        before, last = last, mu * last + nu * before + slope
    return float(last[0]), float(last[1])


def _gegenbauer(j: int) -> float:
    """Returns b_j of RKG2."""
    if j < 2:
        return 1.0 if j == 0 else 1.0 / 3.0
    return 4.0 * (j - 1) * (j + 4) / (3.0 * j * (j + 1) * (j + 2) * (j + 3))
