"""Precision and recall: how much of one set lies in the manifold of the other."""

import torch
from torch import Tensor

from ..statistics import StatisticsError
from .base import SetMetric, register
from .features import Features, Need

NEIGHBOURS = 3
BLOCK = 1024


def precision(images: Features, reference: Features) -> float:
    """Share of images that lie in the reference's manifold, 0 to 1."""
    return measure_coverage(images.rows["pool"], reference.rows["pool"])


def recall(images: Features, reference: Features) -> float:
    """Share of reference images that lie in the images' manifold, 0 to 1."""
    return measure_coverage(reference.rows["pool"], images.rows["pool"])


def measure_coverage(points: Tensor, manifold: Tensor, neighbours: int = NEIGHBOURS) -> float:
    """Returns the share of points (N, D) as near to a row of manifold as its k-th neighbour.

    Computed in blocks: memory is that of 1024 x M distances.
    """
    if len(manifold) <= neighbours:
        raise StatisticsError(
            f"precision and recall need more than {neighbours} images on each side,"
            f" not {len(manifold)}"
        )
    middle = manifold.mean(0)  # distances stay, and float32 loses less of them
    points, manifold = points - middle, manifold - middle
    blocks = torch.split(manifold, BLOCK)
    # of the k + 1 nearest rows the first is the row itself
    nearest = [torch.cdist(block, manifold).kthvalue(neighbours + 1).values for block in blocks]
    radii = torch.cat(nearest)
    inside = [
        (torch.cdist(block, manifold) <= radii).any(1) for block in torch.split(points, BLOCK)
    ]
    return float(torch.cat(inside).double().mean())


for _name, _function in (("precision", precision), ("recall", recall)):
    register(
        SetMetric(_name, "high", (Need("rows", "pool"),), "arXiv:1904.06991 sec. 3", _function)
    )
