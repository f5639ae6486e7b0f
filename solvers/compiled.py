"""The canonical table of a schedule, found by running it once, and what a table violates.

A table weighs predictions, whatever the guidance makes of them: dynamic thresholding, which is part
of the guidance, changes what a prediction is and no weight, so tables run under it too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ..models.errors import ScheduleError
from ..models.schedule import Node, TimeGrid
from .base import Solver, drive
from .executor import Executor
from .schedule_data import Compiled, Schedule


def compiled(schedule: Schedule) -> Compiled:
    """The table that does what the schedule does; its own where it has one.

    What stands for the first prediction under `afs` has a column like any other.
    """
    if schedule.compiled:
        return schedule.compiled
    free = {"afs": None, "nfe": len(schedule.steps)}
    plain = schedule.model_copy(update=free)  # asks for every prediction
    return compiled_solver(Executor(plain), schedule.grid())


def compiled_solver(solver: Solver[Any], grid: TimeGrid) -> Compiled:
    """The table of any solver that is linear in the state and in one prediction per step.

    It is run in float64 on basis vectors: the first state is the vector e_0, the j-th answer of the
    network e_{1+j}; the coordinates of the states it asks about, and of the last, are the table.

    Raises:
        ScheduleError: if it draws noise, or does not ask once in every step.
    """
    asked: list[tuple[Tensor, Node]] = []

    def answer(x: Tensor, node: Node | None) -> Tensor:
        if node is None:
            raise ScheduleError("a solver that adds noise has no canonical table")
        asked.append((x, node))
        out = torch.zeros_like(x)
        out[..., len(asked)] = 1.0
        return out

    x, state = torch.eye(1, 1 + grid.steps, dtype=torch.float64), solver.init()
    for n, (t, s) in enumerate(pairwise(grid.nodes)):
        x, state = drive(solver.step(x, state, t, s), answer)
        if len(asked) != n + 1:
            raise ScheduleError(
                f"step {n} asks the network {len(asked) - n} times; only solvers that ask once in"
                " every step have a canonical table"
            )
    states = [*(z for z, _ in asked[1:]), x]
    rows = [z[0].tolist() for z in states]
    return Compiled(
        A=tuple(row[0] for row in rows),
        B=tuple(tuple(row[1 : n + 1]) for n, row in enumerate(rows, start=1)),
        tau=tuple(node.t for _, node in asked),
    )


def with_table(schedule: Schedule) -> Schedule:
    """The schedule with its table beside its steps."""
    return Schedule.model_validate({**schedule.model_dump(), "compiled": compiled(schedule)})


@dataclass(frozen=True)
class Violations:
    """How far a table is from one that is exact where the prediction is constant.

    state:       max_n |A_n - sigma_n / sigma_0|.
    predictions: max_n |sum_j B_{n,j} - (alpha_n - alpha_0 sigma_n / sigma_0)|; in a guided table U
                 counts with B.
    largest:     max |B_{n,j}|, which multiplies rounding errors of low precisions.
    """

    state: float
    predictions: float
    largest: float


def violations(table: Compiled, nodes: Sequence[Node]) -> Violations:
    """The invariants of consistency of a table over its nodes 0 .. N."""
    first, state, predictions = nodes[0], 0.0, 0.0
    columns = table.U or [()] * table.steps
    for node, a, row, more in zip(nodes[1:], table.A, table.B, columns, strict=True):
        ratio = node.sigma / first.sigma
        state = max(state, abs(a - ratio))
        wanted = node.alpha - first.alpha * ratio
        predictions = max(predictions, abs(sum(row) + sum(more) - wanted))
    return Violations(state, predictions, max(abs(b) for row in table.B for b in row))
