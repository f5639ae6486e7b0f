"""Guided tables: the conditional and the unconditional prediction as columns of their own.

    z_n = A_n z_0 + sum_{j<n} B_{n,j} c_j + sum_{j<n} U_{n,j} u_j,

where u_j is evaluated at some of the steps only, at one more network row each. Classifier-free
guidance at every step, at some, with the difference held or extrapolated, and weights that no such
rule gives are all points of this form. The guidance is then part of the schedule.
"""

from collections.abc import Generator
from typing import NamedTuple

import torch
from torch import Tensor

from ..models.denoiser import Branch, Network
from ..models.schedule import Node
from ..models.transfer import Constant
from .base import Query, Split
from .executor import Executor, check_network, mean_of
from .schedule_data import Compiled, Schedule

BOTH = (Branch.UNCOND, Branch.COND)


class Columns(NamedTuple):
    """The number of the next step, and the tensors that the table weighs, in its order."""

    n: int = 0
    tensors: tuple[Tensor, ...] = ()


class GuidedExecutor:
    """Runs a guided table. Its columns are z_0, then of each step u_j where it is asked and c_j."""

    def __init__(self, schedule: Schedule) -> None:
        self.table = schedule.compiled or Compiled(A=(), B=(), tau=())
        process = schedule.process.schedule()
        self.nodes = [process.at(t) for t in self.table.tau]
        self.weights = [weights_of(self.table, n) for n in range(self.table.steps)]
        self.given, self.mean = schedule.afs is not None, mean_of(schedule)
        self._mean = Constant(torch.zeros(()) if self.mean is None else self.mean)
        self.schedule = schedule

    def check_network(self, network: Network) -> None:
        """Raises ScheduleError if the schedule was searched for another network."""
        check_network(self.schedule, network)

    def init(self) -> Columns:
        return Columns()

    def step(
        self, x: Tensor, state: Columns, t: Node, s: Node
    ) -> Generator[Query, Tensor, tuple[Tensor, Columns]]:
        """The row numbered `state.n`."""
        n, tensors = state.n, state.tensors or (x,)
        if n == 0 and self.given:
            stand_in = self._mean.on(x).expand_as(x)
            tensors = (*tensors, stand_in)
        else:
            branches = branches_at(self.table, n)
            tensors = (*tensors, *(yield x, Split(self.nodes[n], branches)))
        x_s = tensors[0] * self.weights[n][0]
        for weight, tensor in zip(self.weights[n][1:], tensors[1:], strict=True):
            x_s.add_(tensor, alpha=weight)
        return x_s, Columns(n + 1, tensors)


def branches_at(table: Compiled, n: int) -> tuple[Branch, ...]:
    """The branches that step n of a guided table evaluates, in the order of its columns."""
    return BOTH if n in table.guided else (Branch.COND,)


def weights_of(table: Compiled, n: int) -> list[float]:
    """Row n of a guided table in the order of the columns."""
    row = [table.A[n]]
    for j in range(n + 1):
        row += [table.U[n][j]] if table.U and j in table.guided else []
        row.append(table.B[n][j])
    return row


def executor(schedule: Schedule) -> Executor | GuidedExecutor:
    """What runs a schedule."""
    guided = schedule.compiled is not None and schedule.compiled.U is not None
    return GuidedExecutor(schedule) if guided else Executor(schedule)
