"""The straight coordinate of a process, and steps that call the network several times.

With y = x / scale and tau = sigma / scale the probability-flow ODE is

    dy/dtau = (y - x0) / tau,

a straight line wherever x0 does not change. On rectified flow scale = alpha + sigma, so that the
slope is the network's own velocity and both ends are finite; on every other process scale = alpha,
so that tau = kappa and the slope is eps.
"""

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from ..models.errors import ScheduleError
from ..models.prediction import Linear, combine
from ..models.schedule import Node, NoiseSchedule, TimeGrid
from .base import Query

Stages = Generator[Query, Tensor, Tensor]
Tableau = Sequence[Sequence[float]]  # row i: what state i + 1 takes of the slopes 0 .. i

EULER: Tableau = ((1.0,),)


class Velocity(NamedTuple):
    """The slope dy/dtau that the next step begins with, if there is one."""

    kept: tuple[Tensor, ...] = ()


@dataclass(frozen=True, slots=True)
class Straight:
    """The straight coordinate along one grid; its methods take any nodes, in either direction.

    end:     the last node of the grid, after which nothing needs to be kept.
    denoise: the step to sigma = 0 is one evaluation, whatever the method; see `TimeGrid`.
    """

    schedule: NoiseSchedule
    end: Node
    denoise: bool

    @classmethod
    def of(cls, grid: TimeGrid) -> "Straight":
        return cls(grid.schedule, grid.nodes[-1], grid.denoise)

    def scale(self, node: Node) -> float:
        """What x is divided by."""
        return node.alpha + node.sigma if self._flow else node.alpha

    def tau(self, node: Node) -> float:
        return node.sigma / self.scale(node)

    def node_at(self, tau: float) -> Node:
        """The schedule's node with this tau."""
        if tau == 0.0:
            return self.schedule.at(self.schedule.t_zero)
        if tau == 1.0 and self._flow:
            return self.schedule.at_lam(-math.inf)
        return self.schedule.at_lam((math.log1p(-tau) if self._flow else 0.0) - math.log(tau))

    def between(self, t: Node, s: Node, share: float) -> Node:
        """The node at tau_t + share (tau_s - tau_t)."""
        start = self.tau(t)
        return s if share == 1.0 else self.node_at(start + share * (self.tau(s) - start))

    def slope(self, node: Node) -> Linear:
        """dy/dtau as weights of x and x0."""
        check_noisy(node)
        return 1.0 / node.sigma, -1.0 / self.tau(node)

    def moved(self, x: Tensor, slope: Tensor, t: Node, s: Node) -> Tensor:
        """x_s on the line of this slope through x_t."""
        weights = self.scale(s) / self.scale(t), (self.tau(s) - self.tau(t)) * self.scale(s)
        return combine(weights, x, slope)

    def denoises(self, s: Node) -> bool:
        """Whether the step to s is the evaluation after the run."""
        return self.denoise and s.sigma == 0.0

    def held(self, slope: Tensor, s: Node) -> Velocity:
        """The state at node s."""
        return Velocity() if s == self.end else Velocity((slope,))

    @property
    def _flow(self) -> bool:
        return self.schedule.family == "flow"


def check_noisy(t: Node) -> None:
    """Raises ScheduleError at sigma = 0, where x0 does not determine the slope of the path."""
    if t.sigma == 0.0:
        raise ScheduleError(
            f"a step cannot start at t={t.t:g}, where sigma is 0; start at the schedule's t_min"
        )


def runge_kutta(line: Straight, x: Tensor, t: Node, s: Node, tableau: Tableau) -> Stages:
    """One explicit Runge-Kutta step on dy/dtau; state i lies at tau_t + sum(tableau[i]) h.

    The slopes are k_j = (y_j - x0_j) / tau_j, and each state is written as weights of x_t and the
    x0_j alone.
    """
    check_noisy(t)
    h = line.tau(s) - line.tau(t)
    nodes = [t, *(line.between(t, s, math.fsum(row)) for row in tableau[:-1])]
    reach = [h / line.tau(node) for node in nodes]
    rows = []
    for i, node in enumerate([*nodes[1:], s]):
        shares = _shares(tableau[: i + 1], reach)
        scale = line.scale(node)
        rows.append([(1.0 + sum(shares)) * scale / line.scale(t), *(-g * scale for g in shares)])
    return (yield from stages(x, nodes, rows))


def _shares(tableau: Tableau, reach: Sequence[float]) -> list[float]:
    """g with y_i = y + sum_j g_j (y - x0_j): from the last slope back to the first."""
    *inner, outer = tableau
    shares = [0.0] * len(outer)
    for j in reversed(range(len(outer))):
        later = sum(shares[i] * inner[i - 1][j] for i in range(j + 1, len(outer)))
        shares[j] = reach[j] * (outer[j] + later)
    return shares


def stages(x: Tensor, nodes: Sequence[Node], rows: Sequence[Sequence[float]]) -> Stages:
    """Asks for x0 at each node in turn; state i + 1 is rows[i] times (x, x0_0, .. x0_i)."""
    state, x0s = x, []
    for node, (first, *rest) in zip(nodes, rows, strict=True):
        x0s.append((yield state, node))
        state = x * first
        for weight, x0 in zip(rest, x0s, strict=True):
            state.add_(x0, alpha=weight)
    return state
