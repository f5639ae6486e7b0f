"""Integrals of Lagrange polynomials over a step, by Gauss-Legendre in float64."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_PLACES, _SHARES = np.polynomial.legendre.leggauss(64)


def place_points(start: float, end: float) -> Floats:
    """Returns the 64 Gauss-Legendre points from start to end."""
    points: Floats = start + (end - start) * (_PLACES + 1.0) / 2.0
    return points


def average_basis(
    places: Sequence[float], at: Sequence[float] | Floats, density: Floats | float = 1.0
) -> list[float]:
    """Returns the means over a step of density * l_j, j = 1, 2, ...

    l_j is the Lagrange polynomial that is 1 at places[j] and 0 at the other places.

    at:      the coordinate of the places at the points that `place_points` gives.
    density: there, too.
    """
    coordinate, shares = np.asarray(at), _SHARES * density / 2.0
    return [float(shares @ _basis(places, j, coordinate)) for j in range(1, len(places))]


def _basis(places: Sequence[float], j: int, at: Floats) -> Floats:
    value = np.ones_like(at)
    for k, place in enumerate(places):
        if k != j:
            value = value * (at - place) / (places[j] - place)
    return value
