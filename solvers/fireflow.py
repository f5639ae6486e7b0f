"""FireFlow: the midpoint method at one evaluation a step.

In the straight coordinate, with h = tau_s - tau_t and d_0 the slope at the first node,

    y' = y_t + (h / 2) d_i,   d_{i+1} = (y' - x0(y', m)) / tau_m,   y_s = y_t + h d_{i+1},

where m lies at tau_t + h / 2: the midpoint slope of one step is what the next one reaches its own
midpoint with (arXiv:2412.07517). The stale slope enters multiplied by h^2, so the order
stays 2.
"""

from dataclasses import dataclass as plain
from typing import ClassVar

from pydantic.dataclasses import dataclass
from torch import Tensor

from ..models.prediction import combine
from ..models.schedule import Node, TimeGrid
from .base import SolverInfo, Step, register
from .coordinates import Straight, Velocity


@register
@dataclass(frozen=True)
class FireFlow:
    """A run of N steps costs N + 1 calls; it keeps one slope."""

    info: ClassVar[SolverInfo] = SolverInfo(
        name="fireflow", order=2, calls_per_step=1, source="arXiv:2412.07517"
    )

    def on(self, grid: TimeGrid) -> "FireFlowSteps":
        return FireFlowSteps(Straight.of(grid))


@plain(frozen=True, slots=True)
class FireFlowSteps:
    """FireFlow's steps, between any two nodes."""

    line: Straight

    def init(self) -> Velocity:
        return Velocity()

    def step(self, x: Tensor, state: Velocity, t: Node, s: Node) -> Step[Velocity]:
        line = self.line
        if line.denoises(s):
            return (yield x, t) * s.alpha, Velocity()
        slope = state.kept[0] if state.kept else combine(line.slope(t), x, (yield x, t))
        middle = line.between(t, s, 0.5)
        probe = line.moved(x, slope, t, middle)
        slope = combine(line.slope(middle), probe, (yield probe, middle))
        return line.moved(x, slope, t, s), line.held(slope, s)
