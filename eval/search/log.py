"""The log of a search: one JSON line per evaluated candidate, and all that a search remembers.

A search's folder holds one file per worker. A worker appends to its own and reads all of them, so
that a process that was killed goes on where it stopped, and several share one search without a
server. A last line that was cut short by a kill is set aside, never counted.
"""

import fcntl
import hashlib
import math
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ...models.errors import SettingError
from ...solvers import Schedule
from ...solvers.schedule_data import first_problem
from .size import Size

MAX_WORKERS = 1024
SYNC_SECONDS = 1.0
Count = Annotated[int, Field(ge=0)]


class Trial(BaseModel):
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

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str
    schedule: Schedule
    score: Annotated[float, Field(allow_inf_nan=False)] | None
    strategy: str
    parent: str | None = None
    seed: int
    evals: Count
    seconds: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = 0.0

    @classmethod
    def of(cls, schedule: Schedule, score: float, **facts: object) -> "Trial":
        """A trial; a score that is not finite counts as the worst."""
        kept = score if math.isfinite(score) else None
        return cls(id=schedule.schedule_id, schedule=schedule, score=kept, **facts)  # type: ignore[arg-type]

    @property
    def rank(self) -> tuple[float, str]:
        """What trials are sorted by: the score, worst if not finite, and equal ones by id."""
        return (math.inf if self.score is None else self.score), self.id

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
        self._read: dict[Path, int] = {}  # bytes of each file that have been taken in
        try:
            (folder / "claims").mkdir(parents=True, exist_ok=True)
            self.worker, self._file = _free_file(folder)
        except OSError as error:
            raise SettingError(f"cannot keep a log in {str(folder)!r}: {error.strerror}") from error
        _set_half_line_aside(self._path, self._file)
        self.own = list(self._new(self._path))
        self.refresh()

    @property
    def _path(self) -> Path:
        return _path(self.folder, self.worker)

    def close(self) -> None:
        """Lets go of the worker's file, so that another process can take it up."""
        self._file.close()

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
        line = trial.model_dump_json().encode() + b"\n"
        try:
            self._file.write(line)
            self._file.flush()
            if time.monotonic() - self._synced > SYNC_SECONDS:
                os.fsync(self._file.fileno())
                self._synced = time.monotonic()
        except OSError as error:
            raise SettingError(f"cannot write {str(self._path)!r}: {error.strerror}") from error
        self._read[self._path] = self._read.get(self._path, 0) + len(line)
        self.trials.setdefault(trial.id, trial)
        self.own.append(trial)

    @contextmanager
    def claim(self, id: str) -> Iterator[bool]:  # noqa: A002
        """Whether this worker may evaluate a schedule: nobody has done it, nobody is at it.

        The claim is a file lock, so that it ends with the process that holds it.
        """
        path = self.folder / "claims" / id
        with path.open("wb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            try:
                self.refresh()
                yield id not in self.trials
            finally:
                path.unlink(missing_ok=True)

    def best(self, size: Size | None = None, count: int | None = None) -> list[Trial]:
        """The trials of a size, or all, best first; those that failed come last."""
        return ranked(self.trials.values(), size)[:count]

    def digest(self) -> str:
        """sha256 of what this worker found, in order; wall times do not count."""
        lines = (trial.model_dump_json(exclude={"seconds"}) for trial in self.own)
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def _new(self, path: Path) -> Iterator[Trial]:
        """The whole lines of a file that were not taken in before."""
        start = self._read.get(path, 0)
        with path.open("rb") as file:
            file.seek(start)
            body = file.read()
        whole = body[: body.rfind(b"\n") + 1]
        for line in whole.splitlines():
            yield self._keep(_parsed(path, line, start))
            start += len(line) + 1
        self._read[path] = start

    def _keep(self, trial: Trial) -> Trial:
        return self.trials.setdefault(trial.id, trial)


def ranked(trials: Iterable[Trial], size: Size | None = None) -> list[Trial]:
    """Trials of a size, or all, best first."""
    kept = (trial for trial in trials if size is None or size.fits(trial.schedule))
    return sorted(kept, key=lambda trial: trial.rank)


def _path(folder: Path, worker: int) -> Path:
    return folder / f"worker-{worker}.jsonl"


def _free_file(folder: Path) -> tuple[int, IO[bytes]]:
    """The first worker's file that nobody holds, held from now on."""
    for worker in range(MAX_WORKERS):
        file = _path(folder, worker).open("a+b")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
        else:
            return worker, file
    raise SettingError(f"{MAX_WORKERS} workers hold files in {str(folder)!r}; end some of them")


def _set_half_line_aside(path: Path, file: IO[bytes]) -> None:
    """Moves a last line without its newline to `.broken`: the kill that cut it came first."""
    file.seek(0)
    body = file.read()
    start = body.rfind(b"\n") + 1
    if not body[start:]:
        return
    with path.with_name(f"{path.name}.broken").open("ab") as aside:
        aside.write(body[start:] + b"\n")
    file.truncate(start)


def _parsed(path: Path, line: bytes, start: int) -> Trial:
    try:
        return Trial.model_validate_json(line)
    except ValidationError as error:
        with path.open("rb") as file:
            number = file.read(start).count(b"\n") + 1
        raise SettingError(
            f"line {number} of {str(path)!r} is damaged ({first_problem(error)}); delete that line"
            " to go on without it"
        ) from error
