"""The log of a search: one JSON line per evaluated candidate, and all that a search remembers.

A search's folder holds one file per worker. A worker appends to its own and reads all of them, so
that a process that was killed goes on where it stopped, and several share one search without a
server. A last line that was cut short by a kill is set aside, never counted.
"""

import hashlib
import math
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, ValidationError, model_validator

from ...models.errors import SettingError
from ...models.files import claim, clear_locks, make_folder
from ...models.reading import StrictModel, first_problem
from ...solvers import Schedule, StepSchedule
from ..line_file import LineFile
from .size import SearchSize

MAX_WORKERS = 1024
SYNC_SECONDS = 1.0
Count = Annotated[int, Field(ge=0)]
Candidate = StepSchedule | Schedule  # steps, whose decisions can be moved, or a table


class Trial(StrictModel):
    """One evaluated candidate.

    id:       the schedule's; checked against it when a line is read.
    schedule: the candidate.
    score:    its objective on the training block, lower is better; None if it was not finite.
    strategy: what proposed it.
    parent:   id of the schedule it was made from, if any.
    seed:     of the search.
    evals:    network rows spent since the trial before, training and trajectories included.
    seconds:  wall time since the trial before.
    """

    id: str
    schedule: Annotated[Candidate, Field(discriminator="version")]
    score: Annotated[float, Field(allow_inf_nan=False)] | None
    strategy: str
    parent: str | None = None
    seed: int
    evals: Count
    seconds: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = 0.0

    @classmethod
    def of(cls, schedule: Candidate, score: float, **facts: object) -> "Trial":
        """Returns a trial; a score that is not finite counts as the worst."""
        finite = score if math.isfinite(score) else None
        return cls(id=schedule.schedule_id, schedule=schedule, score=finite, **facts)  # type: ignore[arg-type]

    @property
    def rank(self) -> tuple[float, str]:
        """The key to sort trials by: the score, worst if not finite, and equal ones by id."""
        return (math.inf if self.score is None else self.score), self.id

    @property
    def linear(self) -> bool:
        """True unless the schedule weighs functions of predictions or has a correction."""
        schedule = self.schedule
        return not (isinstance(schedule, Schedule) and (schedule.functions or schedule.correction))

    @model_validator(mode="after")
    def _id_is_its_own(self) -> Self:
        if self.id != self.schedule.schedule_id:
            raise ValueError("the id is not that of the schedule; the line was edited")
        return self


class Log:
    """The trials of one folder, each schedule once.

    folder: made if it does not exist.
    worker: the number of the file this process writes; the first that no living process holds.
    trials: schedule id -> trial, own ones in the order they were made.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.trials: dict[str, Trial] = {}
        self.own: list[Trial] = []
        self._synced = 0.0
        self._files: dict[Path, LineFile[Trial]] = {}
        self._held = ExitStack()
        for place in (folder, folder / "claims"):
            make_folder(place)
        for _ in clear_locks(folder / "claims", "*"):
            pass
        self.worker = self._free_worker()
        self.own = list(self._new(self._path))
        self.refresh()

    @property
    def _path(self) -> Path:
        return _path(self.folder, self.worker)

    def close(self) -> None:
        """Lets go of the worker's file, so that another process can take it up."""
        self._held.close()

    def refresh(self) -> None:
        """Takes in what other workers have written since.

        Raises:
            SettingError: for a line that is no trial; it names the line.
        """
        for path in sorted(self.folder.glob("worker-*.jsonl")):
            if path != self._path:
                for _ in self._new(path):
                    pass

    def append(self, trial: Trial) -> None:
        """Adds a trial, which outlives this process when this returns, and the machine soon.

        Raises:
            SettingError: if the file cannot be written.
        """
        sync = time.monotonic() - self._synced > SYNC_SECONDS
        self._file(self._path).append([trial.model_dump_json()], sync=sync)
        self._synced = time.monotonic() if sync else self._synced
        self.trials.setdefault(trial.id, trial)
        self.own.append(trial)

    @contextmanager
    def claim(self, id: str) -> Iterator[bool]:  # noqa: A002
        """Yields whether this worker may evaluate a schedule: nobody has done it, nobody is at it.

        The claim ends with the process that holds it.
        """
        with claim(self.folder / "claims" / id, lambda: self._has(id)) as mine:
            yield mine

    def best(self, size: SearchSize | None = None, count: int | None = None) -> list[Trial]:
        """Returns the trials of a size, or all, best first; those that failed come last."""
        return rank_trials(self.trials.values(), size)[:count]

    def digest(self) -> str:
        """sha256 of what this worker found, in order; wall times do not count."""
        lines = (trial.model_dump_json(exclude={"seconds"}) for trial in self.own)
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def _free_worker(self) -> int:
        """Returns the first worker whose file nobody holds, held from now on."""
        for worker in range(MAX_WORKERS):
            if self._held.enter_context(self._file(_path(self.folder, worker)).lock(wait=False)):
                return worker
        raise SettingError(
            f"{MAX_WORKERS} workers hold files in {str(self.folder)!r}; end some of them"
        )

    def _has(self, id: str) -> bool:  # noqa: A002
        self.refresh()
        return id in self.trials

    def _file(self, path: Path) -> LineFile[Trial]:
        return self._files.setdefault(path, LineFile(path, Trial))

    def _new(self, path: Path) -> Iterator[Trial]:
        """Yields the whole lines of a file that were not taken in before."""
        for number, trial in self._file(path).read():
            if isinstance(trial, ValidationError):
                raise SettingError(
                    f"line {number} of {str(path)!r} is damaged ({first_problem(trial)}); delete"
                    " that line to go on without it"
                )
            yield self._keep(trial)

    def _keep(self, trial: Trial) -> Trial:
        return self.trials.setdefault(trial.id, trial)


def rank_trials(trials: Iterable[Trial], size: SearchSize | None = None) -> list[Trial]:
    """Trials of a size, or all, best first."""
    chosen = (trial for trial in trials if size is None or size.fits(trial.schedule))
    return sorted(chosen, key=lambda trial: trial.rank)


def _path(folder: Path, worker: int) -> Path:
    return folder / f"worker-{worker}.jsonl"
