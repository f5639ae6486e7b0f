"""Past differences c - u, and their extrapolation to another node."""

import math
from collections import deque
from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from ...models.prediction import Prediction
from ...models.schedule import Node
from .space import compute_factor

Clock = Literal["lam", "t"]


class PastDifferences:
    """The last differences in x0 and where they were found.

    order: degree of the polynomial through them; 0 holds the last one. The first answers have as
           many points as there are.
    clock: its variable; a node with lam = -inf has no place on "lam" and is held only.
    kind:  the prediction whose difference is held or extrapolated.
    """

    def __init__(self, order: int, clock: Clock, kind: Prediction = Prediction.X0) -> None:
        self.clock, self.kind = clock, kind
        self.held: deque[tuple[Node, Tensor]] = deque(maxlen=order + 1)

    def add(self, node: Node, difference: Tensor) -> None:
        """Takes in c - u (B, *) in x0; a second one at the same node replaces the first."""
        if self.held and self.held[0][0] == node:
            self.held.popleft()
        self.held.appendleft((node, difference))

    def at(self, node: Node) -> Tensor:
        """Returns c - u in x0 at a node."""
        scale = compute_factor(node, self.kind)
        out: Tensor | None = None
        for weight, (place, difference) in self._weigh(node):
            share = weight * compute_factor(place, self.kind) / scale
            out = difference * share if out is None else out.add(difference, alpha=share)
        if out is None:
            raise ValueError("no difference is known yet")
        return out

    def _weigh(self, node: Node) -> list[tuple[float, tuple[Node, Tensor]]]:
        place = self._read_coordinate(node)
        usable = [each for each in self.held if math.isfinite(self._read_coordinate(each[0]))]
        if not math.isfinite(place) or len(usable) < 2:
            return [(1.0, self.held[0])] if self.held else []
        weights = _compute_lagrange([self._read_coordinate(each[0]) for each in usable], place)
        return list(zip(weights, usable, strict=True))

    def _read_coordinate(self, node: Node) -> float:
        return node.lam if self.clock == "lam" else node.t


def _compute_lagrange(places: Sequence[float], at: float) -> list[float]:
    """Returns the weights of values at the places in the polynomial through them, elsewhere."""
    return [
        math.prod((at - other) / (place - other) for other in places if other != place)
        for place in places
    ]
