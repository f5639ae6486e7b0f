"""The samples of converged runs: drawn once, kept beside the store, compared image by image."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from ... import __version__
from ...models.errors import SettingError
from ...models.files import make_folder, write_bytes
from ...models.hashing import hash_json
from ...models.reading import read_tensors
from ...samplers.images import to_uint8
from ..bench.protocol import Drawn
from ..extractors import Extractor

IN_MEMORY = 256  # batches


class ConvergedSamples:
    """Samples and features of converged runs, batch by batch.

    folder:    where samples are kept, under a name that stands for everything that decides them and
               the version of fewstep.
    draw:      draws the images of some seeds.
    extractor: of the features.
    """

    def __init__(
        self,
        folder: Path,
        draw: Callable[[Drawn, Sequence[int]], Tensor],
        extractor: Extractor,
    ) -> None:
        self.folder, self.draw, self.extractor = folder, draw, extractor
        self._find = lru_cache(maxsize=IN_MEMORY)(self._read_or_draw)
        self._images: dict[str, Drawn] = {}

    def keep(self, images: Drawn, seeds: Sequence[int], samples: Tensor) -> None:
        """Writes samples of a converged run that were drawn as a cell of their own."""
        make_folder(self.folder)
        body = save({"samples": samples.float().contiguous()})
        write_bytes(self._path(self._name(images), tuple(seeds)), body)

    def compare(
        self, images: Drawn, seeds: Sequence[int], samples: Tensor, features: Tensor
    ) -> Tensor:
        """Returns mean square distances (n, 2) of samples and of features to a converged run."""
        there, seen = self._find(self._name(images), tuple(seeds))
        pixels = (samples.double() - there.double()).square().flatten(1).mean(1)
        return torch.stack([pixels, (features.double() - seen).square().mean(1)], 1)

    def _name(self, images: Drawn) -> str:
        body = images.deciding()
        body["run"].pop("seeds")
        name = hash_json([body, __version__])[:32]
        self._images[name] = images
        return name

    def _path(self, name: str, seeds: tuple[int, ...]) -> Path:
        return self.folder / f"{name}-{seeds[0]}-{seeds[-1]}.safetensors"

    def _read_or_draw(self, name: str, seeds: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        try:
            samples = read_tensors(self._path(name, seeds))[0]["samples"]
        except (SettingError, KeyError):
            samples = self.draw(self._images[name], seeds)
            self.keep(self._images[name], seeds, samples)
        return samples, self.extractor(quantise(samples))["pool"].double()


def quantise(samples: Tensor) -> Tensor:
    """Returns (B, C, H, W) in [-1, 1] as uint8 of the same shape, by the rule of `to_uint8`."""
    return to_uint8(samples).permute(0, 3, 1, 2).contiguous()
