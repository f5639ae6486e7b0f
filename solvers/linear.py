"""Bases of the solvers that compile to tables, and how orders rise and fall along a grid."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import field
from enum import StrEnum
from typing import Any, ClassVar

from pydantic import TypeAdapter
from pydantic.dataclasses import dataclass

from ..models.schedule import Node, TimeGrid
from .base import Clock, SolverInfo, check_family
from .exponential import StepSpec, combine_steps
from .interpolation import AUTO, CoordinateSetting, choose_coordinate
from .schedule_data import Schedule
from .step_schedule import StepSchedule
from .table import Combination, Evaluation, Table
from .table_steps import TableSteps


class LinearSolver(ABC):
    """A solver whose steps are linear combinations: it writes itself down as a `Table`."""

    info: ClassVar[SolverInfo]

    @abstractmethod
    def combinations(self, grid: TimeGrid) -> list[Combination]:
        """Returns x_{n+1} for every step n, in terms of states, predictions and noise."""

    def table(self, grid: TimeGrid) -> Table:
        """Returns the table over a grid; raises ScheduleError for one it does not run on."""
        check_family(self.info, grid.schedule)
        grid.check_gaps()
        return Table(grid.nodes, self.combinations(grid), list(map(Evaluation, grid.nodes[:-1])))

    def encode(self, grid: TimeGrid) -> Schedule:
        """Returns this solver on this grid as data, with its name and settings as its origin."""
        settings: dict[str, Any] = TypeAdapter(type(self)).dump_python(self, mode="json")
        return Schedule.of(self.table(grid), grid, {"solver": self.info.name, "settings": settings})

    def on(self, grid: TimeGrid) -> TableSteps:
        return TableSteps(self.table(grid), self.make_clock(grid))

    def make_clock(self, grid: TimeGrid) -> Clock | None:
        """Returns the clock of its noise; None if it adds none, or none of a Brownian path."""
        return None


class LowerOrderFinal(StrEnum):
    """The rule by which the order falls to 1 over the last steps, as each code base has it.

    never:    k-diffusion. The step to sigma = 0 is of order 1 under every policy.
    under-10: dpm-solver, runs of fewer than 10 steps.
    under-15: diffusers' DPM-Solver++ and DEIS.
    always:   UniPC, SANA, DPM-Solver-v3.
    before-zero: ComfyUI's SA-Solver: one lower than always, as if the last node were one before.
    """

    NEVER = "never"
    UNDER_10 = "under-10"
    UNDER_15 = "under-15"
    ALWAYS = "always"
    BEFORE_ZERO = "before-zero"

    def applies(self, steps: int) -> bool:
        limit = {"never": 0, "under-10": 10, "under-15": 15}
        return self not in limit or steps < limit[self]


class Encoder(LinearSolver):
    """A solver whose steps are step specifications, so that a search can start from it."""

    @abstractmethod
    def steps(self, grid: TimeGrid) -> list[StepSpec]:
        """Returns the specification of each step of a grid."""

    def place_steps(self, grid: TimeGrid) -> list[StepSpec]:
        """Returns the steps in the coordinates in which they are made."""
        return self.steps(grid)

    def step_schedule(self, grid: TimeGrid) -> StepSchedule:
        """Returns this solver on this grid as what a search moves."""
        return StepSchedule.of(grid, tuple(self.place_steps(grid)), solver=self.info.name)

    def combinations(self, grid: TimeGrid) -> list[Combination]:
        return combine_steps(self.place_steps(grid), grid)


@dataclass(frozen=True)
class Interpolating(Encoder):
    """An encoder whose predictions are interpolated in a coordinate of choice.

    coordinate: "lam", as published; "t", or "lam+K", which is log((alpha + K) / sigma): both are
                finite at alpha = 0, and all weights are exact in them. "auto" is lam, and t in the
                steps that use a node at alpha = 0, where polynomials in lam have order 1.
    """

    coordinate: CoordinateSetting = field(default=AUTO, kw_only=True)

    def place_steps(self, grid: TimeGrid) -> list[StepSpec]:
        return place_steps(self.steps(grid), grid.nodes[0], self.coordinate)


def place_steps(specs: Sequence[StepSpec], first: Node, setting: str) -> list[StepSpec]:
    """Returns steps from the first node on in their coordinates.

    Those that use one prediction alone have none.
    """
    return [
        spec.place(choose_coordinate(setting, first, n + 1 - spec.order))
        if spec.order > 1 or spec.corr.on
        else spec
        for n, spec in enumerate(specs)
    ]


def plan_orders(grid: TimeGrid, order: int, policy: LowerOrderFinal) -> list[int]:
    """Returns the order of each step: rising from 1, falling at the end if the policy says so."""
    steps = grid.steps - grid.denoise
    rising = [min(order, i + 1) for i in range(grid.steps)]
    if policy.applies(steps):
        last = steps - (policy is LowerOrderFinal.BEFORE_ZERO)
        rising = [max(1, min(p, last - i)) for i, p in enumerate(rising)]
    if grid.nodes[-1].sigma == 0.0:
        rising[-1] = 1
    return rising
