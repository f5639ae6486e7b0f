"""Steps of several stages: explicit Runge-Kutta methods as weights of x and the predictions.

On dy/dtau = (y - x0) / tau in the straight coordinate, a method with the tableau (c, a, b) steps
from node t to node s, with h = tau_s - tau_t, through

    k_i = dy/dtau at tau_t + c_i h, y_t + h sum_{j < i} a_ij k_j,      y_s = y_t + h sum_i b_i k_i.

Every stage is linear in x_t and the predictions before it, so it is run as one row of weights of
those; no slope is ever formed. The rows of a step are worked out once, in float64.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from ..models.schedule import Node
from .base import Step
from .coordinates import Stages, Straight, check_noisy

Row = tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Tableau:
    """A Runge-Kutta method.

    c: the places of the stages, c_0 = 0.
    a: the weights of the slopes before stage i, for i = 1, 2, ...; their sums are c_i.
    b: the weights of all slopes in the step.
    e: b minus the weights of the embedded method; empty if there is none.
    """

    c: Row
    a: tuple[Row, ...]
    b: Row
    e: Row = ()

    @property
    def probes_end(self) -> bool:
        """Whether a stage stands at the end of the step."""
        return 1.0 in self.c


EULER = Tableau(c=(0.0,), a=(), b=(1.0,))
HEUN = Tableau(c=(0.0, 1.0), a=((1.0,),), b=(0.5, 0.5))
RALSTON_3 = Tableau(c=(0.0, 1 / 2, 3 / 4), a=((1 / 2,), (0.0, 3 / 4)), b=(2 / 9, 1 / 3, 4 / 9))
RK4 = Tableau(
    c=(0.0, 0.5, 0.5, 1.0),
    a=((0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)),
    b=(1 / 6, 1 / 3, 1 / 3, 1 / 6),
)


def midpoint(share: float, second: float) -> Tableau:
    """Returns the method of two stages whose second, at that share of h, weighs `second`."""
    return Tableau(c=(0.0, share), a=((share,),), b=(1.0 - second, second))


class StageRows(NamedTuple):
    """The nodes at which x0 is asked for, and what comes after each answer.

    State i + 1 is rows[i] times (x, x0_0, .., x0_i); the last one is the end of the step.
    """

    nodes: tuple[Node, ...]
    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class StageSteps(ABC):
    """Steps between any two nodes, in either direction, that remember nothing.

    known: the rows of the steps so far, by the times of their ends.
    """

    line: Straight
    known: dict[tuple[float, float], StageRows] = field(
        default_factory=dict, init=False, compare=False, repr=False
    )

    @abstractmethod
    def stage_rows(self, t: Node, s: Node) -> StageRows:
        """Returns the rows of the step from t, where sigma > 0, to s."""

    def init(self) -> None:
        return None

    def step(self, x: Tensor, state: None, t: Node, s: Node) -> Step[None]:
        """One evaluation per row."""
        return (yield from self.run_stages(x, t, s)), None

    def run_stages(self, x: Tensor, t: Node, s: Node) -> Stages:
        """Asks for x0 at each node in turn and returns the state at s."""
        state, x0s = x, []
        for node, (first, *rest) in zip(*self._rows(t, s), strict=True):
            x0s.append((yield state, node))
            state = x * first
            for weight, x0 in zip(rest, x0s, strict=True):
                state.add_(x0, alpha=weight)
        return state

    def _rows(self, t: Node, s: Node) -> StageRows:
        ends = t.t, s.t
        if ends not in self.known:
            check_noisy(t)
            self.known[ends] = self.stage_rows(t, s)
        return self.known[ends]


@dataclass(frozen=True, slots=True)
class RungeKuttaSteps(StageSteps):
    """Steps of one tableau, Euler's where it would evaluate the network at sigma = 0."""

    tableau: Tableau

    def tableau_at(self, t: Node, s: Node) -> Tableau:
        """Returns the method of the step from t to s."""
        probes_data = s.sigma == 0.0 and self.tableau.probes_end
        return EULER if probes_data or self.line.denoises(s) else self.tableau

    def stage_rows(self, t: Node, s: Node) -> StageRows:
        tableau, line = self.tableau_at(t, s), self.line
        nodes = [line.between(t, s, share) for share in tableau.c]
        h, weights = line.tau(s) - line.tau(t), [*tableau.a, tableau.b]
        reach = [h / line.tau(node) for node in nodes]
        rows = []
        for i, node in enumerate([*nodes[1:], s]):
            scale, shares = line.scale(node), _shares(weights[: i + 1], reach)
            own = (1.0 + math.fsum(shares)) * scale / line.scale(t)
            rows.append((own, *(-share * scale for share in shares)))
        return StageRows(tuple(nodes), tuple(rows))


def _shares(weights: Sequence[Row], reach: Sequence[float]) -> list[float]:
    """Returns g with y_i = y + sum_j g_j (y - x0_j), from the last slope back to the first."""
    *inner, outer = weights
    shares = [0.0] * len(outer)
    for j in reversed(range(len(outer))):
        later = sum(shares[i] * inner[i - 1][j] for i in range(j + 1, len(outer)))
        shares[j] = reach[j] * (outer[j] + later)
    return shares
