"""Figures of one machine: measured side by side, kept as they come, printed as a table."""

import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Literal

import torch

from .row_store import KeyedRow, RowStore
from .store import machine, versions

HEADER = ("run", "what", "measured", "asked", "")


@dataclass(frozen=True)
class Figure:
    """One measured number.

    job:   what was run for it; with the machine and the versions it is the key of the store.
    what:  which number of it.
    unit:  of the value, printed behind it.
    asked: what it is held against; None for nothing.
    sense: whether it must be at least, or at most, what is asked.
    """

    job: str
    what: str
    value: float
    unit: str = ""
    asked: float | None = None
    sense: Literal["least", "most"] = "least"

    @property
    def met(self) -> bool | None:
        if self.asked is None:
            return None
        return self.value >= self.asked if self.sense == "least" else self.value <= self.asked

    def cells(self, judged: bool) -> tuple[str, ...]:
        """One line of the table; not judged, it leaves open whether the value is good enough."""
        asked = "" if self.asked is None else f"at {self.sense} {self.asked:g}{self.unit}"
        said = {None: "", True: "met", False: "NOT MET"}[self.met] if judged else ""
        return self.job, self.what, f"{self.value:.4g}{self.unit}", asked, said


Job = Callable[[str], list[Figure]]  # from the name of what is run to what was measured


class Timing(KeyedRow):
    """A figure as it is stored, with where and by what it was measured."""

    machine: str
    fewstep: str
    torch: str
    diffusers: str
    job: str
    what: str
    value: float
    unit: str
    asked: float | None
    sense: Literal["least", "most"]

    @property
    def key(self) -> str:
        where = (self.machine, self.fewstep, self.torch, self.diffusers)
        return repr((where, self.job, self.what))

    @property
    def figure(self) -> Figure:
        return Figure(**{each.name: getattr(self, each.name) for each in fields(Figure)})


class Figures:
    """A store of figures, of which those of this machine and these versions count."""

    def __init__(self, path: Path, where: str) -> None:
        self.store = RowStore(path, Timing)
        self.store.check()
        self.here = {"machine": f"{where}, {machine()}", **versions()}

    @property
    def held(self) -> dict[str, list[Figure]]:
        """The figures of each job that was done here."""
        found: dict[str, list[Figure]] = {}
        for row in self.store.rows.values():
            if self.here.items() <= row.model_dump().items():
                found.setdefault(row.job, []).append(row.figure)
        return found

    def add(self, figures: Iterable[Figure]) -> None:
        """Keeps the figures of one job; they have reached the disk when this returns.

        Raises:
            SettingError: if the file cannot be written.
        """
        self.store.append(*(Timing.model_validate(self.here | asdict(each)) for each in figures))

    def turns(self, jobs: Sequence[tuple[str, Job]]) -> Iterator[tuple[str, Job]]:
        """The jobs that are this process's to do; see `RowStore.turns`."""
        return self.store.turns(
            jobs, lambda job: (*self.here.values(), job[0]), lambda job: job[0] in self.held
        )


def table(figures: Iterable[Figure], judged: bool) -> Iterator[str]:
    """The figures in Markdown, with a verdict on each target if they are to be judged."""
    rows = [HEADER, *(each.cells(judged) for each in figures)]
    rows = [(*_unless(row[0], above[0]), *row[1:]) for above, row in pairwise([("",), *rows])]
    widths = [max(len(row[k]) for row in rows) for k in range(len(HEADER))]
    for n, row in enumerate(rows):
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield "| " + " | ".join(cells) + " |"
        if n == 0:
            yield "| " + " | ".join("-" * width for width in widths) + " |"


def _unless(name: str, above: str) -> tuple[str]:
    """A name is not said again in the next row."""
    return ("" if name == above else name,)


def seconds(
    works: Mapping[str, Callable[[], object]], device: torch.device, repeats: int, warm: int = 3
) -> dict[str, float]:
    """The median wall time of each, in turn, after some runs that are not counted.

    Three of these are enough for what is recorded at its second run.

    The device has nothing to do when a clock starts and when it stops.
    """
    taken: dict[str, list[float]] = {name: [] for name in works}
    for n in range(repeats + warm):
        for name, work in works.items():
            wait_for(device)
            start = time.perf_counter()
            work()
            wait_for(device)
            if n >= warm:
                taken[name].append(time.perf_counter() - start)
    return {name: statistics.median(each) for name, each in taken.items()}


def wait_for(device: torch.device) -> None:
    """Until the device has done all that it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
