"""The kinds of metrics and their registry. A new one is one file here and one test row.

A set metric compares two sets of images through features, of which it is given what it asked to
have kept. A pair metric compares each image with the one at its place in a reference run.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ...models.errors import SettingError
from ...models.extras import check_installed
from ...models.registry import Registry
from .features import Features, Need

Better = Literal["low", "high"]
SetFunction = Callable[[Features, Features], float]
PairFunction = Callable[[Tensor, Tensor], Tensor]
USUAL = "inception"  # the extractor that names do not mention


@dataclass(frozen=True)
class SetMetric:
    """A figure of two sets.

    needs:      what is kept of the images, and of the reference if it is looked at.
    function:   (images, reference) -> the figure.
    extractor:  the only one that the name allows, or None.
    """

    name: str
    better: Better
    needs: tuple[Need, ...]
    source: str
    function: SetFunction
    uses_reference: bool = True
    extractor: str | None = None

    def label(self, extractor: str) -> str:
        """Returns what its figures are called; all but `fid` say whose features they are of."""
        if extractor == USUAL:
            return "fid" if self.name == "fd" else self.name
        return f"{self.name}-{extractor.removeprefix('fd-')}"

    def check(self, extractor: str) -> None:
        """Raises SettingError if figures of that extractor must not bear this name."""
        if self.extractor not in (None, extractor):
            raise SettingError(
                f"{self.name} is a figure of the {self.extractor} network; with {extractor} ask for"
                " fd, kid, precision or recall"
            )


@dataclass(frozen=True)
class PairMetric:
    """A figure of each image beside its reference: float (B, C, H, W) in [-1, 1] twice -> (B,).

    needs: the optional dependency that computes it, if any.
    """

    name: str
    better: Better
    source: str
    function: PairFunction
    needs: str = ""


Metric = SetMetric | PairMetric
METRICS: Registry[Metric] = Registry("metric")

names, metric = METRICS.names, METRICS.get


def register(metric: Metric) -> None:
    """Adds a metric under its name, which can be taken once."""
    METRICS.add(metric.name, metric)


def pair_metric(name: str) -> PairMetric:
    """Returns the metric of pairs with that name.

    Raises:
        UnknownNameError: if there is no metric of that name.
        SettingError: if it compares sets of images, or what it needs is not installed.
    """
    entry = metric(name)
    if not isinstance(entry, PairMetric):
        pairs = [each for each in names() if isinstance(METRICS.get(each), PairMetric)]
        raise SettingError(f"{name} compares sets of images; take one of {', '.join(pairs)}")
    check_installed(*filter(None, [entry.needs]))
    return entry


def listing() -> list[tuple[str, ...]]:
    """Returns a header and a row per metric: the table of `fewstep list metrics`."""
    rows: list[tuple[str, ...]] = [("metric", "of", "better", "features", "rule", "source")]
    for name in names():
        each = METRICS.get(name)
        rule = (each.function.__doc__ or "").strip().splitlines()[0]
        of, features = "pairs", "-"
        if isinstance(each, SetMetric):
            of = "sets"
            features = " ".join([each.extractor or "any", *(need.output for need in each.needs)])
        rows.append((name, of, each.better, features, rule, each.source or "-"))
    return rows
