"""Frechet distances between Gaussian fits of features."""

from ..statistics import frechet
from .base import SetMetric, register
from .features import Features, Need

POOL = Need("statistics", "pool")
SPATIAL = Need("statistics", "spatial")


def pool_distance(images: Features, reference: Features) -> float:
    """Frechet distance of the Gaussians of two sets of pooled features; FID with Inception."""
    return frechet(images.statistics["pool"], reference.statistics["pool"])


def spatial_distance(images: Features, reference: Features) -> float:
    """Frechet distance of 7 spatial channels of Inception (mixed_6/conv, 17 x 17 places)."""
    return frechet(images.statistics["spatial"], reference.statistics["spatial"])


register(
    SetMetric("fid", "low", (POOL,), "arXiv:1706.08500 eq. 6", pool_distance, extractor="inception")
)
register(SetMetric("fd", "low", (POOL,), "arXiv:1706.08500 eq. 6", pool_distance))
register(
    SetMetric(
        "sfid", "low", (SPATIAL,), "arXiv:2103.03841", spatial_distance, extractor="inception"
    )
)
