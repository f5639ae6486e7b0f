"""Says whether two stores of `fewstep bench fid-nfe` hold the same figures, within their intervals.

    python recipes/compare_results.py results/quality.jsonl again.jsonl

Runs of one network, setting and NFE are compared; the seeds may be the same or others. Two figures
agree if their difference is at most k times the root of the sum of the squares of the halves of
their intervals, where k widens 95 % so far that in 95 % of honest repetitions all of them agree.
The exit code is 1 if one does not.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import hypot
from pathlib import Path
from statistics import NormalDist

from write_results import split_measures

from fewstep.eval.bench.rows import ResultStore
from fewstep.eval.bench.table import align_table
from fewstep.eval.experiments.fid_claims import FigureInterval, find_distance, find_figure
from fewstep.eval.experiments.fid_points import QualityPoint
from fewstep.models.errors import SettingError

LEVEL = 0.95
HEADER = ("network", "run", "NFE", "figure", "first", "second", "verdict")
Run = tuple[str, str, str, int]  # metric, network, setting, NFE


@dataclass(frozen=True)
class Repetition:
    """A figure in both stores.

    run: what was measured; what: its figure, distance or features.
    """

    run: Run
    what: str
    first: FigureInterval
    second: FigureInterval

    def agrees(self, widening: float) -> bool:
        """Returns whether both differ by no more than their intervals, widened, explain."""
        halves = [0.5 * (each.high - each.low) for each in (self.first, self.second)]
        slack = 1e-6 * abs(self.first.value)  # of rounding, where the samples are the same
        return abs(self.first.value - self.second.value) <= widening * hypot(*halves) + slack


def read_points(path: Path) -> dict[Run, QualityPoint]:
    """Returns the points of a store; raises SettingError if it has none, or they do not match."""
    tables = split_measures(ResultStore.existing(path).rows.values())
    return {
        (
            f"{table.measure.metric}, n = {table.measure.n}",
            each.network,
            each.setting,
            each.nfe,
        ): each
        for table in tables
        for each in table.points
    }


def list_figures(point: QualityPoint) -> dict[str, FigureInterval]:
    """Returns the figures of a point that have intervals."""
    figures = {"figure": find_figure(point), "distance": find_distance(point)}
    figures["features"] = find_distance(point, "features")
    return {name: each for name, each in figures.items() if each is not None}


def compare_stores(first: Path, second: Path) -> list[Repetition]:
    """Returns all figures that both stores have.

    Raises:
        SettingError: if there are none.
    """
    mine, theirs = read_points(first), read_points(second)
    pairs = [
        Repetition(run, what, figure, again[what])
        for run in mine
        if run in theirs
        for again in (list_figures(theirs[run]),)
        for what, figure in list_figures(mine[run]).items()
        if what in again
    ]
    if not pairs:
        raise SettingError(f"{first} and {second} have no figure with an interval in common")
    return pairs


def find_widening(count: int) -> float:
    """Returns k, by which intervals of 95 % are widened for so many comparisons."""
    normal = NormalDist()
    return normal.inv_cdf(1.0 - 0.5 * (1.0 - LEVEL) / count) / normal.inv_cdf(0.5 + 0.5 * LEVEL)


def write_verdicts(pairs: Sequence[Repetition], widening: float) -> Iterator[str]:
    """Yields the table, and how many agree."""
    rows = [HEADER]
    for each in pairs:
        metric, network, setting, nfe = each.run
        what = metric if each.what == "figure" else each.what
        verdict = "agree" if each.agrees(widening) else "DIFFER"
        rows.append((network, setting, str(nfe), what, str(each.first), str(each.second), verdict))
    yield from align_table(rows)
    agreeing = sum(each.agrees(widening) for each in pairs)
    yield f"\n{agreeing} of {len(pairs)} figures agree (k = {widening:.2f})."


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("first", type=Path)
    parser.add_argument("second", type=Path)
    given = parser.parse_args()
    try:
        pairs = compare_stores(given.first, given.second)
    except SettingError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    widening = find_widening(len(pairs))
    sys.stdout.writelines(f"{line}\n" for line in write_verdicts(pairs, widening))
    return 0 if all(each.agrees(widening) for each in pairs) else 1


if __name__ == "__main__":
    sys.exit(main())
