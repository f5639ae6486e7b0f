"""How much noise an SDE adds, and where, without changing what it samples.

With u rising from noise to data, v = dx/du the velocity of the flow and s the score, every SDE

    dx = (v + eps s) du + sqrt(2 eps) dW,   eps(u) >= 0,

has the marginals of the flow (arXiv:2303.08797). With

    eta = eps / (sigma^2 dlam/du),   H = int eta dlam = int eps / sigma^2 du,

its exponential step is that of the ODE over lam + H in place of lam, plus
sigma_s sqrt(1 - e^{-2 (H_s - H_t)}) z. Constant eta is the reverse SDE of diffusion, times eta.

On the straight and the trigonometric path, t in [0, 1] from data to noise, SiT (arXiv:2401.08740)
names, with a norm n,

    sbdm:       eps = n sigma^2 dlam/du, which is constant eta = n, on every path
    sigma:      eps = n sigma
    linear:     eps = n t
    constant:   eps = n
    decreasing: eps = (1 - n cos(pi t))^2 / 4
    increasing-decreasing: eps = n sin^2(pi t)
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..models.errors import ScheduleError
from ..models.schedule import Node, NoiseSchedule, RectifiedFlow, TimeGrid

Floats = NDArray[np.float64]
Form = Literal["sbdm", "sigma", "linear", "constant", "decreasing", "increasing-decreasing"]
SBDM: Form = "sbdm"
FAMILIES = ("flow", "trigonometric")

_PLACES, _SHARES = np.polynomial.legendre.leggauss(64)  # of Gauss-Legendre, over [-1, 1]
_RATES: dict[str, Callable[[float, Floats, Floats], Floats]] = {  # (n, t, sigma) -> eps
    "sigma": lambda n, t, sigma: n * sigma,
    "linear": lambda n, t, sigma: n * t,
    "constant": lambda n, t, sigma: n * np.ones_like(t),
    "decreasing": lambda n, t, sigma: 0.25 * (1.0 - n * np.cos(np.pi * t)) ** 2,
    "increasing-decreasing": lambda n, t, sigma: n * np.sin(np.pi * t) ** 2,
}


class NoiseRate(ABC):
    """The noise of an SDE, as eta and H of the module."""

    @abstractmethod
    def find_eta(self, node: Node) -> float:
        """Returns eta at a node."""

    @abstractmethod
    def grow(self, node: Node) -> float:
        """Returns H at a node, from a place that is the same on every grid."""

    def rise(self, t: Node, s: Node) -> float:
        """Returns H_s - H_t."""
        return self.grow(s) - self.grow(t)

    def find_clock(self, node: Node) -> float:
        """Returns ln C with C = e^{2 H}: the noise of a step is sigma_s e^{-H_s} dW(C)."""
        return 2.0 * self.grow(node)


@dataclass(frozen=True)
class ConstantRate(NoiseRate):
    """The same eta everywhere; 0 is the ODE."""

    eta: float = 0.0

    def find_eta(self, node: Node) -> float:
        return self.eta

    def grow(self, node: Node) -> float:
        return self.eta * node.lam if self.eta else 0.0

    def rise(self, t: Node, s: Node) -> float:
        return self.eta * (s.lam - t.lam) if self.eta else 0.0


ODE = ConstantRate()


@dataclass(frozen=True)
class FormRate(NoiseRate):
    """A form of SiT times eta; H is counted from t = 1, where that of sbdm is infinite.

    schedule: a straight or trigonometric path; t is its time before any shift.
    """

    form: Form
    norm: float
    eta: float
    schedule: NoiseSchedule

    def find_eps(self, node: Node) -> float:
        """Returns eps at a node; that of sbdm is infinite at alpha = 0."""
        if self.form == SBDM:
            turn = self._find_turn(node) * node.sigma
            return self.eta * self.norm * turn / node.alpha if node.alpha else math.inf
        t, sigma = np.array(self.find_time(node)), np.array(node.sigma)
        return self.eta * float(_RATES[self.form](self.norm, t, sigma))

    def find_time(self, node: Node) -> float:
        """Returns t, which on a straight path is sigma."""
        return node.sigma if isinstance(self.schedule, RectifiedFlow) else node.t

    def find_slope(self, node: Node) -> tuple[float, float]:
        """Returns the derivatives of alpha and sigma in t."""
        straight = isinstance(self.schedule, RectifiedFlow)
        return (-1.0, 1.0) if straight else self.schedule.slope(node.t)

    def find_eta(self, node: Node) -> float:
        return self.find_eps(node) * node.alpha / (node.sigma * self._find_turn(node))

    def _find_turn(self, node: Node) -> float:
        """Returns alpha sigma dlam/du."""
        d_alpha, d_sigma = self.find_slope(node)
        return d_sigma * node.alpha - d_alpha * node.sigma

    def grow(self, node: Node) -> float:
        """Returns int_t^1 eps / sigma^2 dt, by Gauss-Legendre in ln t; infinite at t = 0."""
        end = self.find_time(node)
        if end == 0.0:
            return math.inf
        half = -0.5 * math.log(end)
        t = np.exp(half * (_PLACES - 1.0))
        straight = isinstance(self.schedule, RectifiedFlow)
        sigma = t if straight else np.sin(0.5 * np.pi * t)
        density = _RATES[self.form](self.norm, t, sigma) * t / sigma**2
        return self.eta * half * float(_SHARES @ density)

    def find_clock(self, node: Node) -> float:
        """Returns ln (e^{2 H} - 1), which tells apart places near t = 1 too."""
        double = 2.0 * self.grow(node)
        if double == 0.0:
            return -math.inf
        return double + math.log(-math.expm1(-double))


def make_rate(grid: TimeGrid, form: Form, norm: float, eta: float = 1.0) -> NoiseRate:
    """Returns eta times the noise of a form on a grid.

    Raises:
        ScheduleError: for a form that the path does not have, or that adds noise up to sigma = 0.
    """
    if form == SBDM:
        return ConstantRate(eta * norm)
    if grid.schedule.family not in FAMILIES:
        raise ScheduleError(
            f"form={form} is of {' and '.join(FAMILIES)} schedules, not of"
            f" {grid.schedule.family}; take form=sbdm"
        )
    rate = FormRate(form, norm, eta, grid.schedule)
    if grid.nodes[-1].sigma == 0.0 and not grid.denoise and rate.find_eps(grid.nodes[-1]) > 0.0:
        raise ScheduleError(
            f"form={form} adds noise without end where sigma is 0; end above it with"
            " final=denoise or final=sigma_min, or take another form"
        )
    return rate
