"""FireFlow and Uni-Inv: the slope that one step measures is what the next one sets out with.

FireFlow is the midpoint method at one evaluation a step. In the straight coordinate, with
h = tau_s - tau_t and d_0 the slope at the first node,

    y' = y_t + (h / 2) d_i,   d_{i+1} = (y' - x0(y', m)) / tau_m,   y_s = y_t + h d_{i+1},

where m lies at tau_t + h / 2: the midpoint slope of one step is what the next one reaches its own
midpoint with (arXiv:2412.07517). The stale slope enters multiplied by h^2, so the order
stays 2.

In Uni-Inv each step takes the slope at its far end, measured where the slope of the step
before leads,

    y' = y_t + h d_i,   d_{i+1} = (y' - x0(y', s)) / tau_s,   y_s = y_t + h d_{i+1}

(arXiv:2504.13109). It is made for inversion, from data to noise: the slope at the noisier end is
the one that Euler's method takes on the way back, so that the two together miss the start by
O(h^2), where Euler both ways misses it by O(h). Towards the data an error of the slope grows
by |h| / tau_s in each step, which only the grids of rectified flow keep small.
"""

from dataclasses import dataclass as plain
from typing import ClassVar, NamedTuple

from pydantic.dataclasses import dataclass
from torch import Tensor

from ..models.prediction import combine
from ..models.schedule import Node, TimeGrid
from .base import SolverInfo, Step, check_family, register
from .coordinates import Straight


@register
@dataclass(frozen=True)
class FireFlow:
    """A run of N steps costs N + 1 calls; it remembers one slope."""

    info: ClassVar[SolverInfo] = SolverInfo(name="fireflow", order=2, source="arXiv:2412.07517")

    def on(self, grid: TimeGrid) -> "SlopeReuseSteps":
        return SlopeReuseSteps(Straight.of(grid), share=0.5)


@register
@dataclass(frozen=True)
class UniInv:
    """A run of N steps costs N + 1 calls; it remembers one slope.

    At sigma = 0, x0 determines no slope, so the step there is x_s = alpha_s x0, from a new x0.
    """

    info: ClassVar[SolverInfo] = SolverInfo(
        name="uni-inv",
        order=1,
        source="arXiv:2504.13109",
        families=("flow",),
    )

    def on(self, grid: TimeGrid) -> "SlopeReuseSteps":
        check_family(self.info, grid.schedule)
        return SlopeReuseSteps(Straight.of(grid), share=1.0)


class SlopeMemory(NamedTuple):
    """The slope dy/dtau that the next step begins with, if there is one."""

    past: tuple[Tensor, ...] = ()


@plain(frozen=True, slots=True)
class SlopeReuseSteps:
    """Steps between any two nodes; share: how far along a step its slope is measured."""

    line: Straight
    share: float

    def init(self) -> SlopeMemory:
        return SlopeMemory()

    def step(self, x: Tensor, state: SlopeMemory, t: Node, s: Node) -> Step[SlopeMemory]:
        """Goes to the probe with the slope of the step before, and to s with the slope there."""
        line = self.line
        if line.denoises(s) or (self.share == 1.0 and s.sigma == 0.0):
            return (yield x, t) * s.alpha, SlopeMemory()
        slope = state.past[0] if state.past else combine(line.slope(t), x, (yield x, t))
        place = line.node_between(t, s, self.share)
        probe = line.move(x, slope, t, place)
        slope = combine(line.slope(place), probe, (yield probe, place))
        return line.move(x, slope, t, s), SlopeMemory(() if s == line.end else (slope,))
