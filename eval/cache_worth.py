"""The worth of a cache: its runs beside runs without one that cost as much, on the same noises."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from ..samplers.guidance import Guidance
from ..samplers.plan import DEFAULT_SOLVER, choose_default_schedule
from .search.columns import RESAMPLED

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


def list_plain_runs(
    model: str, solver: str, nfe: int, guidance: Guidance, grid: str | None = None
) -> list[PlainRun]:
    """Returns the runs of so many evaluations that a cache stands beside.

    They are that of the same solver, and what `sample` draws with where nothing but an NFE is asked
    for: a schedule that was searched for the network, if the package has one, or else the default.
    """
    words = f"--nfe {nfe}"
    on = "" if grid is None else f" --grid {grid}"
    same = {"solver": solver, "nfe": nfe} | ({} if grid is None else {"grid": grid})
    runs = [PlainRun(f"{solver}, {nfe} evaluations", f"--solver {solver}{on} {words}", same)]
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


def judge_cache(beside: Sequence[tuple[PlainRun, Interval95]], network: str) -> str:
    """Returns in one line whether a cache is worth it.

    beside: runs without one, each with the ratio of the cached run's distance to its own.
    """
    best, (ratio, low, high) = max(beside, key=lambda each: each[1][0])
    told = f"its distance over that of {best.name} is {ratio:.2f} [{low:.2f}, {high:.2f}]"
    if high < 1.0:
        return f"the cache pays: {told}"
    what = "is nearer" if low > 1.0 else "is as near"
    return f"the cache does not pay: `sample {network} {best.typed}` {what} without it; {told}"
