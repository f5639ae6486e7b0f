"""Schedules as step specifications: what a search moves, and version 1 of the JSON artefact.

What is run, and written since version 2, is the `Table` that `StepSchedule.table` makes of them.
Its canonical form writes every state in the first one and the predictions.

A guided schedule has columns of its own for the conditional and the unconditional prediction,

    z_n = A_n z_0 + sum_{j<n} B_{n,j} c_j + sum_{j<n} U_{n,j} u_j,

where u_j is evaluated at some of the steps only, at one more network row each. Classifier-free
guidance at every step, at some, with the difference held or extrapolated, and weights that no such
rule gives are all points of this form. The guidance is then part of the schedule.

Correctors leave no trace in that form: a corrected state is the uncorrected one plus a combination
of predictions, and its weights are merged into the next step.
"""

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from ..models.reading import StrictModel
from ..models.schedule import TimeGrid, process_of
from .artefact import MAX_STEPS, Artefact
from .exponential import StepSpec, combine_steps
from .mean_image import MeanImage
from .schedule_parts import Finite, Process
from .table import BOTH, Combination, Evaluation, Table


class Compiled(StrictModel):
    """The canonical table: every state written in the first one and the predictions.

    With M_j the x0 predicted at state z_j and time tau_j, and z_0 the noise that a run starts from,

        z_n = A_n z_0 + sum_{j<n} B_{n,j} M_j [+ sum_{j<n} U_{n,j} u_j],   n = 1..N.

    A:   N numbers.
    B:   N rows, the n-th with n numbers.
    tau: N times of evaluation.
    U:   in a guided table, weights of the unconditional predictions u_j, shaped as B, whose M_j are
         then those of the conditional branch. None in an unguided one.
    guided: the j whose u_j is evaluated, at one more network row; in a guided table only. The
         weights of all others are 0.
    """

    A: tuple[Finite, ...]
    B: tuple[tuple[Finite, ...], ...]
    tau: tuple[Finite, ...]
    U: tuple[tuple[Finite, ...], ...] | None = None
    guided: tuple[int, ...] = ()

    @property
    def steps(self) -> int:
        return len(self.A)

    @model_validator(mode="after")
    def _triangular(self) -> Self:
        n = len(self.A)
        if len(self.tau) != n:
            raise ValueError(f"{n} rows need {n} tau, but there are {len(self.tau)}")
        for name, rows in (("B", self.B), ("U", self.U or self.B)):
            if [len(row) for row in rows] != list(range(1, n + 1)):
                raise ValueError(f"{name} needs {n} rows of 1, 2, ... {n} numbers")
        return self

    @model_validator(mode="after")
    def _check_guidance(self) -> Self:
        if self.U is None and self.guided:
            raise ValueError("guided has an effect with U only")
        if list(self.guided) != sorted({j for j in self.guided if 0 <= j < len(self.A)}):
            raise ValueError(f"guided must rise and lie between 0 and {len(self.A) - 1}")
        for n, row in enumerate(self.U or ()):
            for j, weight in enumerate(row):
                if weight and j not in self.guided:
                    raise ValueError(f"U[{n}][{j}] weighs a prediction that guided leaves out")
        return self


class StepSchedule(Artefact):
    """A schedule as step specifications: what a search moves, and version 1 of the artefact.

    xi:       N shifts of the time at which x0 is asked for: a factor exp(xi) on t for edm, else
              added to t. Empty means none.
    afs:      "zero" takes x0 = 0 instead of the first evaluation, which saves one; a `MeanImage`
              takes that tensor.
    steps:    N step specifications.
    compiled: the canonical table. Where it is present it alone is run, and xi and steps tell where
              it comes from.
    nfe:      network evaluations, N or N - 1 with afs; checked. A guided one counts once.
    """

    version: Literal[1] = 1
    prediction_store: Literal["data"] = "data"
    xi: Annotated[tuple[Finite, ...], Field(max_length=MAX_STEPS)] = ()
    afs: Literal["zero"] | MeanImage | None = None
    steps: Annotated[tuple[StepSpec, ...], Field(min_length=1, max_length=MAX_STEPS)]
    compiled: Compiled | None = None

    @classmethod
    def of(cls, grid: TimeGrid, steps: tuple[StepSpec, ...], **provenance: Any) -> "StepSchedule":
        """Returns the schedule that takes these steps over a grid."""
        process = Process.model_validate(process_of(grid.schedule))
        times = tuple(node.t for node in grid.nodes)
        return cls(process=process, t=times, steps=steps, nfe=len(steps), provenance=provenance)

    def table(self) -> Table:
        """Returns what is run: the canonical table if there is one."""
        grid = self.grid()
        steps = _list_rows(self.compiled) if self.compiled else combine_steps(self.steps, grid)
        evaluations = [self._evaluate(grid, n) for n in range(len(steps))]
        return Table(grid.nodes, steps, evaluations, self.given)

    def _evaluate(self, grid: TimeGrid, n: int) -> Evaluation | None:
        """Returns what step n asks."""
        if n == 0 and self.afs:
            return None
        branches = BOTH if self.compiled and n in self.compiled.guided else BOTH[1:]
        return Evaluation(grid.schedule.at(self.time_of(n)), branches if self.guided else ())

    def time_of(self, n: int) -> float:
        """Returns the time at which step n asks: tau_n, or t_n moved by xi_n."""
        if self.compiled:
            return self.compiled.tau[n]
        if not self.xi:
            return self.t[n]
        edm = self.process.family == "edm"
        return self.t[n] * math.exp(self.xi[n]) if edm else self.t[n] + self.xi[n]

    @property
    def rows(self) -> int:
        return self.nfe + (len(self.compiled.guided) if self.compiled else 0)

    @property
    def guided(self) -> bool:
        return self.compiled is not None and self.compiled.U is not None

    @property
    def mean(self) -> MeanImage | None:
        return self.afs if isinstance(self.afs, MeanImage) else None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        self._check_lengths()
        self.check_times(len(self.steps), len(self.steps) - (self.afs is not None))
        for n in range(len(self.steps) if self.xi or self.compiled else 0):
            name = "tau" if self.compiled else "xi"
            self.check_evaluation(self.time_of(n), f"{name}[{n}]")
        for i, step in enumerate(self.steps):
            if step.order > i + 1:
                raise ValueError(
                    f"step {i} has order {step.order}, but at most {i + 1} is possible"
                )
            if step.dB is not None and len(step.dB) > i + 1:
                raise ValueError(f"step {i} has {len(step.dB)} dB for {i + 1} predictions")
        self._check_last()
        return self

    def _check_last(self) -> None:
        last = self.steps[-1]
        if last.corr.on:
            raise ValueError("the last step cannot have a corrector: it would cost an evaluation")
        if self.grid().nodes[-1].sigma == 0.0 and (last.order, last.pred) != (1, "data"):
            raise ValueError("the step to sigma = 0 must have order 1 and prediction data")

    def _check_lengths(self) -> None:
        n = len(self.steps)
        if self.xi and len(self.xi) != n:
            raise ValueError(f"{n} steps need {n} xi, but there are {len(self.xi)}")
        if self.compiled and self.compiled.steps != n:
            raise ValueError(f"{n} steps need {n} rows compiled, not {self.compiled.steps}")
        if self.afs and self.compiled and 0 in self.compiled.guided:
            raise ValueError("afs leaves out the first evaluation, so guided cannot name it")


def _list_rows(table: Compiled) -> list[Combination]:
    """Returns the steps of a canonical table; they use the first state and no other."""
    columns = table.U or [()] * table.steps
    return [
        {("x", 0): a, **_make_columns("u0", more), **_make_columns("x0", row)}
        for a, row, more in zip(table.A, table.B, columns, strict=True)
    ]


def _make_columns(kind: str, weights: Sequence[float]) -> Combination:
    return {(kind, j): weight for j, weight in enumerate(weights)}
