"""Compiler input: what each step of an exponential multistep method is, as data.

DDIM, DPM-Solver++ multistep, UniPC, DEIS in lam and all that a search proposes are values of this
one type. It is the genome that a search moves, and version 1 of the JSON artefact; what is run, and
written since version 2, is the `Table` that `step_table.table_of` compiles it to.
"""

import math
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from ..models.reading import StrictModel
from ..models.schedule import TimeGrid, process_of
from .artefact import MAX_STEPS, Artefact, Finite, MeanImage, Process

Relax = Literal["none", "bh1", "bh2", "linear"]


class Corrector(StrictModel):
    """Whether the step is redone at one order more once its end has been evaluated (no extra call).

    relax: relaxation of its first derivative; UniPC's order-1 corrector needs its own B(h) here.
    """

    on: bool = False
    relax: Literal["none", "bh1", "bh2"] = "none"


class StepSpec(StrictModel):
    """One step of an exponential multistep method.

    pred:  what is expanded in a Taylor series in lam: "data" (x0), "noise" (eps), or "mixed",
           f = (sigma eps - mix_l x) / alpha with noise at mix_l = 0 and data at mix_l = 1.
    order: number of terms, at most the number of evaluations made so far.
    est:   points used for the first, second, ... derivative; empty means order - 1 for each.
    relax: factor on the first derivative: "bh1", "bh2" are UniPC's B(h) (bh2 with data is
           DPM-Solver++ midpoint), "linear" is 1 + c h.
    kmul:  further factors on the derivatives; [1, 0.5] is the published DPM-Solver++(3M).
    corr:  the corrector that follows.
    dA:    added to the weight of the state.
    dB:    added to the weights of the x0 predictions, newest first.
    """

    pred: Literal["data", "noise", "mixed"] = "data"
    mix_l: Annotated[float, Field(ge=0.0, le=1.0)] = 1.0
    order: Annotated[int, Field(ge=1, le=4)] = 1
    est: tuple[int, ...] = ()
    relax: Relax = "none"
    c: Annotated[float, Field(ge=-1.0, le=1.0)] = 0.0
    kmul: tuple[Finite, ...] | None = None
    corr: Corrector = Corrector()
    dA: Finite = 0.0
    dB: tuple[Finite, ...] | None = None

    @property
    def ell(self) -> float:
        """The l of the mixed prediction: 1 for data, 0 for noise."""
        return {"data": 1.0, "noise": 0.0, "mixed": self.mix_l}[self.pred]

    @property
    def points(self) -> tuple[int, ...]:
        """Points used for each derivative, 1 .. order - 1."""
        return self.est or (self.order - 1,) * (self.order - 1)

    @model_validator(mode="after")
    def _lists_fit_order(self) -> Self:
        wanted = self.order - 1
        if self.est and len(self.est) != wanted:
            raise ValueError(f"est needs {wanted} numbers at order {self.order}")
        for k, n in enumerate(self.est, start=1):
            if not k <= n <= wanted:
                raise ValueError(f"est[{k - 1}]={n} must lie between {k} and {wanted}")
        if self.kmul is not None and len(self.kmul) != wanted:
            raise ValueError(f"kmul needs {wanted} numbers at order {self.order}")
        return self

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> Self:
        if self.mix_l != 1.0 and self.pred != "mixed":
            raise ValueError("mix_l has an effect with pred mixed only")
        if self.c != 0.0 and self.relax != "linear":
            raise ValueError("c has an effect with relax linear only")
        if self.relax != "none" and self.order == 1:
            raise ValueError("relax has an effect from order 2 only")
        if self.corr.relax != "none" and not (self.corr.on and self.order == 1):
            raise ValueError("corr.relax has an effect on the corrector of an order 1 step only")
        return self


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
    def _guided_where_weighed(self) -> Self:
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
        """The schedule that takes these steps over a grid."""
        process = Process.model_validate(process_of(grid.schedule))
        times = tuple(node.t for node in grid.nodes)
        return cls(process=process, t=times, steps=steps, nfe=len(steps), provenance=provenance)

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
            self.check_evaluation(evaluation_time(self, n), f"{name}[{n}]")
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


def evaluation_time(schedule: StepSchedule, n: int) -> float:
    """The time at which the n-th prediction is asked for: tau_n, or t_n moved by xi_n."""
    if schedule.compiled:
        return schedule.compiled.tau[n]
    if not schedule.xi:
        return schedule.t[n]
    edm = schedule.process.family == "edm"
    return schedule.t[n] * math.exp(schedule.xi[n]) if edm else schedule.t[n] + schedule.xi[n]
