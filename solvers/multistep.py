"""Bases of the solvers that compile to tables, and how orders rise and fall along a grid."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from enum import StrEnum
from typing import ClassVar

from ..models.schedule import Node, TimeGrid
from .base import SolverInfo, check_family
from .executor import Executor
from .schedule_data import Schedule, StepSpec
from .table import Combination, Evaluation, Table, TableSteps


class LinearSolver(ABC):
    """A solver whose steps are linear combinations: it writes itself down as a `Table`."""

    info: ClassVar[SolverInfo]

    @abstractmethod
    def combinations(self, grid: TimeGrid) -> list[Combination]:
        """Returns x_{n+1} for every step n, in terms of states, predictions and noise."""

    def starts(self, grid: TimeGrid) -> Sequence[int]:
        """Returns the node that each step begins at; nothing where it is its own."""
        return ()

    def coordinates(self, grid: TimeGrid) -> Sequence[Node]:
        """Returns the nodes whose alpha and sigma the combinations mean by eps."""
        return grid.nodes

    def table(self, grid: TimeGrid) -> Table:
        """Returns the table over a grid; raises ScheduleError for a process it does not run on."""
        check_family(self.info, grid)
        evaluations = list(map(Evaluation, grid.nodes[:-1]))
        return Table(
            self.coordinates(grid), self.combinations(grid), evaluations, self.starts(grid)
        )

    def on(self, grid: TimeGrid) -> TableSteps:
        return TableSteps(self.table(grid))


class LowerOrderFinal(StrEnum):
    """Whether the order falls to 1 over the last steps, as each code base has it.

    never:    k-diffusion. The step to sigma = 0 is of order 1 under every policy.
    under-10: dpm-solver, runs of fewer than 10 steps.
    under-15: diffusers' DPM-Solver++ and DEIS.
    always:   UniPC, SANA, DPM-Solver-v3.
    """

    NEVER = "never"
    UNDER_10 = "under-10"
    UNDER_15 = "under-15"
    ALWAYS = "always"

    def applies(self, steps: int) -> bool:
        limit = {"never": 0, "under-10": 10, "under-15": 15}
        return self is LowerOrderFinal.ALWAYS or steps < limit[self]


class Encoder(ABC):
    """A solver that is a schedule: `encode` writes it down, the executor runs it."""

    info: ClassVar[SolverInfo]

    @abstractmethod
    def steps(self, grid: TimeGrid) -> list[StepSpec]:
        """What each step of the grid is."""

    def encode(self, grid: TimeGrid) -> Schedule:
        """This solver on this grid, as data."""
        return Schedule.of(grid, tuple(self.steps(grid)), solver=self.info.name)

    def on(self, grid: TimeGrid) -> Executor:
        check_family(self.info, grid)
        return Executor(self.encode(grid))


def orders(grid: TimeGrid, order: int, policy: LowerOrderFinal) -> list[int]:
    """The order of each step: rising from 1, falling at the end if the policy says so."""
    steps = grid.steps - grid.denoise
    rising = [min(order, i + 1) for i in range(grid.steps)]
    if policy.applies(steps):
        rising = [max(1, min(p, steps - i)) for i, p in enumerate(rising)]
    if grid.nodes[-1].sigma == 0.0:
        rising[-1] = 1
    return rising
