"""How images become a figure: the metric, the extractor and the reference of a sweep."""

from dataclasses import dataclass
from pathlib import Path

from ...models.errors import SettingError
from ..bench.protocol import Measure, file_sha256
from ..data import ImageSet
from ..extractors import Extractor, extractor
from ..metrics import Features, SetMetric, metric
from ..metrics.command import side
from ..metrics.measure import reference_features
from .fid_partial import Partial, features_of
from .fid_sweep import Sweep


@dataclass(frozen=True)
class ImageEvaluator:
    """How images become a figure: the metric, its features, and the reference side of it."""

    metric: SetMetric
    extractor: Extractor
    reference: Features
    measure: Measure

    def value(self, part: Partial) -> float:
        """Returns the figure of what was gathered."""
        features = features_of(part, self.metric.needs, self.extractor)
        return self.metric.function(features, self.reference)


def make_evaluator(
    sweep: Sweep, device: str = "cpu", weights: Path | None = None
) -> ImageEvaluator:
    """Returns the evaluator that a sweep asks for.

    Args:
        sweep: names the metric and the reference.
        device: where the extractor runs.
        weights: of the extractor, if not found by itself.

    Raises:
        FewstepError: for a metric that does not exist or judges pairs, weights that cannot be had,
            and a reference that is missing or does not fit.
    """
    name, network = split_label(sweep.metric)
    asked = metric(name)
    if not isinstance(asked, SetMetric):
        raise SettingError(f"{name} compares pairs of images; a sweep needs a metric of sets")
    extract = extractor(network, weights, device)
    asked.check(network)
    label, digest, reference = _reference(sweep.reference, asked, extract)
    measure = Measure(
        metric=asked.label(extract.name),
        extractor=extract.name,
        extractor_sha256=extract.sha256,
        resize=extract.resize,
        reference=label,
        reference_sha256=digest,
        n=sweep.n,
    )
    return ImageEvaluator(asked, extract, reference, measure)


def split_label(label: str) -> tuple[str, str]:
    """Returns the two names: `fd-small` -> ("fd", "small"), `fid` -> ("fid", "inception")."""
    name, _, network = label.partition("-")
    return name, network or "inception"


def _reference(
    source: str | None, asked: SetMetric, network: Extractor
) -> tuple[str, str, Features]:
    """Returns (name, sha256, features) of the reference; none where the metric looks at none."""
    if not asked.uses_reference:
        return "none", "", Features(0)
    sums = all(need.form == "statistics" for need in asked.needs)
    if source in (None, "fashion-mnist") and network.name == "fd-small" and sums:
        return _load_shipped()
    if source is None:
        raise SettingError(
            "give --reference: a data set's name, a folder, a .zip, or an .npz of images or"
            " statistics"
        )
    images = side(source, None)
    features = reference_features(images, asked.needs, network)
    digest = images.sha256 if isinstance(images, ImageSet) else file_sha256(images)
    return source, digest, features


def _load_shipped() -> tuple[str, str, Features]:
    """Returns the statistics that come with fd-small."""
    from ..extractors.small import small_reference

    statistics = small_reference()
    return "fashion-mnist", statistics.sha256, Features(statistics.n, {"pool": statistics})
