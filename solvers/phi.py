"""Functions and weights of exponential integrators, on Python floats (float64)."""

import math
from collections.abc import Sequence

import numpy as np


def phi(k: int, z: float) -> float:
    """phi_k(z) = (phi_{k-1}(z) - 1/(k-1)!) / z, phi_0 = exp; phi_k(0) = 1/k!, k >= 1.

    The recursion loses about k log10(1/|z|) digits, so near zero the series sum_j z^j/(j+k)! is
    used instead. z = -inf gives the limit 0.
    """
    if z == -math.inf:
        return 0.0
    if abs(z) < 1.0:
        return math.fsum(z**j / math.factorial(j + k) for j in range(20))
    value = math.expm1(z) / z
    for i in range(1, k):
        value = (value - 1.0 / math.factorial(i)) / z
    return value


def derivative_weights(offsets: Sequence[float], k: int) -> list[float]:
    """Weights a_j with sum_j a_j (m_j - m_0) = k-th derivative of m at 0, exact up to degree n.

    offsets: n >= k distinct non-zero places of the m_j relative to that of m_0.
    They solve sum_j a_j offsets_j^i / i! = 1 if i == k else 0, i = 1..n.
    """
    n = len(offsets)
    rows = [[d**i / math.factorial(i) for d in offsets] for i in range(1, n + 1)]
    target = [1.0 if i == k else 0.0 for i in range(1, n + 1)]
    weights: list[float] = np.linalg.solve(np.array(rows), np.array(target)).tolist()
    return weights
