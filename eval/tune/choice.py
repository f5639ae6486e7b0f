"""The choice of a plan: a simpler one is left only for one that is better in the two columns."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import t
from torch import tensor

from ...models.errors import SettingError
from ...samplers.plan_file import Kind
from ..cache_worth import Interval95, compare_pairs
from .judge import PointRow

COMPLEXITY: dict[Kind, int] = {  # a kind of more is taken only where it is better than the others
    "named": 0,
    "preset": 0,
    "searched": 1,
    "cache": 2,
    "guidance": 2,
    "joint": 3,
}
NOTICED = 0.98  # of a column: the least gain that another setting is taken for
SIMPLE = ("named", "preset")  # kinds that anyone can type


@dataclass(frozen=True)
class RowChoice:
    """The recommended setting.

    row:    of it. beaten: the simpler one that it is better than, if there is one.
    reason: why, in words.
    """

    row: PointRow
    beaten: PointRow | None
    reason: str


def compare_columns(mine: PointRow, theirs: PointRow) -> list[Interval95]:
    """Returns the ratio of the distances, and that of the features where they are known.

    Each has its interval of 95 % over noises, the same for both settings.
    """
    pairs = [(mine.distances, theirs.distances)]
    if mine.features is not None and theirs.features is not None:
        pairs.append((mine.features, theirs.features))
    return [widen(compare_pairs(tensor(a), tensor(b)), len(a)) for a, b in pairs]


def widen(interval: Interval95, n: int) -> Interval95:
    """Returns an interval of a ratio as wide as Student's distribution has it for n noises.

    Noises that are drawn again have sqrt((n - 1) / n) of the spread that new ones would have.
    """
    ratio, low, high = interval
    if n < 2 or min(ratio, low) <= 0.0:
        return interval
    factor = math.sqrt(n / (n - 1)) * float(t.ppf(0.975, n - 1)) / 1.96
    return ratio, ratio * (low / ratio) ** factor, ratio * (high / ratio) ** factor


def is_better(mine: PointRow, theirs: PointRow) -> bool:
    """Returns whether a column is better beyond the interval, and none is worse beyond it.

    Where nothing sees the images, the distance alone decides. Less than two percent is no gain,
    however narrow its interval: a table that starts at another one ends just beside it.
    """
    ratios = compare_columns(mine, theirs)
    gains = any(ratio <= NOTICED and high < 1.0 for ratio, _, high in ratios)
    return gains and all(low <= 1.0 for _, low, _ in ratios)


def rank(row: PointRow) -> tuple[float, float]:
    """Returns the product of both columns, and the cost: of two that are alike the cheaper one."""
    columns = row.point.columns
    if columns is None:
        return math.inf, 0.0
    seen = columns.features or columns.distance
    return columns.distance.value * seen.value, row.point.cost.effective


def choose_row(rows: Sequence[PointRow]) -> RowChoice:
    """Returns the recommended setting, from the simplest to the most complex.

    It begins with the best of the simplest; each after that, in the order of its kind and then of
    its rank, takes its place only if it is better. So none is taken for its rank alone, and a cache
    only if it pays beside every table.

    Args:
        rows: on the same noises.

    Raises:
        SettingError: if none of them is of a setting that fewstep runs.
    """
    usable = [each for each in rows if each.point.settings is not None]
    if not usable:
        raise SettingError("nothing that was tried ends in finite samples; check the network")
    row, *others = sorted(usable, key=lambda each: (COMPLEXITY[each.point.kind], *rank(each)))
    beaten = None
    for each in others:
        if is_better(each, row):
            row, beaten = each, row
    return RowChoice(row, beaten, _explain(row, beaten))


def _explain(row: PointRow, beaten: PointRow | None) -> str:
    if beaten is not None:
        return f"it is better than the best simpler setting: {describe_ratios(row, beaten)}"
    if row.point.kind in SIMPLE:
        return "nothing searched is better than this in one column and not worse in the other"
    return "nothing simpler fits"


def describe_ratios(mine: PointRow, theirs: PointRow) -> str:
    """Returns how two settings compare, in words."""
    names = ("distance", "feature distance")
    said = [
        f"{ratio:.2f} [{low:.2f}, {high:.2f}] of the {name}"
        for (ratio, low, high), name in zip(compare_columns(mine, theirs), names, strict=False)
    ]
    return f"{' and '.join(said)} of {theirs.point.name}, on {mine.point.count} noises"
