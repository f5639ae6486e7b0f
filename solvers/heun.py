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
        scale_t, scale_s = self._scale(t), self._scale(s)
        tau_t, tau_s = t.sigma / scale_t, s.sigma / scale_s
        y = x / scale_t
        slope = (y - (yield x, t)) / tau_t
        x_euler = (y + (tau_s - tau_t) * slope) * scale_s
        if s.sigma == 0.0:
            return x_euler, None
        slope_s = (x_euler / scale_s - (yield x_euler, s)) / tau_s
        return (y + (tau_s - tau_t) * (slope + slope_s) / 2) * scale_s, None

    def _scale(self, node: Node) -> float:
        return node.alpha + node.sigma if self.straight else node.alpha
