"""The rows that quality benchmarks keep: a protocol, its figure and what that cost."""

import os
import platform
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar

from pydantic import Field, ValidationError, model_validator

from ... import __version__
from ...models.errors import SettingError, shorten
from ...models.reading import StrictModel
from .protocol import Drawn, Protocol
from .store import KeyedRow, RowStore

Finite = Annotated[float, Field(allow_inf_nan=False)]


class SamplingCost(StrictModel):
    """Cost of drawing the images, per image; seconds are summed over the processes.

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


class TimeSpent(StrictModel):
    """Where the time of a cell went, in seconds summed over the processes."""

    sampling: Finite = 0.0
    features: Finite = 0.0
    total: Finite = 0.0

    @property
    def overhead(self) -> float:
        """Time that the harness added, as a share of sampling and extraction."""
        work = self.sampling + self.features
        return self.total / work - 1.0 if work else 0.0


class MeasuredRow(KeyedRow):
    """A row that says where and by what it was measured.

    versions: of the software that made it.
    machine:  where, in words.
    finished: when, in UTC.
    """

    versions: dict[str, str]
    machine: str
    finished: datetime

    @classmethod
    def here(cls, **figures: Any) -> Self:
        """Returns a row of figures that were finished here and now."""
        when = datetime.now(UTC).replace(microsecond=0)
        return cls(versions=versions(), machine=machine(), finished=when, **figures)


class GroupFigures(StrictModel):
    """Figures of one of the equal groups of a cell's images, by their place in the block of seeds.

    without:  the figure of the images of all other groups; None where the metric needs all.
    distance: mean square distance of the samples to those of the converged run; features: that of
              the features of the images. None where there is no converged run.
    """

    without: Finite | None = None
    distance: Finite | None = None
    features: Finite | None = None


class ResultRow(MeasuredRow):
    """One finished cell.

    hash:   of the protocol.
    value:  the figure.
    cost:   what the images cost; None for real ones.
    groups: figures of groups of the images, from which intervals follow.
    target: the setting of the converged run that distances are to, see `Protocol.setting`.
    quartiles: of the values whose median the figure is.
    """

    hash: str
    protocol: Protocol
    value: Finite
    cost: SamplingCost | None = None
    clock: TimeSpent = TimeSpent()
    processes: int = 1
    groups: tuple[GroupFigures, ...] = ()
    target: str | None = None
    quartiles: tuple[Finite, Finite] | None = None

    @property
    def key(self) -> str:
        return self.hash

    @property
    def line(self) -> str:
        return self.model_dump_json(exclude_none=True)

    @model_validator(mode="before")
    @classmethod
    def _renew_hash(cls, data: Any) -> Any:
        """Gives a row whose schedule is of version 1 the hash of the table that this is read as."""
        if (older := _older_schedule(data)) is None:
            return data
        try:
            protocol = Protocol.model_validate(data["protocol"])
        except ValidationError:
            return data  # the fields themselves say what is wrong
        former = protocol.hash_under({key: v for key, v in older.items() if key != "provenance"})
        return {**data, "hash": protocol.hash} if data.get("hash") == former else data

    @model_validator(mode="after")
    def _check_hash(self) -> Self:
        if self.hash != self.protocol.hash:
            raise ValueError("the hash is not that of the protocol; the line was edited")
        return self

    @classmethod
    def now(cls, protocol: Protocol, value: float, **figures: Any) -> Self:
        """Returns a row finished here and now."""
        return cls.here(hash=protocol.hash, protocol=protocol, value=value, **figures)


M = TypeVar("M", bound=MeasuredRow)


def check_here(rows: Iterable[MeasuredRow], path: Path, *, times: bool = False) -> None:
    """Refuses a store with rows of another version of fewstep, torch or diffusers.

    times: whether the rows hold times, which compare on one machine alone.

    Raises:
        SettingError: for the first such row.
    """
    here = {**versions(), **({"machine": machine()} if times else {})}
    for row in rows:
        made = {**row.versions, "machine": row.machine}
        for name, mine in here.items():
            if (other := made.get(name, "?")) != mine:
                raise SettingError(
                    f"{shorten(path)} was measured by {name} {other!r}, and here it is {mine!r}:"
                    " their rows do not stand in one store; give another name"
                )


def check_weights(store: "ResultStore", model: str, weights: str | None) -> None:
    """Refuses a store with rows of a network of this name with other weights.

    Raises:
        SettingError: for the first such row.
    """
    for row in store.rows.values():
        images = row.protocol.images
        if isinstance(images, Drawn) and images.run.model == model and images.weights != weights:
            raise SettingError(
                f"{shorten(store.path)} holds rows of {model} with other weights: their rows do not"
                " stand in one store; give another name"
            )


def open_times(path: Path, kind: type[M]) -> RowStore[M]:
    """Returns the store of rows that hold times.

    Raises:
        SettingError: if it holds rows of another machine or another version, or none could be
            added.
    """
    store = RowStore(path, kind)
    store.check()
    check_here(store.rows.values(), path, times=True)
    return store


def _older_schedule(data: Any) -> dict[str, Any] | None:
    """Returns the schedule of version 1 in the JSON of a row, if there is one."""
    for name in ("protocol", "images", "run", "schedule"):
        data = data.get(name) if isinstance(data, dict) else None
    return data if isinstance(data, dict) and data.get("version") == 1 else None


class ResultStore(RowStore[ResultRow]):
    """The rows of quality benchmarks."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, ResultRow)

    def check(self) -> None:
        """Raises SettingError if rows could not be added, or were made by another version."""
        super().check()
        check_here(self.rows.values(), self.path)

    @classmethod
    def existing(cls, path: Path) -> "ResultStore":
        """Returns the store of a file; raises SettingError if it is not there, or holds no row."""
        store = cls(path)
        if not store.rows:
            raise SettingError(
                f"there is no row in {str(path)!r}; give a file that `fewstep bench fid-nfe` has"
                " written"
            )
        return store


def versions() -> dict[str, str]:
    """Returns those of fewstep and of the packages that a figure can depend on."""
    from importlib.metadata import version

    return {"fewstep": __version__, **{name: version(name) for name in ("torch", "diffusers")}}


def machine() -> str:
    """Returns this machine in words: processor, cores that may be used, GPU, system."""
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
