"""Heun's method in the straight coordinate of the process, Euler on the step to sigma = 0."""

from collections.abc import Generator
from dataclasses import dataclass as plain
from typing import ClassVar

from pydantic.dataclasses import dataclass
from torch import Tensor

from ..models.schedule import Node, TimeGrid
from .base import Query, SolverInfo, register


@register
@dataclass(frozen=True)
class Heun:
    """The trapezoidal rule on dy/dtau = (y - x0) / tau.

    d  = (y_t - x0(y_t, t)) / tau_t,   y' = y_t + (tau_s - tau_t) d
    d' = (y' - x0(y', s)) / tau_s,     y_s = y_t + (tau_s - tau_t) (d + d') / 2

    y = x / alpha and tau = sigma / alpha on every process but rectified flow, where y = x / (alpha
    + sigma) and tau = sigma / (alpha + sigma), so that d is the network's own velocity. A run of N
    steps to sigma = 0 costs 2 N - 1 calls.
    """

    info: ClassVar[SolverInfo] = SolverInfo(
        name="heun", order=2, calls_per_step=2, source="arXiv:2206.00364 alg. 1"
    )

    def on(self, grid: TimeGrid) -> "HeunSteps":
        return HeunSteps(straight=grid.schedule.family == "flow")


@plain(frozen=True, slots=True)
class HeunSteps:
    """Heun's steps; straight: use the coordinates of rectified flow."""

    straight: bool

    def init(self) -> None:
        return None

    def step(
        self, x: Tensor, state: None, t: Node, s: Node
    ) -> Generator[Query, Tensor, tuple[Tensor, None]]:
        """The rule written as weights of x, x0 and x0', two and three tensor operations."""
        scale_t, scale_s = self._scale(t), self._scale(s)
        tau_t, tau_s = t.sigma / scale_t, s.sigma / scale_s
        x0 = yield x, t
        r = (tau_s - tau_t) / tau_t  # y' = (1 + r) y - r x0
        x_euler = (x * ((1 + r) * scale_s / scale_t)).add_(x0, alpha=-r * scale_s)
        if s.sigma == 0.0:
            return x_euler, None
        x0_s = yield x_euler, s
        q = (tau_s - tau_t) / tau_s  # y_s = y + r (y - x0) / 2 + q (y' - x0') / 2
        x_s = x * ((1 + (r + q * (1 + r)) / 2) * scale_s / scale_t)
        x_s.add_(x0, alpha=-r * (1 + q) / 2 * scale_s).add_(x0_s, alpha=-q / 2 * scale_s)
        return x_s, None

    def _scale(self, node: Node) -> float:
        return node.alpha + node.sigma if self.straight else node.alpha
