"""What the Adams-Bashforth methods share: eps of the past nodes, integrated over kappa.

A step from node n to s is x_s = alpha_s (x_n / alpha_n + sum_j b_j eps_{n-j}), where the b_j sum to
kappa_s - kappa_n. So it is the DDIM step and differences of eps,

    x_s = (sigma_s / sigma_n) x_n + (alpha_s - alpha_n sigma_s / sigma_n) x0_n
          + alpha_s sum_{j >= 1} b_j (eps_{n-j} - eps_n),

which is finite at both ends: the step from alpha = 0 has no past, and at sigma_s = 0 only
kappa_s = 0 enters.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..models.schedule import Node
from .table import Combination, plus

_PLACES, _SHARES = np.polynomial.legendre.leggauss(32)


def adams(nodes: Sequence[Node], n: int, past: Sequence[float]) -> Combination:
    """The step of the module's docstring; past: b_1, b_2, ..."""
    t, s = nodes[n], nodes[n + 1]
    ratio = s.sigma / t.sigma
    combo: Combination = {("x", n): ratio, ("x0", n): s.alpha - t.alpha * ratio}
    for j, weight in enumerate(past, start=1):
        difference = {("eps", n - j): 1.0, ("eps", n): -1.0}
        combo = plus(combo, difference, s.alpha * weight)
    return combo


def between(start: float, end: float) -> list[float]:
    """The 32 Gauss-Legendre points from start to end."""
    points: list[float] = (start + (end - start) * (_PLACES + 1.0) / 2.0).tolist()
    return points


def mean_of_basis(places: Sequence[float], points: Sequence[float]) -> list[float]:
    """The means over a step of the Lagrange polynomials l_1, l_2, ... on places p_0, p_1, ...

    points: where the coordinate of the places is at the points that `between` gives.
    """
    at = np.array(points)
    return [float(_SHARES @ _basis(places, j, at)) / 2.0 for j in range(1, len(places))]


def _basis(places: Sequence[float], j: int, at: NDArray[np.float64]) -> NDArray[np.float64]:
    """l_j: 1 at p_j and 0 at the other places."""
    value = np.ones_like(at)
    for k, place in enumerate(places):
        if k != j:
            value = value * (at - place) / (places[j] - place)
    return value
