"""The store of figures: one JSON line per finished cell, appended and never rewritten.

A line is written in one piece and reaches the disk before the next cell starts. If a run is killed
while writing, the file ends in half a line: the next writer moves that half to `<store>.broken`
and goes on, so nothing that was finished is lost or hidden.
"""

import fcntl
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Annotated, Self

from pydantic import Field, ValidationError, model_validator

from .. import __version__
from ..models.errors import SettingError
from ..solvers.schedule_data import first_problem
from .protocol import Protocol, Strict

Finite = Annotated[float, Field(allow_inf_nan=False)]


class Cost(Strict):
    """What drawing the images cost, per image; seconds are summed over the processes.

    nfe:       network evaluations; a guided one counts once.
    rows:      images that went through the network; a guided evaluation counts twice.
    effective: evaluations of the whole network at one row that would take as many FLOPs. Equal to
               `rows` as long as nothing skips a part of the network.
    flops:     floating-point operations, two per multiplication and addition; 0 where the network
               cannot be counted.
    seconds:   of sampling.
    """

    nfe: Finite
    rows: Finite
    effective: Finite
    flops: Finite
    seconds: Finite


class Clock(Strict):
    """Where the time of a cell went, in seconds summed over the processes."""

    sampling: Finite = 0.0
    features: Finite = 0.0
    total: Finite = 0.0

    @property
    def overhead(self) -> float:
        """What the harness added, as a share of sampling and extraction."""
        work = self.sampling + self.features
        return self.total / work - 1.0 if work else 0.0


class Row(Strict):
    """One finished cell.

    hash:     of the protocol.
    value:    the figure.
    cost:     what the images cost; None for real ones.
    versions: of the software that made it.
    machine:  where, in words.
    finished: when, in UTC.
    """

    hash: str
    protocol: Protocol
    value: Finite
    cost: Cost | None = None
    clock: Clock = Clock()
    processes: int = 1
    versions: dict[str, str]
    machine: str
    finished: datetime

    @model_validator(mode="after")
    def _hash_is_its_own(self) -> Self:
        if self.hash != self.protocol.hash:
            raise ValueError("the hash is not that of the protocol; the line was edited")
        return self

    @classmethod
    def now(cls, protocol: Protocol, value: float, **figures: object) -> "Row":
        """A row finished here and now."""
        return cls(
            hash=protocol.hash,
            protocol=protocol,
            value=value,
            versions=versions(),
            machine=machine(),
            finished=datetime.now(UTC).replace(microsecond=0),
            **figures,  # type: ignore[arg-type]
        )


class Store:
    """The rows of one file, by hash; of two with the same hash the later one counts.

    path:   the file; it is made with the first row.
    rows:   hash -> row, in the order of the file.
    broken: what is wrong with each line that could not be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[str, Row] = {}
        self.broken: list[str] = []
        for number, line in enumerate(_lines(path), start=1):
            try:
                self._keep(Row.model_validate_json(line))
            except ValidationError as error:
                self.broken.append(f"line {number} of {str(path)!r}: {first_problem(error)}")

    @classmethod
    def existing(cls, path: Path) -> "Store":
        """The store of a file that is there; raises SettingError if it is not, or holds no row."""
        store = cls(path)
        if not store.rows:
            why = store.broken[0] if store.broken else f"there is no row in {str(path)!r}"
            raise SettingError(f"{why}; give a file that `fewstep bench fid-nfe` has written")
        return store

    def _keep(self, row: Row) -> None:
        self.rows.pop(row.hash, None)
        self.rows[row.hash] = row

    def append(self, row: Row) -> None:
        """Adds a row, which has reached the disk when this returns.

        Raises:
            SettingError: if the file cannot be written.
        """
        try:
            with _locked(self.path) as file:
                _set_half_line_aside(self.path, file)
                file.seek(0, os.SEEK_END)
                file.write(row.model_dump_json(exclude_none=True).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise SettingError(f"cannot write {str(self.path)!r}: {error.strerror}") from error
        self._keep(row)


def _lines(path: Path) -> list[bytes]:
    try:
        return [line for line in path.read_bytes().split(b"\n") if line.strip()]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise SettingError(f"cannot read {str(path)!r}: {error.strerror}") from error


@contextmanager
def _locked(path: Path) -> Iterator[IO[bytes]]:
    """The file open for reading and appending, held by this process alone."""
    with path.open("a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file  # closing it lets go


def _set_half_line_aside(path: Path, file: IO[bytes]) -> None:
    """Ends a last line without a newline: a whole row is kept, half a one goes to `.broken`."""
    file.seek(0)
    body = file.read()
    start = body.rfind(b"\n") + 1
    tail = body[start:]
    if not tail:
        return
    if _is_row(tail):
        file.write(b"\n")
        return
    with path.with_name(f"{path.name}.broken").open("ab") as aside:
        aside.write(tail + b"\n")
    file.truncate(start)


def _is_row(line: bytes) -> bool:
    try:
        Row.model_validate_json(line)
    except ValidationError:
        return False
    return True


def versions() -> dict[str, str]:
    """Of fewstep and of the packages that a figure can depend on."""
    from importlib.metadata import version

    return {"fewstep": __version__, **{name: version(name) for name in ("torch", "diffusers")}}


def machine() -> str:
    """This machine in words: processor, cores that may be used, GPU, system."""
    import torch

    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{_processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads{gpu}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
