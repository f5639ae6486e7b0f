"""The part of a run in which a policy acts: from one end to another of a coordinate."""

import math
from dataclasses import dataclass
from typing import Literal

from ...models.errors import SettingError
from ...models.schedule import Node, TimeGrid

Coordinate = Literal["sigma", "lam", "t", "step"]
WORDS = {"sigma": "sigma/alpha", "lam": "lam", "t": "t", "step": "the fraction of steps"}


@dataclass(frozen=True)
class Span:
    """low < place <= high; in "step", low N <= n < high N of N steps, rounded down.

    where: "sigma" is kappa = sigma / alpha, EDM's noise level; "lam" is log(alpha / sigma), "t" the
           schedule's own time, "step" the fraction of steps taken.
    """

    low: float
    high: float
    where: Coordinate = "sigma"

    def __post_init__(self) -> None:
        least = -math.inf if self.where == "lam" else 0.0
        most = 1.0 if self.where == "step" else math.inf
        if not least <= self.low < self.high <= most:
            raise SettingError(
                f"the guidance interval {self.low:g},{self.high:g} is empty or out of range; give"
                f" low < high in {WORDS[self.where]}, from {least:g} to {most:g}"
            )

    def covers(self, node: Node, step: int = 0, steps: int = 1) -> bool:
        """Returns whether an evaluation at a node, in a step of so many, lies inside."""
        if self.where == "step":
            return int(self.low * steps) <= step < int(self.high * steps)
        place = {"sigma": node.kappa, "lam": node.lam, "t": node.t}[self.where]
        return self.low < place <= self.high or self.low == place == -math.inf

    def check(self, grid: TimeGrid) -> None:
        """Raises SettingError if no step of a run on this grid starts inside."""
        places = grid.nodes[:-1]
        if not any(self.covers(node, n, grid.steps) for n, node in enumerate(places)):
            first, last = places[0], places[-1]
            ends = {
                "sigma": (last.kappa, first.kappa),
                "lam": (first.lam, last.lam),
                "t": (last.t, first.t),
                "step": (0.0, 1.0),
            }[self.where]
            raise SettingError(
                f"the guidance interval {self.low:g},{self.high:g} covers no step of this run; its"
                f" steps start from {ends[0]:g} to {ends[1]:g} in {WORDS[self.where]}"
            )
