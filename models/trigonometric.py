"""The trigonometric path between data and noise: alpha^2 + sigma^2 = 1 at an even angular speed."""

import math
from dataclasses import dataclass
from typing import ClassVar

from .node import Node, check_range, scale_time

QUARTER = math.pi / 2


@dataclass(frozen=True)
class Trigonometric:
    """alpha = cos(pi t / 2), sigma = sin(pi t / 2), t in [0, 1] (arXiv:2303.08797, "GVP" of SiT).

    lam = ln cot(pi t / 2); both ends are exact, and t = 1 is pure noise. The label is
    t * time_scale; None is not stated, which is enough for a grid.
    """

    family: ClassVar[str] = "trigonometric"
    t_min: float = 1e-3
    time_scale: float | None = None

    t_max: ClassVar[float] = 1.0
    t_zero: ClassVar[float] = 0.0

    def at(self, t: float) -> Node:
        check_range(0.0 <= t <= 1.0, t, self)
        if t in (0.0, 1.0):
            return Node(t, 1.0 - t, t, -math.inf if t else math.inf)
        alpha, sigma = math.sin(QUARTER * (1.0 - t)), math.sin(QUARTER * t)
        return Node(t, alpha, sigma, math.log(alpha) - math.log(sigma))

    def at_lam(self, lam: float) -> Node:
        """Returns the node at t = (2 / pi) atan(e^{-lam}), taken from the nearer end."""
        small = math.atan(math.exp(-abs(lam))) / QUARTER
        return self.at(small if lam >= 0.0 else 1.0 - small)

    def slope(self, t: float) -> tuple[float, float]:
        node = self.at(t)
        return -QUARTER * node.sigma, QUARTER * node.alpha

    def label(self, node: Node) -> float:
        return scale_time(self, self.time_scale, node.t)

    def noise_scale(self, node: Node) -> float:
        return 1.0
