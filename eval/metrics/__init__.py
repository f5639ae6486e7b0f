"""Metrics: figures of sets of images and of pairs, behind one table of names."""

from importlib import import_module
from pkgutil import iter_modules

from .base import Metric, PairMetric, SetMetric, listing, metric, names, pair_metric
from .features import Features, Gather, Need

for _module in sorted(module.name for module in iter_modules(__path__)):
    import_module(f"{__name__}.{_module}")

__all__ = [
    "Features",
    "Gather",
    "Metric",
    "Need",
    "PairMetric",
    "SetMetric",
    "listing",
    "metric",
    "names",
    "pair_metric",
]
