"""Compact classifiers of the data of the embedded networks, whose features give a quick distance.

fd-small is of Fashion-MNIST, for 32x32 grey images, fd-emoji of emoji, for 32x32 in colour; seconds
on one core. Their Frechet distances are labelled with these names: they order runs of the package's
networks, and have nothing to do with the figures called FID.

Features are the means over all places of three stages, at 16x16, 8x8 and 4x4 places, so that
fine texture counts as well as shape. Each is scaled to mean 0 and variance 1 on the training set:
a distance of 1 is, say, one feature whose mean is off by one standard deviation.
`recipes/train_fd_small.py` trains them, `make fd-small` makes everything that is stored here.
"""

import hashlib
from dataclasses import dataclass
from importlib.resources import as_file, files
from importlib.resources.abc import Traversable
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load
from torch import Tensor, nn

from ..data import DataError
from ..statistics import Statistics
from ..statistics_file import load_output


@dataclass(frozen=True)
class SmallCard:
    """One of the networks: the folder and label of its figures, its images, and its reference."""

    name: str
    channels: int
    classes: int
    resize: str
    reference: str

    @property
    def folder(self) -> Traversable:
        return files(__package__.rpartition(".")[0]) / "embedded" / self.name


FASHION = SmallCard("fd-small", 1, 10, "zero-pad-28-to-32", "fashion-mnist")
EMOJI = SmallCard("fd-emoji", 3, 9, "none", "emoji")
SMALL_CARDS = {card.name: card for card in (FASHION, EMOJI)}

SIDE, PADDED_FROM = 32, 28
WIDTHS = (24, 48, 72)  # channels of the stages
FEATURES = (16, 16, 32)  # taken from each stage


class Layer(nn.Module):
    """Convolution, norm and SiLU. The norm is for training and folded into the stored weights."""

    def __init__(self, into: int, out: int, size: int = 3, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(into, out, size, stride=stride, padding=size // 2)
        self.norm: nn.Module = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(self.norm(self.conv(x)), inplace=True)


class SmallNetwork(nn.Module):
    """The network: three stages of two layers, their means, and a linear classifier of them."""

    mean: Tensor
    std: Tensor

    def __init__(self, card: SmallCard = FASHION) -> None:
        super().__init__()
        fine, middle, coarse = WIDTHS
        self.fine = nn.Sequential(Layer(card.channels, fine, size=5, stride=2), Layer(fine, fine))
        self.middle = nn.Sequential(Layer(fine, middle, stride=2), Layer(middle, middle))
        self.coarse = nn.Sequential(Layer(middle, coarse, stride=2), Layer(coarse, coarse))
        self.taps = nn.ModuleList(
            Layer(width, features, size=1) for width, features in zip(WIDTHS, FEATURES, strict=True)
        )
        self.head = nn.Linear(sum(FEATURES), card.classes)
        self.register_buffer("mean", torch.zeros(sum(FEATURES)))
        self.register_buffer("std", torch.ones(sum(FEATURES)))

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, 32, 32) in [0, 1] to features (B, 64), scaled."""
        return (self.extract(x) - self.mean) / self.std

    def extract(self, x: Tensor) -> Tensor:
        """Returns the same before scaling."""
        features = []
        for stage, tap in zip((self.fine, self.middle, self.coarse), self.taps, strict=True):
            x = stage(x)
            features.append(tap(x).mean((2, 3)))
        return torch.cat(features, 1)


class SmallExtractor:
    """An extractor of pool (64), in float32. The network's `head` classifies the features."""

    def __init__(
        self, network: SmallNetwork, sha256: str, device: str = "cpu", card: SmallCard = FASHION
    ) -> None:
        self.network = network.eval().requires_grad_(False).to(device)
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.sha256, self.card = sha256, card
        self.name, self.resize = card.name, card.resize
        self.outputs = {"pool": sum(FEATURES)}

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Maps uint8 (B, C, H, W) to {"pool": float32 (B, 64)} on the CPU.

        fd-small pads 28x28 with zeros to 32x32, and takes three channels only if they are equal:
        grey images that some program has stored as RGB. fd-emoji takes three channels.

        Raises:
            DataError: for another size, or other channels.
        """
        x = prepare(images, self.card).to(self.network.mean.device)
        with torch.inference_mode():
            features = self.network(x.contiguous(memory_format=torch.channels_last))
        return {"pool": features.cpu().clone()}  # made outside, it is an ordinary tensor again


def prepare(images: Tensor, card: SmallCard) -> Tensor:
    """Maps uint8 (B, C, H, W) to what a network reads, in [0, 1]; raises DataError."""
    size = tuple(images.shape[-2:])
    grey = card.channels == 1
    sides = (SIDE, PADDED_FROM) if grey else (SIDE,)
    if size not in [(side, side) for side in sides]:
        also = ", and 28x28 which it pads" if grey else ""
        raise DataError(
            f"{card.name} is for 32x32 images{also}, not {size[1]}x{size[0]};"
            " take another extractor, such as inception"
        )
    _check_channels(images, card)
    margin = (SIDE - size[0]) // 2
    return F.pad(images[:, : card.channels].float() / 255.0, [margin] * 4)


def _check_channels(images: Tensor, card: SmallCard) -> None:
    if card.channels == 3 and images.shape[1] == 1:
        raise DataError(
            f"{card.name} is for images in colour, and these are grey; take another extractor,"
            " such as small"
        )
    if card.channels == 1 and images.shape[1] == 3 and not (images == images[:, :1]).all():
        raise DataError(
            f"{card.name} is for grey images, and these have colour; take another extractor, such"
            " as inception"
        )


def load_small(device: str = "cpu", card: SmallCard = FASHION) -> SmallExtractor:
    """Returns the extractor, with the weights that come with the package."""
    stored = (card.folder / "model.safetensors").read_bytes()
    network = SmallNetwork(card)
    network.load_state_dict({name: each.float() for name, each in load(stored).items()})
    return SmallExtractor(network, hashlib.sha256(stored).hexdigest(), device, card)


def small_reference(card: SmallCard = FASHION) -> Statistics:
    """Returns the statistics of the training images that come with the package."""
    with as_file(card.folder / f"{card.reference}.npz") as path:
        return load_output(Path(path))
