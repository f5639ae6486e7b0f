"""Shows whether the default is ever worse with more evaluations, in both columns.

    python recipes/more_evaluations.py NETWORK ... [--store FILE] [--nfe 4-50] [--noises 48]

For each number of evaluations, the distance of the default from a converged run and that of
features (`fewstep.eval.experiments.distances`) stand beside the least of fewer evaluations: the
ratio of the root mean squares with its interval of 95 %, of noises drawn again with replacement. A
number is worse if that interval lies above 1.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from fewstep.eval.bench.table import markdown_table
from fewstep.eval.experiments.distances import (
    Distance,
    DistanceMeter,
    format_parts,
    open_distances,
)
from fewstep.models.arguments import parse_ranges

RESAMPLED = 2000  # times


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked.add_argument("networks", nargs="+", metavar="NETWORK")
    asked.add_argument("--store", type=Path, default=Path("evaluations.jsonl"))
    asked.add_argument("--nfe", default="4-50")
    asked.add_argument("--noises", type=int, default=48)
    asked.add_argument("--seed", type=int, default=40_000, help="the first")
    options = asked.parse_args()
    store, budgets = open_distances(options.store), sorted(parse_ranges(options.nfe))
    seeds, worse = range(options.seed, options.seed + options.noises), 0
    for name in options.networks:
        meter = DistanceMeter(name, seeds, store)
        rows = [meter.measure_default(nfe, seen=True) for nfe in budgets]
        print("\n".join(format_rows(name, rows)), flush=True)
        worse += count_worse(rows)
    print(f"\n{worse} of {2 * len(budgets) * len(options.networks)} are worse than fewer.")
    sys.exit(worse > 0)


def format_rows(name: str, rows: Sequence[Distance]) -> Iterator[str]:
    """Yields the table of a network."""
    yield f"\n## {name}\n"
    table = [("evaluations", "grid", "distance", "to the least", "features", "to the least")]
    columns = [compare_with_least([row.squares for row in rows])]
    seen = [row.features for row in rows if row.features]
    if seen:
        columns.append(compare_with_least(seen))
    for i, row in enumerate(rows):
        cells = [format_parts(row.squares), format_ratio(columns[0][i])]
        if seen:
            cells += [format_parts(seen[i]), format_ratio(columns[1][i])]
        table.append((str(row.run.nfe), f"`{row.run.grid}`", *cells, *[""] * (4 - len(cells))))
    yield from markdown_table(table)


def count_worse(rows: Sequence[Distance]) -> int:
    """Returns how many figures are worse than the least of fewer evaluations, in both columns."""
    seen = [row.features for row in rows if row.features]
    columns = (compare_with_least(each) for each in ([row.squares for row in rows], seen) if each)
    return sum(ratio is not None and ratio[1] > 1.0 for column in columns for ratio in column)


Ratio = tuple[float, float, float] | None  # and its interval; None for the first


def compare_with_least(rows: Sequence[Sequence[float]]) -> list[Ratio]:
    """Returns the ratio of each to the least before it, of root mean squares over noises."""
    ratios: list[Ratio] = [None]
    least = rows[0]
    for squares in rows[1:]:
        ratios.append(find_ratio(squares, least))
        least = min(least, squares, key=sum)
    return ratios


def find_ratio(squares: Sequence[float], others: Sequence[float]) -> tuple[float, float, float]:
    """Returns a ratio of root mean squares on the same noises, and its interval of 95 %."""
    pair = np.array([squares, others])
    chosen = np.random.default_rng(0).integers(pair.shape[1], size=(RESAMPLED, pair.shape[1]))
    drawn = np.sqrt(pair[0][chosen].sum(1) / pair[1][chosen].sum(1))
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(np.sqrt(pair[0].sum() / pair[1].sum())), float(low), float(high)


def format_ratio(ratio: Ratio) -> str:
    """Returns a ratio in words; a bold one is worse."""
    if ratio is None:
        return ""
    value, low, high = ratio
    text = f"{value:.2f} [{low:.2f}, {high:.2f}]"
    return f"**{text}**" if low > 1.0 else text


if __name__ == "__main__":
    main()
