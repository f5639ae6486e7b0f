"""The summary that `fewstep data` prints: where a data set lies, its facts and its hashes."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from .fetch import load_images
from .image_set import ImageSet
from .known import DataSet

LEVELS = np.arange(256) / 255.0


def summary(known: DataSet, folder: Path) -> Iterator[str]:
    """Yields one line for the set and two for each split; every byte was checked on the way."""
    yield f"{known.name}: {folder} (licence: {known.licence})"
    for split in known.splits:
        images = load_images(known, split, folder)
        mean, std = moments(images)
        channels, height, width = images.shape
        yield (
            f"  {split}: {len(images)} images, {channels}x{height}x{width}, {_classes(images)},"
            f" mean {_figures(mean)}, std {_figures(std)}"
        )
        yield f"    sha256 {images.sha256}"


def moments(images: ImageSet) -> tuple[list[float], list[float]]:
    """Returns the exact mean and standard deviation of each channel, of pixels in [0, 1]."""
    counts = np.zeros((images.shape[0], 256), dtype=np.int64)
    for batch in images.batches():
        for channel, pixels in enumerate(batch.transpose(0, 1)):
            counts[channel] += np.bincount(pixels.numpy().ravel(), minlength=256)
    shares = counts / counts.sum(1, keepdims=True)
    mean = shares @ LEVELS
    std = np.sqrt(shares @ LEVELS**2 - mean**2)
    return mean.tolist(), std.tolist()


def _classes(images: ImageSet) -> str:
    counts = np.bincount([] if images.labels is None else images.labels.numpy())
    each = {int(count) for count in counts}
    return f"{len(counts)} classes of {'/'.join(map(str, sorted(each)))}"


def _figures(values: list[float]) -> str:
    return "/".join(f"{value:.5f}" for value in values)
