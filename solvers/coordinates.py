"""The straight coordinate of a process.

With y = x / scale and tau = sigma / scale the probability-flow ODE is

    dy/dtau = (y - x0) / tau,

a straight line wherever x0 does not change. On paths that begin at alpha = 0 scale = alpha + sigma,
so that both ends are finite; on rectified flow the slope is then the network's own velocity. On
every other process scale = alpha, so that tau = kappa and the slope is eps.
"""

import math
from collections.abc import Generator
from dataclasses import dataclass

from torch import Tensor

from ..models.errors import ScheduleError
from ..models.prediction import Linear, combine
from ..models.schedule import Node, NoiseSchedule, TimeGrid
from .base import Query

Stages = Generator[Query, Tensor, Tensor]


@dataclass(frozen=True, slots=True)
class Straight:
    """The straight coordinate along one grid; its methods take any nodes, in either direction.

    end:     the last node of the grid, after which nothing has to be remembered.
    denoise: the step to sigma = 0 is one evaluation, whatever the method; see `TimeGrid`.
    flow:    whether the scale is alpha + sigma, as on paths from alpha = 0, and not alpha.
    """

    schedule: NoiseSchedule
    end: Node
    denoise: bool
    flow: bool

    @classmethod
    def of(cls, grid: TimeGrid) -> "Straight":
        """Returns the coordinate that suits the process of a grid."""
        schedule = grid.schedule
        pure = schedule.at(schedule.t_max).alpha == 0.0
        return cls(schedule, grid.nodes[-1], grid.denoise, pure)

    @classmethod
    def flow_of(cls, grid: TimeGrid) -> "Straight":
        """Returns the coordinate of rectified flow, which holds on every process."""
        return cls(grid.schedule, grid.nodes[-1], grid.denoise, True)

    def scale(self, node: Node) -> float:
        """Returns what x is divided by."""
        return node.alpha + node.sigma if self.flow else node.alpha

    def tau(self, node: Node) -> float:
        """Returns the coordinate of a node."""
        return node.sigma / self.scale(node)

    def node_at(self, tau: float) -> Node:
        """Returns the schedule's node with this tau."""
        if tau == 0.0:
            return self.schedule.at(self.schedule.t_zero)
        if tau == 1.0 and self.flow:
            return self.schedule.at_lam(-math.inf)
        return self.schedule.at_lam((math.log1p(-tau) if self.flow else 0.0) - math.log(tau))

    def node_between(self, t: Node, s: Node, share: float) -> Node:
        """Returns the node at tau_t + share (tau_s - tau_t)."""
        if share in (0.0, 1.0):
            return s if share else t
        start = self.tau(t)
        return self.node_at(start + share * (self.tau(s) - start))

    def slope(self, node: Node) -> Linear:
        """Returns dy/dtau as weights of x and x0; raises ScheduleError at sigma = 0."""
        check_noisy(node)
        return 1.0 / node.sigma, -1.0 / self.tau(node)

    def move(self, x: Tensor, slope: Tensor, t: Node, s: Node) -> Tensor:
        """Returns x_s on the line of this slope through x_t."""
        weights = self.scale(s) / self.scale(t), (self.tau(s) - self.tau(t)) * self.scale(s)
        return combine(weights, x, slope)

    def denoises(self, s: Node) -> bool:
        """Returns whether the step to s is the evaluation after the run."""
        return self.denoise and s.sigma == 0.0


def check_noisy(t: Node) -> None:
    """Raises ScheduleError at sigma = 0, where x0 does not determine the slope of the path."""
    if t.sigma == 0.0:
        raise ScheduleError(
            f"a step cannot start at t={t.t:g}, where sigma is 0; start at the schedule's t_min"
        )
