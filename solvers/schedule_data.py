"""A solver schedule as data: times, and per step an order, a prediction and a derivative scheme.

DDIM, DPM-Solver++ multistep, UniPC, DEIS-in-lam and every searched schedule are values of this one
type, run by one executor; so a named solver and its JSON are the same thing to the last bit.
"""

import base64
import binascii
import hashlib
import json
import math
import struct
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ..models.errors import FewstepError, ScheduleError, SettingError
from ..models.reading import parse_as, read_text, shorten
from ..models.schedule import NoiseSchedule, TimeGrid, noise_schedule, process_of, share_path

Finite = Annotated[float, Field(allow_inf_nan=False)]
Relax = Literal["none", "bh1", "bh2", "linear"]

SCALE = "cfg_scale"  # in a provenance: the guidance scale it was searched for; 1 is none
ANSWER = "network_answer"  # in a provenance: the sketch of the network it was searched for
LARGEST = 2**24  # bytes of a file; the largest part is a mean image
MAX_STEPS = 10_000  # beyond, float32 states round away more than further steps gain
MIN_LAM_GAP = 1e-6  # nearer nodes make the derivative weights singular in float64


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Process(_Strict):
    """The noise schedule that the times belong to, as `models.schedule.process_of` gives it."""

    family: str
    params: dict[str, Any] = {}

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, data: Any) -> Any:
        """Writes out the parameters that were left at their defaults, so that they are hashed."""
        if isinstance(data, dict) and isinstance(data.get("params", {}), dict):
            try:
                schedule = noise_schedule(data.get("family", ""), **data.get("params", {}))
            except FewstepError as error:
                raise ValueError(str(error)) from error
            return {**data, **process_of(schedule)}
        return data

    def schedule(self) -> NoiseSchedule:
        return noise_schedule(self.family, **self.params)


class Corrector(_Strict):
    """Whether the step is redone at one order more once its end has been evaluated (no extra call).

    relax: relaxation of its first derivative; UniPC's order-1 corrector needs its own B(h) here.
    """

    on: bool = False
    relax: Literal["none", "bh1", "bh2"] = "none"


class StepSpec(_Strict):
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


class MeanImage(_Strict):
    """A tensor that stands for the first prediction, carried inside the JSON.

    It is one sample, or what broadcasts to one (a value per channel, say), so that a schedule stays
    one file, and travels in a picture, whatever happens to the folder it was made in.

    mean:  sha256 of its bytes, checked.
    shape: of one sample, without the batch axis.
    data:  its float32 values, little-endian, in base64.
    """

    mean: str
    shape: tuple[Annotated[int, Field(ge=1)], ...]
    data: str

    @classmethod
    def of(cls, values: Sequence[float], shape: Sequence[int]) -> "MeanImage":
        """From the values in row-major order; they are rounded to float32."""
        body = struct.pack(f"<{len(values)}f", *values)
        data = base64.b64encode(body).decode()
        return cls(mean=hashlib.sha256(body).hexdigest(), shape=tuple(shape), data=data)

    def values(self) -> list[float]:
        """The values in row-major order."""
        body = base64.b64decode(self.data, validate=True)
        return list(struct.unpack(f"<{len(body) // 4}f", body))

    @model_validator(mode="after")
    def _whole(self) -> Self:
        try:
            body = base64.b64decode(self.data, validate=True)
        except binascii.Error as error:
            raise ValueError(f"data is no base64: {error}") from error
        if hashlib.sha256(body).hexdigest() != self.mean:
            raise ValueError("data is not the tensor that mean names (sha256)")
        if len(body) != 4 * math.prod(self.shape):
            raise ValueError(f"data holds {len(body)} bytes, not float32 of shape {self.shape}")
        if not all(math.isfinite(value) for value in self.values()):
            raise ValueError("the mean holds NaN or infinity")
        return self


class Compiled(_Strict):
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


class Schedule(_Strict):
    """A complete plan of N steps: the JSON artefact, version 1.

    process:  the noise schedule; a network on another path refuses this schedule.
    t:        N + 1 falling times of the process.
    xi:       N shifts of the time at which x0 is asked for: a factor exp(xi) on t for edm, else
              added to t. Empty means none.
    afs:      "zero" takes x0 = 0 instead of the first evaluation, which saves one; a `MeanImage`
              takes that tensor.
    steps:    N step specifications.
    compiled: the canonical table. Where it is present it alone is run, and xi and steps tell where
              it comes from.
    nfe:      network evaluations, N or N - 1 with afs; checked. A guided one counts once.
    provenance: where the schedule comes from; free-form, not part of its identity. `ANSWER` in it
              is the `sketch` of the network that it was searched for; others are refused.
    """

    format: Literal["solver-schedule"] = "solver-schedule"
    version: Literal[1] = 1
    process: Process
    prediction_store: Literal["data"] = "data"
    t: Annotated[tuple[Finite, ...], Field(min_length=2, max_length=MAX_STEPS + 1)]
    xi: Annotated[tuple[Finite, ...], Field(max_length=MAX_STEPS)] = ()
    afs: Literal["zero"] | MeanImage | None = None
    steps: Annotated[tuple[StepSpec, ...], Field(min_length=1, max_length=MAX_STEPS)]
    compiled: Compiled | None = None
    nfe: Annotated[int, Field(ge=0)]
    provenance: dict[str, Any] = {}

    def __hash__(self) -> int:
        """Of what tells most schedules apart; equal ones have equal times and steps."""
        return hash((self.t, self.steps, self.nfe))

    @classmethod
    def of(cls, grid: TimeGrid, steps: tuple[StepSpec, ...], **provenance: Any) -> "Schedule":
        """The schedule that takes these steps over a grid."""
        process = Process.model_validate(process_of(grid.schedule))
        times = tuple(node.t for node in grid.nodes)
        return cls(process=process, t=times, steps=steps, nfe=len(steps), provenance=provenance)

    @classmethod
    def load(cls, path: str | Path) -> "Schedule":
        """Reads and checks a JSON file; raises ScheduleError with the first thing that is wrong."""
        try:
            text = read_text(path, "schedule", LARGEST)
        except SettingError as error:
            raise ScheduleError(
                f"{error}; give a file, or a name of `fewstep list schedules`"
            ) from error
        try:
            return cls.parse(text)
        except ScheduleError as error:
            raise ScheduleError(f"{shorten(path)} is not a valid schedule: {error}") from error

    @classmethod
    def parse(cls, text: str) -> "Schedule":
        """Checks JSON text; raises ScheduleError with the first thing that is wrong."""
        try:
            return parse_as(cls, text)
        except SettingError as error:
            raise ScheduleError(str(error)) from error

    def dump(self) -> str:
        """Canonical JSON: sorted keys, floats in their shortest exact form."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, allow_nan=False)

    @property
    def schedule_id(self) -> str:
        """sha256 of the canonical JSON without its provenance."""
        body = self.model_dump(mode="json", exclude={"provenance"})
        return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()

    @property
    def rows(self) -> int:
        """Network rows per image: nfe, and one more for every guided evaluation."""
        return self.nfe + (len(self.compiled.guided) if self.compiled else 0)

    def for_any(self) -> "Schedule":
        """The same without what tells which network and guidance scale it was searched for."""
        bound = {ANSWER, SCALE}
        facts = {name: fact for name, fact in self.provenance.items() if name not in bound}
        return self.model_copy(update={"provenance": facts})

    def grid(self) -> TimeGrid:
        """The grid that the steps run over."""
        return TimeGrid.of(self.process.schedule(), self.t)

    def check_process(self, schedule: NoiseSchedule) -> None:
        """Raises ScheduleError if a network's noise schedule is not the one this was made for."""
        if not share_path(self.process.schedule(), schedule):
            raise ScheduleError(
                f"this schedule was made for process {_brief(self.process)}, but the network's is"
                f" {_brief(Process.model_validate(process_of(schedule)))}; use a schedule made for"
                " this network"
            )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        try:
            nodes = self.grid().nodes
        except FewstepError as error:
            raise ValueError(str(error)) from error
        self._check_counts()
        for n in range(len(self.steps) if self.xi or self.compiled else 0):
            self._check_asked(n)
        for a, b in pairwise(nodes):
            if b.lam - a.lam < MIN_LAM_GAP:
                raise ValueError(f"times {a.t!r} and {b.t!r} are too close to tell apart")
        for i, step in enumerate(self.steps):
            if step.order > i + 1:
                raise ValueError(
                    f"step {i} has order {step.order}, but at most {i + 1} is possible"
                )
            if step.dB is not None and len(step.dB) > i + 1:
                raise ValueError(f"step {i} has {len(step.dB)} dB for {i + 1} predictions")
        last = self.steps[-1]
        if last.corr.on:
            raise ValueError("the last step cannot have a corrector: it would cost an evaluation")
        if nodes[-1].sigma == 0.0 and (last.order, last.pred) != (1, "data"):
            raise ValueError("the step to sigma = 0 must have order 1 and prediction data")
        return self

    @model_validator(mode="after")
    def _bonds_are_numbers(self) -> Self:
        scale = self.provenance.get(SCALE)
        if scale is not None and (isinstance(scale, bool) or not isinstance(scale, int | float)):
            raise ValueError(f"{SCALE} in the provenance must be a number")
        told = self.provenance.get(ANSWER)
        if told is not None and not (
            isinstance(told, list | tuple) and all(isinstance(each, int | float) for each in told)
        ):
            raise ValueError(f"{ANSWER} in the provenance must be a list of numbers")
        return self

    def _check_asked(self, n: int) -> None:
        """A shifted evaluation must stay inside the process, at sigma > 0."""
        t = evaluation_time(self, n)
        try:
            inside = self.process.schedule().at(t).sigma > 0.0
        except FewstepError:
            inside = False
        if not inside:
            what = f"tau[{n}]" if self.compiled else f"xi[{n}]"
            raise ValueError(f"{what} moves the evaluation to t={t:g}, outside the process")

    def _check_counts(self) -> None:
        n = len(self.steps)
        if len(self.t) != n + 1:
            raise ValueError(f"{n} steps need {n + 1} times, but there are {len(self.t)}")
        if self.xi and len(self.xi) != n:
            raise ValueError(f"{n} steps need {n} xi, but there are {len(self.xi)}")
        if self.compiled and self.compiled.steps != n:
            raise ValueError(f"{n} steps need {n} rows compiled, not {self.compiled.steps}")
        if self.afs and self.compiled and 0 in self.compiled.guided:
            raise ValueError("afs leaves out the first evaluation, so guided cannot name it")
        if self.nfe != n - (self.afs is not None):
            raise ValueError(f"nfe is {self.nfe}, but the steps take {n - (self.afs is not None)}")


def evaluation_time(schedule: Schedule, n: int) -> float:
    """The time at which the n-th prediction is asked for: tau_n, or t_n moved by xi_n."""
    if schedule.compiled:
        return schedule.compiled.tau[n]
    if not schedule.xi:
        return schedule.t[n]
    edm = schedule.process.family == "edm"
    return schedule.t[n] * math.exp(schedule.xi[n]) if edm else schedule.t[n] + schedule.xi[n]


def _brief(process: Process) -> str:
    params = ", ".join(f"{k}={v}" for k, v in process.params.items() if not isinstance(v, list))
    return f"{process.family}({params})"
