"""Figures of a set of images against a reference: what `fewstep fid` prints.

Images stream through the extractor once, whatever the number of metrics. What was found of a
reference is kept in the cache, keyed by its pixels, the extractor's weights, the resize and what
was kept, so that it is paid for once.
"""

import hashlib
import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from ...models.errors import FewstepError, SettingError
from ...models.files import check_folder, make_folder
from ...models.progress import make_bar
from ..data import ImageSet, images_of
from ..data.cache import cache_folder
from ..extractors import Extractor, origin_of
from ..statistics import StatisticsError, check_origin
from .base import PairMetric, SetMetric
from .features import Features, Gather, Need

Side = ImageSet | Path  # images, or an npz of statistics


@dataclass(frozen=True)
class Figure:
    """One number and what it is of.

    label:   what it must be called, such as fid, kid-small or fd-dinov2.
    n:       images; n_reference: of the reference, 0 where a file does not say.
    better:  "low" or "high".
    """

    label: str
    value: float
    n: int
    n_reference: int
    better: str


@dataclass(frozen=True)
class How:
    """How images are taken through the extractor."""

    batch: int = 50
    progress: bool = False


DEFAULT = How()


def set_figures(
    images: Side,
    reference: Side | None,
    metrics: Sequence[SetMetric],
    extractor: Extractor,
    how: How = DEFAULT,
) -> list[Figure]:
    """Returns the figures of sets, in the order of the metrics.

    Args:
        images: what is judged: images, or the path of an npz with statistics or rows of features.
        reference: the same; None where no metric looks at it.
        metrics: which figures.
        extractor: whose features.

    Raises:
        SettingError: if a figure cannot be had with this extractor.
        StatisticsError: if the reference belongs to another extractor, or lacks something.
    """
    for each in metrics:
        each.check(extractor.name)
    needs = _needs(metrics)
    Gather(extractor, needs)  # refuses outputs that it does not have, before anything is computed
    seen = _needs(each for each in metrics if each.uses_reference)
    theirs = (
        Features(0) if reference is None else reference_features(reference, seen, extractor, how)
    )
    if isinstance(images, Path):
        mine = _from_file(images, needs, extractor, how)
    else:
        mine = gather_features(images, needs, extractor, how)
    return [
        Figure(
            each.label(extractor.name), each.function(mine, theirs), mine.n, theirs.n, each.better
        )
        for each in metrics
    ]


def _needs(metrics: Iterable[SetMetric]) -> tuple[Need, ...]:
    return tuple(dict.fromkeys(need for each in metrics for need in each.needs))


def gather_features(
    images: ImageSet, needs: Iterable[Need], extractor: Extractor, how: How = DEFAULT
) -> Features:
    """Returns what is kept of a set of images, with a progress bar in terminals."""
    gather = Gather(extractor, needs)
    named = {"desc": images.name, "unit": "image", "leave": False}
    with make_bar(total=len(images), **named, show=how.progress) as bar:
        for batch in images.batches(how.batch):
            gather.update(batch)
            bar.update(len(batch))
    return gather.features()


def reference_features(
    reference: Side, needs: Sequence[Need], extractor: Extractor, how: How = DEFAULT
) -> Features:
    """Returns those of an npz or of the cache, or computes them and keeps them there."""
    if isinstance(reference, Path):
        return _from_file(reference, needs, extractor, how)
    if not needs:
        return Features(0)
    path = _cache_path(reference, needs, extractor)
    try:
        return Features.load(path)
    except StatisticsError:  # not there, or damaged: made anew
        features = gather_features(reference, needs, extractor, how)
    try:
        check_folder(path.parent)
        make_folder(path.parent)
        features.save(path)
    except FewstepError as error:
        warnings.warn(f"the reference's features are not kept: {error}", stacklevel=2)
    return features


def _from_file(path: Path, needs: Sequence[Need], extractor: Extractor, how: How) -> Features:
    """Returns what the file holds; ADM's have images, of which the rest is found."""
    features = Features.load(path)
    for output, each in features.statistics.items():
        check_origin(each.origin, origin_of(extractor))
        dim = extractor.outputs.get(output, each.dim)
        if each.dim != dim:
            raise StatisticsError(
                f"{str(path)!r} has {each.dim} {output} features per image and {extractor.name}"
                f" {dim}; give statistics of the same extractor"
            )
    missing = [need for need in needs if not features.has(need)]
    if not missing:
        return features
    try:
        images = images_of(path)
    except FewstepError:
        raise StatisticsError(
            f"{str(path)!r} has no {missing[0].form} of {missing[0].output} features; give the"
            " images of the reference instead"
        ) from None
    return features.join(reference_features(images, missing, extractor, how))


def _cache_path(reference: ImageSet, needs: Sequence[Need], extractor: Extractor) -> Path:
    key = [reference.sha256, asdict(origin_of(extractor)), sorted(map(asdict, needs), key=str)]
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    return cache_folder() / "statistics" / f"{extractor.name}-{digest[:16]}.npz"


def pair_figures(
    images: ImageSet, reference: ImageSet, metrics: Sequence[PairMetric], how: How = DEFAULT
) -> list[Figure]:
    """Means over pairs of images at the same place; raises SettingError if sets do not match."""
    if (len(images), images.shape) != (len(reference), reference.shape):
        raise SettingError(
            f"{', '.join(each.name for each in metrics)} compare image by image, but"
            f" {images.name} has {len(images)} of shape {images.shape} and {reference.name}"
            f" {len(reference)} of shape {reference.shape}; give the two runs of the same seeds"
        )
    totals: Mapping[str, list[torch.Tensor]] = {each.name: [] for each in metrics}
    named = {"desc": "pairs", "unit": "image", "leave": False}
    with make_bar(total=len(images), **named, show=how.progress) as bar:
        for pair in zip(images.batches(how.batch), reference.batches(how.batch), strict=True):
            ours, theirs = (batch.float() / 127.5 - 1.0 for batch in pair)
            for each in metrics:
                totals[each.name].append(each.function(ours, theirs).double())
            bar.update(len(ours))
    return [
        Figure(
            each.name,
            float(torch.cat(totals[each.name]).mean()),
            len(images),
            len(reference),
            each.better,
        )
        for each in metrics
    ]
