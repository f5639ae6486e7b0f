"""Ours beside the best hand-made runs of both sides, with intervals, at equal network rows.

An interval holds 95 % of a bootstrap over the groups of images of all blocks of seeds; all runs
drew the same seeds, so groups of one number belong together. A figure of a whole set, such as a
Frechet distance, enters by the pseudo-values of a delete-one-group jackknife,

    v_g = G v - (G - 1) v_without_g,   moved so that their mean is v.

The gap ratio is (v - c) / (w - c) of the figures of ours, v, of the best of diffusers, w, and of
the converged run, c: the share of diffusers' distance to the converged run that is left.
"""

from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..bench.rows import ResultRow
from ..bench.table import format_number
from .fid_points import SEARCHED, QualityPoint, QualityTable

DRAWS, SEED, SHARE = 4000, 0, 0.95
Values = NDArray[np.float64]


class FigureInterval(NamedTuple):
    """A figure, and the ends of its interval of 95 %."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        low, value, high = map(format_number, (self.low, self.value, self.high))
        return f"{value} ({low}..{high})"


def bootstrap(figure: Callable[..., Any], *columns: Sequence[float]) -> FigureInterval:
    """Returns a figure of the means of some columns; each draw takes the same groups of all.

    Raises:
        ValueError: for columns of unlike lengths.
    """
    values: Values = np.array(columns, dtype=np.float64)
    count = values.shape[1]
    taken = np.random.default_rng(SEED).integers(count, size=(DRAWS, count))
    drawn = figure(*values[:, taken].mean(2))
    tail = (1.0 - SHARE) / 2.0
    low, high = np.quantile(drawn, [tail, 1.0 - tail])
    return FigureInterval(float(figure(*values.mean(1))), float(low), float(high))


def list_pseudo_values(row: ResultRow) -> list[float]:
    """Returns one value of each group of a row, whose mean is the figure of the row."""
    count = len(row.groups)
    pseudo = [count * row.value - (count - 1) * (each.without or 0.0) for each in row.groups]
    shift = row.value - sum(pseudo) / count
    return [value + shift for value in pseudo]


def list_groups(point: QualityPoint, what: str) -> list[float]:
    """Returns a mean square of every group, over all blocks; what: distance or features."""
    return [float(getattr(each, what) or 0.0) for row in point.rows for each in row.groups]


def _pseudo_values(point: QualityPoint) -> list[float]:
    return [value for row in point.rows for value in list_pseudo_values(row)]


def find_distance(point: QualityPoint, what: str = "distance") -> FigureInterval | None:
    """Returns a root mean square distance to the converged run; None if it was not measured."""
    if not has_groups(point):
        return None
    return bootstrap(np.sqrt, list_groups(point, what))


def find_figure(point: QualityPoint) -> FigureInterval | None:
    """Returns the figure with its interval; None where figures of groups are not known."""
    groups = [each for row in point.rows for each in row.groups]
    if not groups or any(each.without is None for each in groups):
        return None
    return bootstrap(np.asarray, _pseudo_values(point))


def has_groups(point: QualityPoint) -> bool:
    """Returns whether a point has what intervals and distances need."""
    groups = [each for row in point.rows for each in row.groups]
    return bool(groups) and all(None not in (g.without, g.distance, g.features) for g in groups)


@dataclass(frozen=True)
class Claim:
    """Ours beside others at one number of network rows of one network.

    best:      the nearest of the hand-made runs of both sides.
    rival:     diffusers' run of the best figure.
    distance, features: ratios of ours to the best.
    difference: of the figure of ours less that of the best.
    gap:       the gap ratio to the rival; None where no converged run or no rival was measured.
    """

    network: str
    rows: int
    ours: QualityPoint
    best: QualityPoint
    rival: QualityPoint | None
    distance: FigureInterval
    features: FigureInterval
    difference: FigureInterval
    gap: FigureInterval | None


def list_claims(table: QualityTable) -> Iterator[Claim]:
    """Yields a claim for each network and number of rows at which ours and others were measured.

    Ours is a searched schedule. All are compared on the blocks of seeds that all of them have, in a
    store of which some rows are missing; where there is none there is no claim.
    """
    for network in table.networks:
        points = [p for p in table.points if p.network == network and has_groups(p)]
        converged = next((p for p in points if p.converged), None)
        others = [p for p in points if not p.converged]
        searched = [p for p in others if p.setting == SEARCHED]
        for ours in sorted(searched, key=lambda point: point.cost("rows")):
            hand_made = [p for p in others if p.setting != SEARCHED and _costs_alike(ours, p)]
            blocks = set(ours.blocks).intersection(*(p.blocks for p in hand_made))
            if hand_made and blocks:
                cut = [_take_blocks(p, blocks) for p in hand_made]
                same = converged and _take_blocks(converged, blocks)
                yield _claim(_take_blocks(ours, blocks), cut, same)


def _costs_alike(a: QualityPoint, b: QualityPoint) -> bool:
    return round(a.cost("rows")) == round(b.cost("rows"))


def _take_blocks(point: QualityPoint, blocks: Set[int]) -> QualityPoint:
    """Returns the point of some blocks of seeds alone, each by its first seed."""
    pairs = zip(point.blocks, point.rows, strict=True)
    return replace(point, rows=[row for block, row in pairs if block in blocks])


def _claim(
    ours: QualityPoint, hand_made: Sequence[QualityPoint], converged: QualityPoint | None
) -> Claim:
    best = min(hand_made, key=lambda point: sum(list_groups(point, "distance")))
    rivals = [point for point in hand_made if point.setting.startswith("diffusers ")]
    rival = min(rivals, key=lambda point: point.mean, default=None)
    gap = None
    if rival is not None and converged is not None and converged.blocks == ours.blocks:
        gap = bootstrap(_gap, *map(_pseudo_values, (ours, rival, converged)))
    ratios = {what: _compare(ours, best, what) for what in ("distance", "features")}
    difference = bootstrap(np.subtract, _pseudo_values(ours), _pseudo_values(best))
    rows = round(ours.cost("rows"))
    return Claim(ours.network, rows, ours, best, rival, **ratios, difference=difference, gap=gap)


def _compare(ours: QualityPoint, best: QualityPoint, what: str) -> FigureInterval:
    mine, other = list_groups(ours, what), list_groups(best, what)
    return bootstrap(lambda a, b: np.sqrt(a / b), mine, other)


def _gap(ours: Any, rival: Any, converged: Any) -> Any:
    return (ours - converged) / (rival - converged)


HEADER = (
    "rows", "best hand-made", "distance of ours", "ratio", "features, ratio", "figure, difference",
    "best of diffusers by figure", "gap ratio",
)  # fmt: skip


def tabulate_claims(claims: Sequence[Claim]) -> list[tuple[str, ...]]:
    """Returns header and rows of the claims of one network."""
    return [HEADER, *map(_line, claims)]


def _line(claim: Claim) -> tuple[str, ...]:
    rival = "-" if claim.rival is None else claim.rival.setting
    return (
        str(claim.rows),
        claim.best.setting,
        str(find_distance(claim.ours)),
        str(claim.distance),
        str(claim.features),
        str(claim.difference),
        rival,
        "-" if claim.gap is None else str(claim.gap),
    )
