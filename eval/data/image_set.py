"""`ImageSet`: images as uint8 tensors, read in batches, from memory maps, folders and archives.

A reader gives the rows of the set in order, any number at a time, and keeps none of them, so that
a pass over fifty thousand images needs the memory of one batch.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...models.errors import SettingError
from .errors import DataError

Rows = NDArray[np.uint8]  # (B, C, H, W)
Reader = Callable[[int], Iterator[Rows]]  # batch size -> batches, in order, the last one shorter
CHUNK = 64  # images read at once where nobody says how many


@dataclass(frozen=True)
class ImageSet:
    """Images of one size, in a fixed order.

    name:   what the user called it.
    length: number of images.
    shape:  (C, H, W), C 1 or 3.
    read:   gives the images in batches of a wanted size, as uint8 (B, C, H, W).
    labels: (N,) int64, or None where there are none.
    """

    name: str
    length: int
    shape: tuple[int, int, int]
    read: Reader = field(repr=False)
    labels: Tensor | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return self.length

    def batches(self, size: int = CHUNK) -> Iterator[Tensor]:
        """Yields uint8 (B, C, H, W) on the CPU, in order; the last batch may be shorter.

        Raises:
            SettingError: if size is below 1.
            DataError: at an image that cannot be read or is constant.
        """
        if size < 1:
            raise SettingError(f"a batch holds at least 1 image, not {size}")
        return map(_tensor, self.read(size))

    @cached_property
    def sha256(self) -> str:
        """Of the uint8 bytes of all images in (N, C, H, W) order: the same set, the same value.

        Reads the whole set, once.
        """
        digest = hashlib.sha256()
        for rows in self.read(CHUNK):
            digest.update(np.ascontiguousarray(rows).data)
        return digest.hexdigest()

    def first(self, n: int) -> "ImageSet":
        """Returns the first n images; raises SettingError if there are fewer."""
        return self.part(0, n)

    def part(self, start: int, stop: int) -> "ImageSet":
        """Returns images start <= i < stop; raises SettingError if the set does not hold them."""
        if not 0 <= start < stop <= self.length:
            raise SettingError(
                f"{self.name} has images 0 to {self.length - 1}; it has no part {start}:{stop}"
            )
        labels = None if self.labels is None else self.labels[start:stop]
        name = self.name if stop - start == self.length else f"{self.name}[{start}:{stop}]"
        return ImageSet(name, stop - start, self.shape, _part(self.read, start, stop), labels)

    def pad(self, side: int, name: str | None = None) -> "ImageSet":
        """Returns the images in the middle of side x side zeros (black: -1 in a network's range).

        Raises:
            SettingError: if the images are larger or cannot be centred.
        """
        channels, height, width = self.shape
        margins = side - height, side - width
        if min(margins) < 0 or any(margin % 2 for margin in margins):
            raise SettingError(f"{height}x{width} images have no middle in {side}x{side}")
        widths = [(0, 0), (0, 0), *((margin // 2, margin // 2) for margin in margins)]

        def read(size: int) -> Iterator[Rows]:
            return (np.pad(rows, widths) for rows in self.read(size))

        shape = (channels, side, side)
        return ImageSet(
            name or f"{self.name} in {side}x{side}", len(self), shape, read, self.labels
        )


def in_memory(name: str, images: NDArray[Any], labels: Tensor | None = None) -> ImageSet:
    """Returns the set of an array (N, C, H, W) of uint8, which may be a memory map."""
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
        raise DataError(
            f"{name} must be uint8 (N, C, H, W) with 1 or 3 channels,"
            f" not {images.dtype} {images.shape}"
        )
    if len(images) == 0:
        raise DataError(f"{name} holds no images")

    def read(size: int) -> Iterator[Rows]:
        return (images[i : i + size] for i in range(0, len(images), size))

    channels, height, width = images.shape[1:]
    return ImageSet(name, len(images), (channels, height, width), read, labels)


def _tensor(rows: Rows) -> Tensor:
    return torch.from_numpy(np.array(rows))  # a copy: maps are read-only, and tensors are not


def _part(read: Reader, start: int, stop: int) -> Reader:
    def part(size: int) -> Iterator[Rows]:
        first, waiting = 0, np.empty(0, np.uint8)
        for rows in read(size):
            cut = rows[max(0, start - first) : max(0, stop - first)]
            first += len(rows)
            waiting = np.concatenate([waiting, cut]) if len(waiting) else cut
            while len(waiting) >= size or (len(waiting) and first >= stop):
                yield waiting[:size]
                waiting = waiting[size:]
            if first >= stop:
                return

    return part
