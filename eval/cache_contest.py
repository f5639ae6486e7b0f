"""The choice among caches of one cost, on noises that no setting was picked by.

Of many settings on a few dozen noises, the best looks better than it is, and the next ones are
often as good. So the leading ones of the cheapest cost are run on further blocks of noises, and
after each block those are dropped that are worse than the leader beyond chance. The winner must
keep the quality on these noises too; else the next cost has its turn.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..samplers.columns import RESAMPLED
from .bench.front_table import FrontPoint, FrontRun
from .cache_quality import Quality

SAME = 1.01  # times a cost that count as that cost
LEADING = 8  # settings of one cost, at most, that are run again
FURTHER = 4  # blocks of noises, at most

Judge = Callable[[FrontRun, int], Tensor]  # figures (n,) of a run on a block of noises, from 1


@dataclass(frozen=True)
class Finalist:
    """A setting, and what it gave on further noises.

    figures: of single images.
    """

    point: FrontPoint
    figures: Tensor

    def describe(self, quality: Quality) -> str:
        """Returns it with its figure, for a line of text."""
        return f"`{self.point.run.policy}` {quality.summarize(self.figures):.4g}"


def find_winner(
    able: Sequence[FrontPoint], quality: Quality, judge: Judge
) -> tuple[Finalist, ...] | None:
    """Returns the cheapest that keep the quality on further noises, the winner first.

    The others are those that are as good as the winner, or nearly. None if there is no winner.

    Args:
        able: settings that keep the quality on the noises of the calibration.
        quality: what is asked for.
        judge: runs a setting on a block of further noises.
    """
    for group in _group_by_cost(able):
        leading = sorted(group, key=lambda each: quality.badness(each.change or 0.0))[:LEADING]
        ranked = hold_contest(leading, quality, judge)
        if quality.met(quality.summarize(ranked[0].figures)):
            return ranked
    return None


def hold_contest(
    leading: Sequence[FrontPoint], quality: Quality, judge: Judge
) -> tuple[Finalist, ...]:
    """Returns those that no further noises tell apart from the best, best first."""
    finalists = [Finalist(each, torch.empty(0)) for each in leading]
    for block in range(1, FURTHER + 1):
        finalists = [
            Finalist(each.point, torch.cat([each.figures, judge(each.point.run, block)]))
            for each in finalists
        ]
        finalists.sort(key=lambda each: quality.badness(quality.summarize(each.figures)))
        best = finalists[0]
        finalists = [each for each in finalists if each is best or not _is_worse(each, best)]
        if len(finalists) == 1:
            break
    return tuple(finalists)


def _group_by_cost(points: Sequence[FrontPoint]) -> Iterator[list[FrontPoint]]:
    """Yields those of one cost together, cheap first."""
    group: list[FrontPoint] = []
    for each in sorted(points, key=lambda each: each.cost):
        if group and each.cost > SAME * group[0].cost:
            yield group
            group = []
        group.append(each)
    if group:
        yield group


def _is_worse(mine: Finalist, best: Finalist) -> bool:
    """Tells whether a setting differs from the best beyond chance, by noises drawn again in pairs.

    In which direction need not be asked, as the mean of the best is better.
    """
    apart = (mine.figures - best.figures).double().numpy()
    drawn = np.random.default_rng(0).integers(len(apart), size=(RESAMPLED, len(apart)))
    low, high = np.quantile(apart[drawn].mean(1), [0.025, 0.975])
    return bool(low > 0.0 or high < 0.0)
