"""The features of a set of images: gathered batch by batch, or read from an npz.

Statistics need flat memory; rows are all features of all images, 8 kB each for Inception; splits
are the Inception Scores of every 5,000 images in turn.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import torch
from torch import Tensor

from ..extractors import Extractor, origin_of
from ..statistics import Moments, Statistics, StatisticsError
from ..statistics_file import load_npz, save_npz

SPLIT = 5000


@dataclass(frozen=True)
class Need:
    """One thing that a metric wants kept: of which output of the extractor, and in which form."""

    form: Literal["statistics", "rows", "splits"]
    output: str


@dataclass(frozen=True)
class Features:
    """The features of a set, by the name of the extractor's output.

    statistics: mean and covariance.
    rows:       (N, D) float32.
    splits:     the Inception Score of each 5,000 images in turn.
    n:          number of images; 0 where a file does not say.
    """

    n: int
    statistics: Mapping[str, Statistics] = field(default_factory=dict)
    rows: Mapping[str, Tensor] = field(default_factory=dict)
    splits: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    def has(self, need: Need) -> bool:
        """Returns whether that was kept."""
        return need.output in getattr(self, need.form)

    def join(self, other: "Features") -> "Features":
        """Returns this and the features of the same set that stand elsewhere."""
        return Features(
            self.n or other.n,
            {**other.statistics, **self.statistics},
            {**other.rows, **self.rows},
            {**other.splits, **self.splits},
        )

    def save(self, path: Path) -> None:
        """Writes statistics and rows into one npz."""
        save_npz(path, self.statistics, {name: each.numpy() for name, each in self.rows.items()})

    @classmethod
    def load(cls, path: Path) -> "Features":
        """Reads an npz of ours, of ADM's or of raw `pool_3` features; see `load_npz`."""
        statistics, arrays = load_npz(path)
        rows = {name: torch.from_numpy(array).float() for name, array in arrays.items()}
        return cls(max(each.n for each in statistics.values()), statistics, rows)


class Keeper(Protocol):
    """Takes batches of one output's features."""

    def update(self, features: Tensor) -> None: ...


class Rows:
    """All features, as float32."""

    def __init__(self) -> None:
        self._parts: list[Tensor] = []

    def update(self, features: Tensor) -> None:
        self._parts.append(features.float())

    def rows(self) -> Tensor:
        return torch.cat(self._parts)


class Splits:
    """exp(mean of KL(p(y|x) || p(y))) of every 5,000 images in turn, in float64 and flat memory."""

    def __init__(self, size: int = SPLIT) -> None:
        self._size = size
        self._scores: list[float] = []
        self._sum = torch.zeros(())
        self._clear()

    def update(self, probs: Tensor) -> None:
        """Adds class probabilities (B, K)."""
        while len(probs):
            room = self._size - self._n
            self._add(probs[:room].double())
            probs = probs[room:]

    def _add(self, p: Tensor) -> None:
        self._n += len(p)
        self._sum = self._sum + p.sum(0)
        self._negative_entropy += float(torch.xlogy(p, p).sum())
        if self._n == self._size:
            self._scores.append(self._score())
            self._clear()

    def scores(self) -> tuple[float, ...]:
        """Returns one per split; the last may be of fewer images."""
        return (*self._scores, self._score()) if self._n else tuple(self._scores)

    def _clear(self) -> None:
        self._n = 0
        self._negative_entropy = 0.0
        self._sum = torch.zeros((), dtype=torch.float64)

    def _score(self) -> float:
        mean = self._sum / self._n
        return float(torch.exp(self._negative_entropy / self._n - torch.xlogy(mean, mean).sum()))


class Gather:
    """Features of a set as its images stream by; keeps what the needs ask for and no more."""

    def __init__(self, extractor: Extractor, needs: Iterable[Need]) -> None:
        self._extractor = extractor
        self._keepers = {need: _keeper(extractor, need) for need in needs}
        self.n = 0

    def update(self, images: Tensor) -> None:
        """Adds images, uint8 (B, C, H, W); raises StatisticsError at features that are NaN."""
        outputs = self._extractor(images)
        for need, keeper in self._keepers.items():
            features = outputs[need.output]
            if not torch.isfinite(features).all():
                raise StatisticsError(
                    f"the {need.output} features of images {self.n} to {self.n + len(images) - 1}"
                    " hold NaN or infinity; the weights or the images are damaged"
                )
            keeper.update(features)
        self.n += len(images)

    def features(self) -> Features:
        """Returns what was kept so far."""
        origin = origin_of(self._extractor)
        statistics, rows, splits = {}, {}, {}
        for need, keeper in self._keepers.items():
            if isinstance(keeper, Moments):
                statistics[need.output] = keeper.statistics(origin)
            elif isinstance(keeper, Rows):
                rows[need.output] = keeper.rows()
            elif isinstance(keeper, Splits):
                splits[need.output] = keeper.scores()
        return Features(self.n, statistics, rows, splits)


def _keeper(extractor: Extractor, need: Need) -> Keeper:
    if need.output not in extractor.outputs:
        raise StatisticsError(
            f"{extractor.name} gives no {need.output} features, only"
            f" {', '.join(extractor.outputs)}{HINTS.get(need.output, '')}"
        )
    if need.form == "statistics":
        return Moments(extractor.outputs[need.output])
    return Rows() if need.form == "rows" else Splits()


HINTS = {
    "probs": "; class probabilities need weights with the classifier: give the file"
    " inception-2015-12-05.pt with --weights",
    "spatial": "; they are Inception's",
}
