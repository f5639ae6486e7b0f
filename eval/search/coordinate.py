"""The coordinate in which a search moves evaluation times."""

import math
from dataclasses import dataclass

from ...models.schedule import Node, NoiseSchedule
from ...samplers.ramps import find_lam_ends


@dataclass(frozen=True)
class Coordinate:
    """Where nodes move: u rises along a run. u = alpha on flow, where lam is infinite, else lam."""

    schedule: NoiseSchedule

    @property
    def flow(self) -> bool:
        return self.schedule.family == "flow"

    @property
    def ends(self) -> tuple[float, float]:
        """Between which the network is asked."""
        if self.flow:
            last = self.schedule.at(self.schedule.t_min)
            return self.schedule.at(self.schedule.t_max).alpha, last.alpha
        return find_lam_ends(self.schedule)

    def of(self, node: Node) -> float:
        """Returns u of a node; infinite at sigma = 0 but on flow."""
        return node.alpha if self.flow else node.lam

    def clamp(self, node: Node) -> float:
        """Returns u of a node, moved to the nearest place where the network is asked."""
        low, high = self.ends
        return min(max(self.of(node), low), high)

    def time(self, u: float) -> float:
        """Returns t of the schedule; that of the first of the ends is t_max to the bit."""
        if u == self.ends[0]:
            return self.schedule.t_max
        if not self.flow:
            return self.schedule.at_lam(u).t
        return self.schedule.at_lam(math.log(u) - math.log1p(-u)).t
