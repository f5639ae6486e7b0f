"""Rectified-CFG++: the difference of the branches half a step ahead (arXiv:2510.07631)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor

from ...models.denoiser import Ask
from ...models.schedule import Node, NoiseSchedule
from .base import BOTH, COND, Guide, Moment, Setup, register
from .settings import Scaled
from .signature import check_further
from .space import compute_flow_time


@register
@dataclass(frozen=True)
class RectifiedCFGPlusPlus(Scaled):
    """v = v_c(x, t) + (scale - 1) t^power (v_c - v_u)(x', t'), x' half a step along v_c.

    t is the time of rectified flow and v its velocity; any other process is that, scaled. The steps
    of ddim and euler take it as x0 = c + (scale - 1) t^power (t / t') (c' - u'). With shorter steps
    it becomes CFG, if power is 0.

    scale: as in `CFG`; published are 4 to 5.5.
    power: at least 0; the weight falls towards the data.

    It costs three rows a step.
    """

    name: ClassVar[str] = "rect-cfg-pp"
    source: ClassVar[str] = "arXiv:2510.07631"

    power: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0

    def check(self, setup: Setup) -> None:
        if not self.off:
            check_further(self.name, setup)

    def guide(self, setup: Setup) -> Guide:
        return AheadGuide(self, setup)


class AheadGuide(Guide):
    """Asks for c, and for both branches half a step ahead."""

    def __init__(self, policy: RectifiedCFGPlusPlus, setup: Setup) -> None:
        self.policy, self.evaluate = policy, setup.evaluate
        schedule, nodes = setup.grid.schedule, setup.grid.nodes
        self.middles = [find_middle(schedule, t, s) for t, s in pairwise(nodes)]

    def ask(self, moment: Moment) -> tuple[Ask, ...]:
        return COND

    def combine(self, outputs: Sequence[Tensor], x: Tensor, moment: Moment) -> Tensor:
        assert self.evaluate is not None
        node, middle, cond = moment.node, self.middles[moment.step], outputs[-1]
        held = middle.sigma / node.sigma
        ahead = (x * held).add_(cond, alpha=middle.alpha - node.alpha * held)
        uncond_ahead, cond_ahead = self.evaluate(ahead, middle, BOTH)
        time = compute_flow_time(node)
        weight = (self.policy.scale - 1.0) * time**self.policy.power
        difference = cond_ahead - uncond_ahead
        return cond.add(difference, alpha=weight * time / compute_flow_time(middle))


def find_middle(schedule: NoiseSchedule, t: Node, s: Node) -> Node:
    """Returns the node half-way between two in the time of rectified flow."""
    time = 0.5 * (compute_flow_time(t) + compute_flow_time(s))
    return schedule.at_lam(math.log((1.0 - time) / time))
