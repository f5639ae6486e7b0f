"""Figures of one machine: measured side by side, kept as they come, printed as a table."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from functools import partial
from itertools import pairwise
from typing import Literal

import torch

from ..bench.store import KeyedRow
from ..bench.table import align_table
from ..bench.timing import measure_in_turns, time_call

HEADER = ("run", "what", "measured", "asked", "")


@dataclass(frozen=True)
class GpuFigure:
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
        """Returns one line of the table; judged, it says whether the value is good enough."""
        asked = "" if self.asked is None else f"at {self.sense} {self.asked:g}{self.unit}"
        said = {None: "", True: "met", False: "NOT MET"}[self.met] if judged else ""
        return self.job, self.what, f"{self.value:.4g}{self.unit}", asked, said


class GpuRow(KeyedRow):
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
    def figure(self) -> GpuFigure:
        return GpuFigure(**{each.name: getattr(self, each.name) for each in fields(GpuFigure)})


def table(figures: Iterable[GpuFigure], judged: bool) -> Iterator[str]:
    """Returns the figures in Markdown, with a verdict on each target if they are to be judged."""
    rows = [HEADER, *(each.cells(judged) for each in figures)]
    rows = [(*_name_once(row[0], above[0]), *row[1:]) for above, row in pairwise([("",), *rows])]
    return align_table(rows, left=len(HEADER))


def _name_once(name: str, above: str) -> tuple[str]:
    """Returns the name of a job, or nothing where it stands in the row above."""
    return ("" if name == above else name,)


def time_medians(
    works: Mapping[str, Callable[[], object]], device: torch.device, repeats: int, warm: int = 3
) -> dict[str, float]:
    """Returns the median wall time of each, in turns.

    warm: turns before those that count; three are enough for what is recorded at its second run.
    """
    timed = {
        name: partial(time_call, work, partial(wait_for, device)) for name, work in works.items()
    }
    return measure_in_turns(timed, repeats, warm)


def wait_for(device: torch.device) -> None:
    """Waits until the device has nothing left to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
