"""What a gradient search moves: times, evaluation times and free weights on top of a theory.

The theory, the steps of the schedule a search starts from, follows the times while they move; the
free weights are added to it and start at what the schedule had (the GS form, arXiv:2510.17699).
Since every earlier state is a combination of the first one and the predictions, weights of each
step's own state and of all predictions so far reach every linear method.
"""

import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from ...models.denoiser import Branch
from ...models.schedule import Node, NoiseSchedule
from ...samplers.grid import find_lam_ends
from ...solvers import StepSchedule
from ...solvers.step_schedule import compiled, evaluation_time
from .coefficients import MovingNode, Theory, f64

BEYOND = 0.5  # nats behind t_min that the last node before sigma = 0 may come near
LEAST = 1e-5  # share of the span that an increment has at the start at least
DATA = 0.5  # root mean square of data, for the scale of weights


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
        """u of a node; infinite at sigma = 0 but on flow."""
        return node.alpha if self.flow else node.lam

    def lam(self, u: Tensor) -> Tensor:
        """lam, with its gradient."""
        return torch.log(u) - torch.log1p(-u) if self.flow else u

    def time(self, u: float) -> float:
        """t of the schedule."""
        if not self.flow:
            return self.schedule.at_lam(u).t
        if u == 0.0:
            return self.schedule.t_max
        return self.schedule.at_lam(math.log(u) - math.log1p(-u)).t


class Parameters:
    """The numbers that move, as leaf tensors in float64.

    increments: logits of the shares of the span between the first node and the last.
    shifts:     (N,) of the evaluation times, in tenths of that span.
    scale:      (N,) added weights of each step's state, relative to the size of states.
    free:       (N, W) added weights in the basis, where the mask allows.
    """

    def __init__(self, schedule: StepSchedule, predictions: Tensor | None = None) -> None:
        self.base = schedule
        self.process = schedule.process.schedule()
        self.coordinate = Coordinate(self.process)
        self.nodes = schedule.grid().nodes
        n = len(schedule.steps)
        plain = torch.eye(n + 1, dtype=torch.float64)[1:]
        self.predictions = plain if predictions is None else predictions
        self.mask = self._known()
        self.first, self.last = self._span()
        self.increments = torch.log(self._shares()).requires_grad_()
        self.tenth = 0.1 * (self.last - self.first)
        self.shifts = (self._shifts() / self.tenth).requires_grad_()
        sizes = torch.tensor([math.hypot(DATA * p.alpha, p.sigma) for p in self.nodes]).double()
        self.sizes = sizes[1:] / sizes[:-1]
        scale, free = self._residual()
        self.scale = (scale / self.sizes).requires_grad_()
        self.free = free.requires_grad_()

    @property
    def steps(self) -> int:
        return len(self.base.steps)

    def branches(self, n: int) -> tuple[Branch, ...] | None:
        """The branches that step n evaluates into columns; None leaves it to the guidance."""
        return None

    def times(self) -> list[Tensor]:
        """Those that are times."""
        return [self.increments, self.shifts]

    def weights(self) -> list[Tensor]:
        """Those that are weights."""
        return [self.scale, self.free]

    def all(self) -> list[Tensor]:
        return [*self.times(), *self.weights()]

    def values(self) -> list[Tensor]:
        """A copy of where they are."""
        return [each.detach().clone() for each in self.all()]

    def assign(self, values: list[Tensor]) -> Self:
        """Puts them there."""
        with torch.no_grad():
            for each, value in zip(self.all(), values, strict=True):
                each.copy_(value)
        return self

    def project(self) -> None:
        """Puts evaluation times back into the range of the network."""
        low, high = self.coordinate.ends
        with torch.no_grad():
            u = self.places()[:-1]
            self.shifts.copy_(((u + self.tenth * self.shifts).clamp(low, high) - u) / self.tenth)

    def places(self) -> Tensor:
        """u of the nodes, (N + 1,); the last is that of the span, finite also at sigma = 0."""
        shares = torch.softmax(self.increments, 0)
        rest = self.first + (self.last - self.first) * torch.cumsum(shares, 0)
        return torch.cat([f64(self.first)[None], rest])

    def asked(self) -> Tensor:
        """u of the evaluations, (N,)."""
        low, high = self.coordinate.ends
        return (self.places()[:-1] + self.tenth * self.shifts).clamp(low, high)

    def table(self) -> Tensor:
        """(N, W): the states in the basis."""
        return self._theory().table(self.scale * self.sizes, self.added())

    def added(self) -> Tensor:
        """(N, W): what is added to the state that each step gives."""
        return self.free * self.mask

    def schedule(self, **provenance: object) -> StepSchedule:
        """The schedule they stand for, symbolic: times, xi, dA and dB."""
        with torch.no_grad():
            times = self._times()
            asked = [self.coordinate.time(float(u)) for u in self.asked()]
            edm = self.base.process.family == "edm"
            xi = [math.log(a / t) if edm else a - t for a, t in zip(asked, times[:-1], strict=True)]
            scale, free = (self.scale * self.sizes).tolist(), self.added().tolist()
        steps = [
            {**spec.model_dump(), "dA": scale[n], "dB": free[n][n + 1 : 0 : -1]}
            for n, spec in enumerate(self.base.steps)
        ]
        body = {**self.base.model_dump(), "t": times, "xi": xi, "steps": steps}
        return StepSchedule.model_validate({**body, "compiled": None, "provenance": provenance})

    def _times(self) -> list[float]:
        inner = [self.coordinate.time(float(u.detach())) for u in self.places()[1:-1]]
        return [self.nodes[0].t, *inner, self.nodes[-1].t]

    def _span(self) -> tuple[float, float]:
        last = self.coordinate.of(self.nodes[-1])
        if math.isinf(last):
            last = max(self.coordinate.ends[1], self.coordinate.of(self.nodes[-2])) + BEYOND
        return self.coordinate.of(self.nodes[0]), last

    def _shares(self) -> Tensor:
        places = [self.coordinate.of(node) for node in self.nodes[:-1]] + [self.last]
        shares = torch.tensor(places, dtype=torch.float64).diff() / (self.last - self.first)
        return shares.clamp_min(LEAST)

    def _shifts(self) -> Tensor:
        at = [self.process.at(evaluation_time(self.base, n)) for n in range(self.steps)]
        asked = [self.coordinate.of(node) for node in at]
        here = [self.coordinate.of(node) for node in self.nodes[:-1]]
        return torch.tensor(asked, dtype=torch.float64) - torch.tensor(here, dtype=torch.float64)

    def _theory(self) -> Theory:
        inner = [MovingNode.at(self.process, self.coordinate.lam(u)) for u in self.places()[1:-1]]
        points = [MovingNode.of(self.nodes[0]), *inner, MovingNode.of(self.nodes[-1])]
        return Theory(points, self.base.steps, self.predictions)

    def _known(self) -> Tensor:
        """(N, W): 1 for the columns that are there when a step is made, 0 for later ones."""
        mask = torch.zeros_like(self.predictions)
        for n in range(self.steps):
            last = int(self.predictions[n].nonzero().max())
            mask[n, 1 : last + 1] = 1.0
        return mask

    def _residual(self) -> tuple[Tensor, Tensor]:
        """What the schedule's table has beyond the theory of its steps."""
        with torch.no_grad():
            return self._theory().residual(self._rows())

    def _rows(self) -> Tensor:
        """(N, W): the schedule's table in the basis."""
        table, n = compiled(self.base), self.steps
        rows = [[a, *b, *[0.0] * (n - len(b))] for a, b in zip(table.A, table.B, strict=True)]
        return torch.tensor(rows, dtype=torch.float64)
