"""Figures of one machine: measured side by side, kept as they come, printed as a table."""

import json
import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Literal

import torch

from ..models.errors import SettingError
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


class Figures:
    """A file of figures, one JSON line each, appended when they are measured.

    Those of another machine, of other versions and half lines are left where they are.
    """

    def __init__(self, path: Path, where: str) -> None:
        self.path = path
        self.here = {"machine": f"{where}, {machine()}", **versions()}
        self.held: dict[str, list[Figure]] = {}
        for line in _lines(path):
            if (figure := self._own(line)) is not None:
                self.held.setdefault(figure.job, []).append(figure)

    def add(self, figures: Iterable[Figure]) -> None:
        """Keeps the figures of one job; they have reached the disk when this returns.

        Raises:
            SettingError: if the file cannot be written.
        """
        found = list(figures)
        lines = "".join(json.dumps({**self.here, **asdict(each)}) + "\n" for each in found)
        try:
            with self.path.open("a+b") as file:
                body = lines.encode()
                file.seek(0, os.SEEK_END)
                if file.tell() and not _ends_whole(self.path):
                    body = b"\n" + body
                file.write(body)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise SettingError(f"cannot write {str(self.path)!r}: {error.strerror}") from error
        for each in found:
            self.held.setdefault(each.job, []).append(each)

    def _own(self, line: str) -> Figure | None:
        try:
            body = json.loads(line)
            if any(body.pop(name) != value for name, value in self.here.items()):
                return None
            return Figure(**{each.name: body[each.name] for each in fields(Figure)})
        except (ValueError, KeyError, TypeError, AttributeError):
            return None


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


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise SettingError(f"cannot read {str(path)!r}: {error.strerror}") from error


def _ends_whole(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
