"""A sampling schedule as data: one table of steps, as a file, a picture or a pipeline carries it.

Every linear solver on a grid can be written so, whatever its name or origin: exponential multistep
and singlestep methods, Adams methods, stochastic ones, and the result of a search, with or without
guidance of its own. What is read back runs as what was written, to the last bit.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    AfterValidator,
    Field,
    ModelWrapValidatorHandler,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from ..models.caching import FixedMask
from ..models.denoiser import Network
from ..models.errors import FewstepError, ScheduleError
from ..models.reading import first_problem
from ..models.schedule import TimeGrid, process_of
from .artefact import MAX_STEPS, PARTS, Artefact, Executor
from .base import Solver
from .cached_calls import CachedCalls
from .corrected_steps import CorrectedSteps
from .correction import Correction
from .mean_image import MeanImage
from .prediction_functions import read_function
from .schedule_parts import EvaluationData, Process, Weight, sort_weights
from .step_schedule import StepSchedule
from .table import BOTH, TERMS, Combination, Evaluation, Table, check_weights
from .table_steps import TableSteps

PLAIN: Final = 2  # versions: of plain tables,
CACHED: Final = 3  # with a cache,
BEYOND: Final = 4  # with functions of predictions,
CORRECTED: Final = 5  # and with a learned correction
Version = Literal[2, 3, 4, 5]
MAX_KEPT = 5_000_000  # tensors kept, summed over the steps: a canonical table of 3,000 steps


class Schedule(Artefact):
    """N steps over N + 1 times, each one combination of terms: the JSON artefact.

    With t_0 > ... > t_N, x_n the state at t_n and x0_n the prediction that step n asks for,

        x_{n+1} = sum of weight * term over steps[n].

    evaluations: what each step asks, or null for nothing.
    steps:       of each step its weights, as [term, n, weight]: "x" is the state x_n; "x0", "eps"
                 and "v" the prediction of step n as x0, as (x_n - alpha_n x0_n) / sigma_n and as
                 eps_n - x0_n; "u0" the x0 of its unconditional branch; "z" the noise of this step;
                 "tanh:gain=3.0,shift=0.0" and others a function of x0_n (`prediction_functions`).
    stand_in:    what x0 is where nothing is asked: "zero" or a `MeanImage`.
    cache:       which evaluations run the whole network, if not all do.
    correction:  what is added to the states after some steps, if it is; see `Correction`.

    It is of version 5 with a correction, else of version 4 with functions of predictions, else of
    version 3 with a cache, and else of version 2; without its cache or correction it is not run.
    Files of version 1 are read too: their steps are compiled to the table that was run.
    """

    version: Version = 2
    evaluations: Annotated[tuple[EvaluationData | None, ...], Field(max_length=MAX_STEPS)]
    steps: Annotated[
        tuple[Annotated[tuple[Weight, ...], AfterValidator(sort_weights)], ...],
        Field(min_length=1, max_length=MAX_STEPS),
    ]
    stand_in: Literal["zero"] | MeanImage = "zero"
    cache: CachedCalls | None = None
    correction: Correction | None = None

    @classmethod
    def of(cls, table: Table, grid: TimeGrid, provenance: Mapping[str, Any]) -> "Schedule":
        """Writes a table over a grid down; raises ScheduleError for weights that are no numbers."""
        for n, combo in enumerate(table.steps):
            check_weights(n, combo.values())
        given = table.given
        mean = None if given is None else MeanImage.of(given.flatten().tolist(), given.shape)
        return cls(
            version=_choose_version([each for step in table.functions for each in step]),
            process=Process.model_validate(process_of(grid.schedule)),
            t=tuple(node.t for node in grid.nodes),
            evaluations=tuple(map(_write_evaluation, table.evaluations)),
            steps=tuple(
                tuple((*term, weight) for term, weight in combo.items()) for combo in table.steps
            ),
            stand_in=mean or "zero",
            nfe=table.nfe,
            provenance=dict(provenance),
        )

    @classmethod
    def of_steps(cls, schedule: StepSchedule) -> "Schedule":
        """Writes down the table that a schedule of step specifications is compiled to."""
        return cls.of(schedule.table(), schedule.grid(), schedule.provenance)

    def with_cache(self, cache: CachedCalls | None) -> "Schedule":
        """Returns the schedule with another cache or none; raises ScheduleError if it misfits."""
        return self._replace(cache=cache)

    def with_correction(self, correction: Correction | None) -> "Schedule":
        """Returns the schedule with another correction or none; raises as `with_cache`."""
        return self._replace(correction=correction)

    def _replace(self, **changes: Any) -> "Schedule":
        """Returns the schedule with other fields, and the version that they have."""
        fields = {**dict(self), **changes}
        cache, correction = fields["cache"], fields["correction"]
        fields["version"] = _choose_version(self.functions, cache, correction)
        try:
            return Schedule.model_validate(fields)
        except ValidationError as error:
            raise ScheduleError(first_problem(error)) from error

    def table(self) -> Table:
        """Returns what is run."""
        grid = self.grid()
        evaluations = [
            None if each is None else Evaluation(grid.schedule.at(each.t), each.branches)
            for each in self.evaluations
        ]
        return Table(grid.nodes, self._combinations(), evaluations, self.given)

    def make_solver(self) -> Solver[Any]:
        return Executor(self) if self.correction is None else CorrectedSteps(self, self.correction)

    def write_files(self, folder: Path) -> None:
        if self.correction is not None:
            self.correction.write(folder)

    @property
    def rows(self) -> int:
        return sum(max(1, len(each.branches)) for each in self.evaluations if each is not None)

    @property
    def guided(self) -> bool:
        return any(each is not None and each.branches for each in self.evaluations)

    @property
    def functions(self) -> tuple[str, ...]:
        """The functions of predictions that its steps weigh, sorted."""
        kinds = {kind for step in self.steps for kind, _, _ in step}
        return tuple(sorted(kinds.difference(TERMS)))

    def check_network(self, network: Network) -> None:
        """As `Artefact.check_network`; functions and samples must fit each other too."""
        for each in self.functions:
            read_function(each).check_shape(network.shape, network.name)
        super().check_network(network)

    @property
    def cache_policy(self) -> FixedMask | None:
        if self.cache is None:
            return None
        return self.cache.policy(self.nfe, self.provenance.get(PARTS))

    @property
    def mean(self) -> MeanImage | None:
        return self.stand_in if isinstance(self.stand_in, MeanImage) else None

    def _combinations(self) -> list[Combination]:
        return [{(kind, n): weight for kind, n, weight in step} for step in self.steps]

    @model_validator(mode="wrap")
    @classmethod
    def _read_older(cls, data: Any, read: ModelWrapValidatorHandler[Self]) -> Any:
        """Reads version 1, which has no evaluations, and refuses what is newer than this."""
        if not isinstance(data, dict):
            return read(data)
        version = data.get("version", PLAIN if "evaluations" in data else 1)
        if isinstance(version, int) and version > CORRECTED:
            raise ValueError(
                f"version {version} is newer than this fewstep, which knows up to {CORRECTED}:"
                " update fewstep"
            )
        if version != 1:
            return read(data)
        try:
            return cls.of_steps(StepSchedule.model_validate(data))
        except ValidationError as error:
            raise ValueError(first_problem(error)) from error
        except FewstepError as error:
            raise ValueError(str(error)) from error

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        asked = [(n, each) for n, each in enumerate(self.evaluations) if each is not None]
        if len(self.evaluations) != len(self.steps):
            n = len(self.steps)
            raise ValueError(f"{n} steps need {n} evaluations, not {len(self.evaluations)}")
        self.check_times(len(self.steps), len(asked))
        for n, each in asked:
            self.check_evaluation(each.t, f"evaluations[{n}]")
        if len({bool(each.branches) for _, each in asked}) > 1:
            raise ValueError("either every evaluation has branches, or none has")
        if self.mean is not None and len(asked) == len(self.steps):
            raise ValueError("stand_in has an effect where a step asks nothing only")
        if self.version != _choose_version(self.functions, self.cache, self.correction):
            raise ValueError(
                f"version is {self.version}, but a schedule has version {CORRECTED} with a"
                f" correction, else version {BEYOND} with functions of predictions, else version"
                f" {CACHED} with a cache, and else version {PLAIN}"
            )
        self._check_terms()
        self._check_kept()
        self._check_cache()
        try:
            TableSteps(self.table())
            if self.correction is not None:
                self.correction.check_table(self.table(), cached=self.cache is not None)
        except ScheduleError as error:
            raise ValueError(str(error)) from error
        return self

    def _check_terms(self) -> None:
        """Raises ValueError for a term that is not known when its step is made."""
        both = {n for n, each in enumerate(self.evaluations) if each and each.branches == BOTH}
        for n, step in enumerate(self.steps):
            for kind, j, _ in step:
                if j > n or (kind == "z" and j < n):
                    raise ValueError(f"step {n} cannot weigh {kind} {j}, which it does not have")
                if kind == "u0" and j not in both:
                    raise ValueError(f"step {n} weighs u0 {j}, which evaluations[{j}] leaves out")
                if kind not in TERMS and self.evaluations[j] is None:
                    raise ValueError(f"step {n} weighs {kind} of {j}, which asks nothing")

    def _check_cache(self) -> None:
        """Raises ValueError for a cache that no run of these evaluations can have."""
        try:
            _ = self.cache_policy
        except FewstepError as error:
            raise ValueError(f"cache: {error}") from error

    @model_serializer(mode="wrap")
    def _leave_out_none(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Writes cache and correction where they are, so that schedules without keep their ids."""
        body: dict[str, Any] = write(self)
        none = [name for name in ("cache", "correction") if getattr(self, name) is None]
        return {name: each for name, each in body.items() if name not in none}

    def _check_kept(self) -> None:
        """Raises ValueError for steps that keep more than any solver does."""
        last = {(kind, j): n for n, step in enumerate(self.steps) for kind, j, _ in step}
        total = sum(n - j for (_, j), n in last.items())
        if total > MAX_KEPT:
            raise ValueError(f"the steps keep {total:,} tensors in all; {MAX_KEPT:,} are the most")


def _choose_version(
    functions: Sequence[str],
    cache: CachedCalls | None = None,
    correction: Correction | None = None,
) -> Version:
    """Returns the least version that says all of a schedule."""
    if correction is not None:
        return CORRECTED
    if functions:
        return BEYOND
    return PLAIN if cache is None else CACHED


def _write_evaluation(evaluation: Evaluation | None) -> EvaluationData | None:
    if evaluation is None:
        return None
    return EvaluationData(t=evaluation.node.t, branches=evaluation.branches)
