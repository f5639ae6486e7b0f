"""`fewstep bench scaling`: how time and memory grow with images, state, steps and processes.

The values of one axis run in turns within one process, on one thread. Memory is the peak of a
fresh process that does the same once, Python and its packages included. Two processes on one
machine stand in for many: each draws its share of whole batches, as a launcher deals them out.
"""

import multiprocessing
import resource
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor as Workers
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from ...models.errors import UnknownNameError
from ...models.gaussian import GaussianMixture
from ...models.hashing import hash_json
from ...models.schedule import RectifiedFlow
from ...samplers.sampler import Sampler
from ..bench.cell import Advance, Experiment
from ..bench.rows import MeasuredRow, open_times
from ..bench.store import RowStore
from ..bench.team import Team
from ..bench.timing import Quartiles, find_quartiles, record_turns, time_call
from ..teacher import compute_digest
from .overhead import Pair, make_ours

NETWORK, EVALUATIONS, BATCH, SHARED = "fashion-dit", 5, 16, 128
STATE_STEPS = 20


class ScalingRow(MeasuredRow):
    """The cost of one value of an axis.

    seconds:   quartiles over the turns of one run; mebibytes: peak memory, of all processes.
    digest:    of the samples, where shares of them are compared.
    """

    axis: str
    value: int
    seconds: Quartiles
    mebibytes: float
    turns: int
    digest: str | None = None

    @property
    def key(self) -> str:
        return f"{self.axis} {self.value}"


@dataclass(frozen=True)
class GrowthAxis:
    """A number that grows.

    values: in rising order.
    make:   returns the run of a value; None where the value is a number of processes.
    """

    name: str
    values: tuple[int, ...]
    make: Callable[[int], Callable[[], object]] | None = None


@cache
def _sampler() -> Sampler:
    return Sampler.from_pretrained(NETWORK)


def draw_batch(images: int) -> Callable[[], object]:
    """Returns a run that draws so many images at once."""
    labels = [seed % 10 for seed in range(images)]
    draw = partial(_sampler(), range(images), class_labels=labels)
    return partial(draw, nfe=EVALUATIONS, batch=images)


def step_state(kibibytes: int) -> Callable[[], object]:
    """Returns the steps of a solver on a state of a size, with a stored network output."""
    x = torch.ones(1, kibibytes * 256)
    return torch.inference_mode()(partial(make_ours(Pair("dpmpp-2m"), STATE_STEPS), x, 0.5 * x))


def take_steps(steps: int) -> Callable[[], object]:
    """Returns a whole run of one small image, its plan included, on a law in closed form."""
    law = GaussianMixture.single(torch.zeros(4), torch.ones(4))
    sampler = Sampler(law.network(RectifiedFlow(), (1, 2, 2)))
    return partial(sampler, range(1), solver="unipc-2", steps=steps)


AXES = {
    "batch": GrowthAxis("images at once", tuple(2**k for k in range(9)), draw_batch),
    "state": GrowthAxis("KiB of state", tuple(4**k for k in range(9)), step_state),
    "steps": GrowthAxis("steps", (10, 30, 100, 300, 1000), take_steps),
    "processes": GrowthAxis("processes", (1, 2)),
}


@dataclass
class ScalingBench(Experiment[GrowthAxis, ScalingRow]):
    """All axes on this machine; repeats: turns, after one that does not count."""

    store: RowStore[ScalingRow]
    axes: tuple[GrowthAxis, ...]
    repeats: int
    remarks: list[str] = field(default_factory=list)

    def cells(self) -> Sequence[GrowthAxis]:
        return self.axes

    def identify(self, cell: GrowthAxis) -> str:
        return cell.name

    def find_rows(self, cell: GrowthAxis) -> list[ScalingRow]:
        rows = [self.store.rows.get(f"{cell.name} {value}") for value in cell.values]
        return [row for row in rows if row is not None] if all(rows) else []

    def measure(self, cell: GrowthAxis, advance: Advance) -> list[ScalingRow]:
        """Returns the rows of one axis."""
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return list(_measure_axis(cell, self.repeats))
        finally:
            torch.set_num_threads(threads)


def _measure_axis(axis: GrowthAxis, repeats: int) -> Iterator[ScalingRow]:
    if (make := axis.make) is None:
        yield from _measure_shares(axis, repeats)
        return
    works = {value: partial(time_call, make(value)) for value in axis.values}
    for value, times in record_turns(works, repeats, warm=1).items():
        with _start_workers(1) as fresh:
            peak = fresh.submit(find_peak, make, value).result()
        yield _make_row(axis, value, times, peak)


def _make_row(
    axis: GrowthAxis, value: int, times: list[float], peak: float, **more: Any
) -> ScalingRow:
    turns, seconds = len(times), find_quartiles(times)
    what = {"axis": axis.name, "value": value}
    return ScalingRow.here(**what, seconds=seconds, mebibytes=peak, turns=turns, **more)


def find_peak(make: Callable[[int], Callable[[], object]], value: int) -> float:
    """Returns the peak memory of this process in MiB, once it has done the work of a value."""
    torch.set_num_threads(1)
    make(value)()
    return read_peak()


def read_peak() -> float:
    """Returns the peak memory of this process in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _start_workers(count: int) -> Workers:
    return ProcessPoolExecutor(count, mp_context=multiprocessing.get_context("spawn"))


def draw_share(images: int, team: Team) -> tuple[list[str], float]:
    """Returns the digest of each batch that is a process's to draw, and its peak memory in MiB."""
    torch.set_num_threads(1)
    parts = [range(i, min(i + BATCH, images)) for i in range(0, images, BATCH)]
    digests = []
    for seeds in team.share(parts):
        labels = [seed % 10 for seed in seeds]
        drawn = _sampler()(seeds, class_labels=labels, nfe=EVALUATIONS, batch=BATCH)
        digests.append(compute_digest(drawn.samples))
    return digests, read_peak()


def _measure_shares(axis: GrowthAxis, repeats: int) -> Iterator[ScalingRow]:
    crews = {count: _start_workers(count) for count in axis.values}
    results: dict[int, list[tuple[list[str], float]]] = {}

    def draw(count: int) -> None:
        teams = [Team(rank, count) for rank in range(count)]
        results[count] = list(crews[count].map(partial(draw_share, SHARED), teams))

    try:
        works = {count: partial(time_call, partial(draw, count)) for count in crews}
        taken = record_turns(works, repeats, warm=1)
    finally:
        for crew in crews.values():
            crew.shutdown()
    for count, times in taken.items():
        digests, peaks = zip(*results[count], strict=True)
        yield _make_row(axis, count, times, sum(peaks), digest=merge_digests(digests))


def merge_digests(shares: Sequence[Sequence[str]]) -> str:
    """Returns one digest of the batches of all processes, in the order of their seeds."""
    count = sum(map(len, shares))
    return hash_json([shares[i % len(shares)][i // len(shares)] for i in range(count)])


def open_bench(path: Path, axes: Sequence[str] | None = None, repeats: int = 5) -> ScalingBench:
    """Returns the bench of a store; axes: names of AXES, all where there is none.

    Raises:
        UnknownNameError: for another axis.
        SettingError: if the store holds times of another machine or another version.
    """
    for axis in axes or ():
        if axis not in AXES:
            raise UnknownNameError("axis", axis, AXES)
    store = open_times(path, ScalingRow)
    return ScalingBench(store, tuple(AXES[axis] for axis in axes or AXES), repeats)
