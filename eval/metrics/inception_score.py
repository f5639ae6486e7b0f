"""Inception Score."""

import statistics

from .base import SetMetric, register
from .features import Features, Need


def inception_score(images: Features, reference: Features) -> float:
    """Mean over splits of 5,000 images of exp(E KL(p(y|x) || p(y))); at least 1.

    The reference is not looked at. Published scores are of 50,000 images, in 10 splits.
    """
    return statistics.fmean(images.splits["probs"])


register(
    SetMetric(
        "is",
        "high",
        (Need("splits", "probs"),),
        "arXiv:1606.03498 sec. 4",
        inception_score,
        uses_reference=False,
        extractor="inception",
    )
)
