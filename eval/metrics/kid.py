"""Kernel distance of features."""

import torch
from torch import Tensor

from ..statistics import StatisticsError
from .base import SetMetric, register
from .features import Features, Need

SUBSETS = 100
SIZE = 1000


def kernel_distance(images: Features, reference: Features) -> float:
    """Mean over 100 pairs of subsets of up to 1,000 of the unbiased MMD^2, k = (x.y / D + 1)^3.

    May be below 0. Subsets are drawn without replacement from seed 0; sets of up to 1,000 are taken
    whole, once, if both are of that size.
    """
    x, y = images.rows["pool"], reference.rows["pool"]
    size = min(SIZE, len(x), len(y))
    if size < 2:
        raise StatisticsError("kid needs at least 2 images on each side")
    whole = size == len(x) == len(y)
    generator = torch.Generator().manual_seed(0)
    distances = [
        squared_mmd(_subset(x, size, generator), _subset(y, size, generator))
        for _ in range(1 if whole else SUBSETS)
    ]
    return sum(distances) / len(distances)


def squared_mmd(x: Tensor, y: Tensor) -> float:
    """Returns the unbiased estimate for x (N, D) and y (M, D), float32; sums are in float64."""
    n, m = len(x), len(y)
    xx, yy, xy = (_kernel(a, b) for a, b in ((x, x), (y, y), (x, y)))
    within_x = (_total(xx) - _total(xx.diagonal())) / (n * (n - 1))
    within_y = (_total(yy) - _total(yy.diagonal())) / (m * (m - 1))
    return within_x + within_y - 2.0 * _total(xy) / (n * m)


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    base = (x @ y.T).div_(x.shape[1]).add_(1.0)
    return base.square().mul_(base)


def _total(x: Tensor) -> float:
    return float(x.sum(dtype=torch.float64))


def _subset(rows: Tensor, size: int, generator: torch.Generator) -> Tensor:
    return rows[torch.randperm(len(rows), generator=generator)[:size]]


register(
    SetMetric("kid", "low", (Need("rows", "pool"),), "arXiv:1801.01401 eq. 4", kernel_distance)
)
