"""How images become a figure: what one process has gathered of a cell, and what is made of it all.

Features are kept as the metric needs them: as sums where it needs statistics, so that memory does
not grow with n, else batch by batch. What is gathered is saved beside the store, whole or not at
all, and belongs to one way of splitting the work: another batch size or number of processes starts
the cell anew.
"""

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from ...models.errors import SettingError
from ...models.files import write_whole
from ...models.hashing import hash_file
from ...models.ledger import Ledger
from ..bench.protocol import Measure
from ..bench.rows import GroupFigures, TimeSpent
from ..data import ImageSet
from ..extractors import Extractor, extractor, origin_of
from ..extractors.small import SMALL_CARDS, SmallCard, small_reference
from ..metrics import Features, Need, SetMetric, metric
from ..metrics.command import side
from ..metrics.features import Splits
from ..metrics.measure import reference_features
from ..statistics import Moments, StatisticsError
from .fid_sweep import Sweep

UNREADABLE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)


@dataclass
class Partial:
    """Sums of what this process has done.

    done:    batches, of those that are its own.
    effective: network rows in units of full ones, by FLOPs.
    moments: of each output whose statistics are needed, one for each group of images.
    batches: features of each output that is needed whole, batch by batch.
    errors:  (groups, 3): images that were compared with the converged run, and their sums of mean
             square distances of samples and of features.
    """

    moments: dict[str, list[Moments]]
    batches: dict[str, list[Tensor]]
    errors: Tensor
    done: int = 0
    ledger: Ledger = field(default_factory=Ledger)
    effective: float = 0.0
    clock: TimeSpent = field(default_factory=TimeSpent)

    @classmethod
    def empty(cls, outputs: Mapping[str, int], needs: Sequence[Need], groups: int = 1) -> "Partial":
        """Returns one with nothing done; raises StatisticsError for an output that is lacking."""
        for need in needs:
            if need.output not in outputs:
                raise StatisticsError(
                    f"this extractor gives no {need.output} features, only {', '.join(outputs)};"
                    " take another metric"
                )
        summed = [need.output for need in needs if need.form == "statistics"]
        sums = {output: [Moments(outputs[output]) for _ in range(groups)] for output in summed}
        whole: dict[str, list[Tensor]] = {n.output: [] for n in needs if n.output not in sums}
        return cls(sums, whole, torch.zeros(groups, 3, dtype=torch.float64))

    def add(
        self, features: Mapping[str, Tensor], groups: Tensor, errors: Tensor | None = None
    ) -> None:
        """Adds one batch: its features, the group of each image, its two square distances."""
        for output, moments in self.moments.items():
            for group in sorted(set(groups.tolist())):
                moments[group].update(features[output][groups == group])
        if errors is not None:
            counted = torch.cat([torch.ones(len(errors), 1), errors], 1).double()
            self.errors.index_add_(0, groups, counted)
        for output, parts in self.batches.items():
            if not torch.isfinite(features[output]).all():
                raise StatisticsError(f"{output} features hold NaN or infinity; look at the images")
            parts.append(features[output].float())
        self.done += 1

    def count(self, ledger: Ledger, clock: TimeSpent) -> None:
        """Adds what a batch cost."""
        share = 1.0 if ledger.cache is None else ledger.cache.relative_cost
        self._add(ledger, ledger.rows * share, clock)

    def take(self, other: "Partial") -> None:
        """Adds what another process has done, without its whole features."""
        for output, moments in other.moments.items():
            for mine, theirs in zip(self.moments[output], moments, strict=True):
                mine.merge(theirs)
        self.errors += other.errors
        self._add(other.ledger, other.effective, other.clock)

    def _add(self, ledger: Ledger, effective: float, clock: TimeSpent) -> None:
        self.effective += effective
        for name in ("images", "evaluations", "rows", "calls", "seconds"):
            setattr(self.ledger, name, getattr(self.ledger, name) + getattr(ledger, name))
        self.clock = add_times(self.clock, clock)

    def save(self, path: Path) -> None:
        """Writes the npz."""
        arrays = {
            f"moments {name}": torch.stack([each.to_tensor() for each in groups]).numpy()
            for name, groups in self.moments.items()
        }
        arrays["errors"] = self.errors.numpy()
        for name, parts in self.batches.items():
            arrays |= {f"batch {i} {name}": each.numpy() for i, each in enumerate(parts)}
        ledger, clock = self.ledger, self.clock
        counts = [self.done, ledger.images, ledger.evaluations, ledger.rows, ledger.calls]
        times = [ledger.seconds, clock.sampling, clock.features, clock.total, self.effective]

        def write(file: IO[bytes]) -> None:
            np.savez(file, allow_pickle=False, counts=counts, times=times, **arrays)

        write_whole(path, write)

    def load(self, path: Path) -> bool:
        """Takes over what the file holds; returns False if there is none that can be read."""
        try:
            with np.load(path, allow_pickle=False) as file:
                counts, (seconds, *times, effective) = (
                    file["counts"].tolist(),
                    file["times"].tolist(),
                )
                sampling, features, total = times
                sums = {o: torch.from_numpy(file[f"moments {o}"]) for o in self.moments}
                errors = torch.from_numpy(file["errors"])
                batches = {
                    o: [torch.from_numpy(file[f"batch {i} {o}"]) for i in range(counts[0])]
                    for o in self.batches
                }
        except UNREADABLE:
            return False
        self.moments = {o: [*map(Moments.from_tensor, flat)] for o, flat in sums.items()}
        self.batches, self.errors, self.done = batches, errors, counts[0]
        images, evaluations, rows, calls = counts[1:]
        self.ledger, self.effective = Ledger(images, evaluations, rows, calls, seconds), effective
        self.clock = TimeSpent(sampling=sampling, features=features, total=total)
        return True


def add_times(a: TimeSpent, b: TimeSpent) -> TimeSpent:
    """Returns the sum of two clocks."""
    return TimeSpent(
        **{name: getattr(a, name) + getattr(b, name) for name in TimeSpent.model_fields}
    )


def merge_parts(parts: Sequence[Partial]) -> Partial:
    """Returns what all processes have done, whole features in the order of the images."""
    total, *others = parts
    for other in others:
        total.take(other)
    for output in total.batches:
        turns = zip_longest(*(part.batches[output] for part in parts))
        total.batches[output] = [batch for turn in turns for batch in turn if batch is not None]
    return total


def features_of(
    part: Partial, needs: Sequence[Need], extractor: Extractor, without: int | None = None
) -> Features:
    """Returns what a metric takes, of statistics also without one group of the images."""
    origin, splits, rows = origin_of(extractor), {}, {}
    for need in needs:
        if need.form == "statistics":
            continue
        rows[need.output] = torch.cat(part.batches[need.output])
        if need.form == "splits":
            keeper = Splits()
            keeper.update(rows.pop(need.output))
            splits[need.output] = keeper.scores()
    sums = {output: _merge_groups(each, without) for output, each in part.moments.items()}
    images = next((each.n for each in sums.values()), part.ledger.images)
    statistics = {output: each.statistics(origin) for output, each in sums.items()}
    return Features(images, statistics, rows, splits)


def _merge_groups(groups: Sequence[Moments], without: int | None) -> Moments:
    total = Moments(groups[0].dim)
    for i, each in enumerate(groups):
        if i != without:
            total.merge(each)
    return total


@dataclass(frozen=True)
class ImageEvaluator:
    """How images become a figure: the metric, its features, and the reference side of it."""

    metric: SetMetric
    extractor: Extractor
    reference: Features
    measure: Measure

    def value(self, part: Partial, without: int | None = None) -> float:
        """Returns the figure of what was gathered, or of all but one group of the images."""
        features = features_of(part, self.metric.needs, self.extractor, without)
        return self.metric.function(features, self.reference)

    def list_groups(self, part: Partial) -> tuple[GroupFigures, ...]:
        """Returns the figures of the groups; none where the images are one group."""
        if len(part.errors) == 1:
            return ()
        return tuple(
            GroupFigures(
                without=None if part.batches else self.value(part, group),
                distance=distance / images if images else None,
                features=features / images if images else None,
            )
            for group, (images, distance, features) in enumerate(part.errors.tolist())
        )


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
    entry = metric(name)
    if not isinstance(entry, SetMetric):
        raise SettingError(f"{name} compares pairs of images; a sweep needs a metric of sets")
    extract = extractor(network, weights, device)
    entry.check(network)
    label, digest, reference = _reference(sweep.reference, entry, extract)
    measure = Measure(
        metric=entry.label(extract.name),
        extractor=extract.name,
        extractor_sha256=extract.sha256,
        resize=extract.resize,
        reference=label,
        reference_sha256=digest,
        n=sweep.n,
    )
    return ImageEvaluator(entry, extract, reference, measure)


def split_label(label: str) -> tuple[str, str]:
    """Returns the two names: `fd-small` -> ("fd", "small"), `fid` -> ("fid", "inception")."""
    name, _, network = label.partition("-")
    return name, network or "inception"


def _reference(
    source: str | None, entry: SetMetric, network: Extractor
) -> tuple[str, str, Features]:
    """Returns (name, sha256, features) of the reference; none where the metric looks at none."""
    if not entry.uses_reference:
        return "none", "", Features(0)
    sums = all(need.form == "statistics" for need in entry.needs)
    card = SMALL_CARDS.get(network.name)
    if card is not None and source in (None, card.reference) and sums:
        return _load_shipped(card)
    if source is None:
        raise SettingError(
            "give --reference: a data set's name, a folder, a .zip, or an .npz of images or"
            " statistics"
        )
    images = side(source, None)
    features = reference_features(images, entry.needs, network)
    digest = images.sha256 if isinstance(images, ImageSet) else hash_file(images)
    return source, digest, features


def _load_shipped(card: SmallCard) -> tuple[str, str, Features]:
    """Returns the statistics that come with a small network."""
    statistics = small_reference(card)
    return card.reference, statistics.sha256, Features(statistics.n, {"pool": statistics})
