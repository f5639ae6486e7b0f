"""Exponential steps whose predictions are interpolated in a coordinate that is finite at alpha = 0.

With rho = alpha / sigma and m the x0 prediction, a step from node t to s is, along any path,

    x_s = (sigma_s / sigma_t) x_t + sigma_s int m drho,            from rho_t to rho_s.

A multistep method puts a polynomial through the last predictions for m. In lam = log(rho) that is
DPM-Solver++ and UniPC, but lam is -inf where a run starts at alpha = 0, as on rectified flow, so
the polynomial cannot use that node and the first two steps have order 1. In t, or in
log((alpha + K) / sigma), it can, and every weight is a plain number:

    w_j = sigma_s int l_j(c) drho,

with l_j the Lagrange polynomials on the places c_j of the nodes. With the noise of an SDE,
d(rho e^H) e^{-H_s} stands for drho (`noise_rate`), and with eps for x0 the measure is d(1 / rho).
The integrals are taken over log(rho + K), or log(rho + 1) for t, where c and rho are smooth, by
Gauss-Legendre in float64.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator

from ..models.schedule import Node, NoiseSchedule, TimeGrid, VPDiscrete
from .noise_rate import NoiseRate
from .table import Combination, add_terms

Floats = NDArray[np.float64]

_PLACES, _SHARES = np.polynomial.legendre.leggauss(64)  # of Gauss-Legendre, over [-1, 1]
LAM = "lam"
AUTO = "auto"
FINITE = "t"  # what stands for lam under "auto" in the steps that use a node at alpha = 0


@dataclass(frozen=True)
class FiniteCoordinate:
    """A coordinate c of nodes.

    k: of log((alpha + k) / sigma); None is the time t of the process.
    """

    k: float | None

    @classmethod
    def of(cls, text: str) -> "FiniteCoordinate":
        """Reads t or lam+K; raises ValueError for anything else."""
        if text == "t":
            return cls(None)
        head, plus_sign, number = text.partition("+")
        try:
            k = float(number) if (head, plus_sign) == (LAM, "+") else 0.0
        except ValueError:
            k = 0.0
        if not 0.0 < k < math.inf:
            raise ValueError(f"{text!r} is no coordinate; take lam, t, or lam+K as in lam+.001")
        return cls(k)

    def at(self, node: Node) -> float:
        """Returns c at a node."""
        return node.t if self.k is None else math.log((node.alpha + self.k) / node.sigma)

    @property
    def offset(self) -> float:
        """The number added to rho so that c is a smooth function of its logarithm."""
        return 1.0 if self.k is None else self.k


def _check(text: str) -> str:
    if text != LAM:
        FiniteCoordinate.of(text)
    return text


def _check_setting(text: str) -> str:
    return text if text == AUTO else _check(text)


Coordinate = Annotated[str, AfterValidator(_check)]
CoordinateSetting = Annotated[str, AfterValidator(_check_setting)]


def choose_coordinate(setting: str, first: Node, oldest: int) -> str:
    """Returns the coordinate of a step that uses predictions from node number `oldest` on."""
    if setting != AUTO:
        return setting
    return FINITE if oldest <= 0 and first.alpha == 0.0 else LAM


def interpolate(
    grid: TimeGrid,
    n: int,
    used: Sequence[int],
    place: FiniteCoordinate,
    rate: NoiseRate,
    noise: bool,
) -> Combination:
    """Returns the step from node n to the next by the predictions of n and of the nodes `used`.

    rate:  the noise that the step makes room for.
    noise: whether eps is interpolated; then there is none and alpha > 0 at node n.
    """
    t, s = grid.nodes[n], grid.nodes[n + 1]
    low, high = t.alpha / t.sigma, s.alpha / s.sigma
    span = math.log((high + place.offset) / (low + place.offset))
    rhos = low + (low + place.offset) * np.expm1(place_points(0.0, span))
    schedule = _without_rounding(grid.schedule)
    between = [schedule.at_lam(math.log(rho)) for rho in rhos]
    at = [place.at(node) for node in between]
    measure = -(rhos**-2.0) if noise else np.array([_weigh(rate, node, s) for node in between])
    places = [place.at(grid.nodes[j]) for j in (n, *used)]
    means = average_basis(places, at, span * measure * (rhos + place.offset))
    kind, scale = ("eps", s.alpha) if noise else ("x0", s.sigma)
    ratio = s.sigma / t.sigma * math.exp(-rate.rise(t, s))
    combo: Combination = {("x", n): ratio, ("x0", n): s.alpha - t.alpha * ratio}
    for j, mean in zip(used, means, strict=True):
        combo = add_terms(combo, {(kind, j): 1.0, (kind, n): -1.0}, scale * mean)
    return combo


def _weigh(rate: NoiseRate, node: Node, s: Node) -> float:
    """Returns the density over rho of a prediction at a node in the state at s."""
    return (1.0 + rate.find_eta(node)) * math.exp(-rate.rise(node, s))


def _without_rounding(schedule: NoiseSchedule) -> NoiseSchedule:
    """Returns the schedule with the times between those that its network takes."""
    if isinstance(schedule, VPDiscrete) and schedule.whole_times:
        return replace(schedule, whole_times=False)
    return schedule


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
