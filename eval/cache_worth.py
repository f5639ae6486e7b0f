"""The worth of a cache: its runs beside runs without one that cost as much, on the same noises."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ..models.denoiser import Network
from ..samplers.cache_file import CacheFile, HeldOut, PlainFigure
from ..samplers.columns import RESAMPLED, Column
from ..samplers.guidance import CFG, Guidance
from ..samplers.plan import DEFAULT_SOLVER
from ..samplers.sampler import Result, Sampler
from ..samplers.schedule_choice import choose_default_schedule
from .teacher import teacher

Interval95 = tuple[float, float, float]  # a value, and the ends of its interval of 95 %


@dataclass(frozen=True)
class PlainRun:
    """A run without a cache.

    name:    what it is, in words.
    typed:   what `sample` draws it with, beside the network.
    choices: the same as the arguments of `make_plan`.
    """

    name: str
    typed: str
    choices: Mapping[str, Any]


def list_plain_runs(model: str, solver: str, nfe: int, guidance: Guidance) -> list[PlainRun]:
    """Returns the runs of so many evaluations that a cache stands beside.

    They are that of the same solver, and what `sample` draws with where nothing but an NFE is asked
    for: a schedule that was searched for the network, if the package has one, or else the default.
    """
    words = f"--nfe {nfe}"
    same = {"solver": solver, "nfe": nfe}
    runs = [PlainRun(f"{solver}, {nfe} evaluations", f"--solver {solver} {words}", same)]
    preset = choose_default_schedule(model, {"nfe": nfe}, guidance)
    if preset is not None:
        runs.append(
            PlainRun(f"the searched schedule of {nfe} evaluations", words, {"solver": preset})
        )
    elif same != {"solver": DEFAULT_SOLVER, "nfe": nfe}:
        runs.append(PlainRun(f"the default, {nfe} evaluations", words, {"nfe": nfe}))
    return runs


def compare_pairs(mine: Tensor, theirs: Tensor) -> Interval95:
    """Returns the ratio of two root mean squares over the same noises, and its 95 % interval.

    mine, theirs: mean squares (n,) of single noises, which are drawn again in pairs.
    """
    a, b = mine.double().numpy(), theirs.double().numpy()
    drawn = np.random.default_rng(0).integers(len(a), size=(RESAMPLED, len(a)))
    ratios = np.sqrt(a[drawn].mean(1) / b[drawn].mean(1))
    low, high = np.quantile(ratios, [0.025, 0.975])
    return float(np.sqrt(a.mean() / b.mean())), float(low), float(high)


@dataclass(frozen=True)
class CacheWorth:
    """Figures of a cached run on noises that its cache was not chosen on.

    All are relative to the size of the converged run's images; intervals are of 95 %.

    effective: evaluations.
    parts:     of the network that the cache can skip.
    images:    how many noises there are.
    drift:     from the run without the cache; distance: from the converged run.
    uncached:  the distance of the run without the cache.
    beside:    runs without a cache at the same cost, each with its distance and the ratio of the
               cached run's to it.
    """

    effective: float
    parts: int
    images: int
    drift: Column
    distance: Column
    uncached: Column
    beside: tuple[tuple[PlainRun, Column, Interval95], ...]

    def held_out(self) -> HeldOut:
        """Returns the figures that a file of the cache keeps."""
        return HeldOut(
            images=self.images,
            drift=self.drift.value,
            distance=self.distance.value,
            uncached=self.uncached.value,
            beside=tuple(PlainFigure(run=run.name, ratio=ratio) for run, _, ratio in self.beside),
        )

    def lines(self, network: str) -> Iterator[str]:
        """Yields what is printed: every figure, and whether the cache pays."""
        yield (
            f"on {self.images} other noises, relative, with the interval of 95 % and the median:"
        )
        yield f"  drift from the run without the cache: {self.drift}"
        yield f"  distance from the converged run: {self.distance}"
        yield f"  distance of the run without the cache: {self.uncached}"
        for run, column, _ in self.beside:
            yield f"  distance of {run.name}: {column}"
        yield judge_cache([(run, ratio) for run, _, ratio in self.beside], network)


def judge_cache(beside: Sequence[tuple[PlainRun, Interval95]], network: str) -> str:
    """Returns in one line whether a cache is worth it.

    beside: runs without one, each with the ratio of the cached run's distance to its own.
    """
    best, (ratio, low, high) = max(beside, key=lambda each: each[1][0])
    figures = f"its distance over that of {best.name} is {ratio:.2f} [{low:.2f}, {high:.2f}]"
    if high < 1.0:
        return f"the cache pays: {figures}"
    what = "is nearer" if low > 1.0 else "is as near"
    return f"the cache does not pay: `sample {network} {best.typed}` {what} without it; {figures}"


def measure_worth(
    network: Network,
    file: CacheFile,
    seeds: Sequence[int],
    *,
    reference_nfe: int = 200,
    folder: Path | None = None,
) -> CacheWorth:
    """Returns what a calibrated cache is worth on these noises, of all classes in turn.

    reference_nfe: evaluations of the converged run, of unipc-3.
    folder: an existing one that keeps the converged images.
    """
    classes = network.num_classes
    labels = [seed % classes for seed in seeds] if classes else None
    call: dict[str, Any] = {"class_labels": labels, "guidance": CFG(file.cfg_scale)}
    exact = teacher(network, seeds, solver="unipc-3", nfe=reference_nfe, cache=folder, **call)
    size = exact.double().square().mean()

    def draw(**choices: Any) -> Result:
        return Sampler(network)(seeds, **choices, **call)

    def square(samples: Tensor, target: Tensor = exact) -> Tensor:
        return (samples.double() - target.double()).square().flatten(1).mean(1) / size

    same = {"solver": file.solver, "nfe": file.nfe, **({"grid": file.grid} if file.grid else {})}
    cached, plain = draw(**same, cache=file.cache), draw(**same).samples
    mine, effective = square(cached.samples), cached.ledger.effective_nfe
    runs = list_plain_runs(network.name, file.solver, max(1, round(effective)), CFG(file.cfg_scale))
    squares = [square(draw(**run.choices).samples) for run in runs]
    compared = zip(runs, squares, strict=True)
    assert cached.ledger.cache is not None
    return CacheWorth(
        effective=effective,
        parts=cached.ledger.cache.parts,
        images=len(seeds),
        drift=Column.of(square(cached.samples, plain)),
        distance=Column.of(mine),
        uncached=Column.of(square(plain)),
        beside=tuple((run, Column.of(each), compare_pairs(mine, each)) for run, each in compared),
    )
