"""fd-small: a compact classifier of Fashion-MNIST whose features give a quick distance.

For 32x32 grey images, in seconds on one core. Its Frechet distance is labelled fd-small: it orders
runs of the package's networks, and has nothing to do with the figures called FID.

Features are the means over all places of three stages, at 16x16, 8x8 and 4x4 places, so that
fine texture counts as well as shape. Each is scaled to mean 0 and variance 1 on the training set:
a distance of 1 is, say, one feature whose mean is off by one standard deviation.
`recipes/train_fd_small.py` trains it, `make fd-small` makes everything that is stored here.
"""

import hashlib
from importlib.resources import as_file, files
from importlib.resources.abc import Traversable
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load
from torch import Tensor, nn

from ...models.errors import UnknownNameError
from ..data import DataError
from ..statistics import Statistics
from ..statistics_file import load_output

NAME = "fd-small"
SIDE, PADDED_FROM = 32, 28
WIDTHS = (24, 48, 72)  # channels of the stages
FEATURES = (16, 16, 32)  # taken from each stage
CLASSES = 10


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

    def __init__(self) -> None:
        super().__init__()
        fine, middle, coarse = WIDTHS
        self.fine = nn.Sequential(Layer(1, fine, size=5, stride=2), Layer(fine, fine))
        self.middle = nn.Sequential(Layer(fine, middle, stride=2), Layer(middle, middle))
        self.coarse = nn.Sequential(Layer(middle, coarse, stride=2), Layer(coarse, coarse))
        self.taps = nn.ModuleList(
            Layer(width, features, size=1) for width, features in zip(WIDTHS, FEATURES, strict=True)
        )
        self.head = nn.Linear(sum(FEATURES), CLASSES)
        self.register_buffer("mean", torch.zeros(sum(FEATURES)))
        self.register_buffer("std", torch.ones(sum(FEATURES)))

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, 1, 32, 32) in [0, 1] to features (B, 64), scaled."""
        return (self.extract(x) - self.mean) / self.std

    def extract(self, x: Tensor) -> Tensor:
        """Returns the same before scaling."""
        features = []
        for stage, tap in zip((self.fine, self.middle, self.coarse), self.taps, strict=True):
            x = stage(x)
            features.append(tap(x).mean((2, 3)))
        return torch.cat(features, 1)


class SmallExtractor:
    """fd-small's extractor: pool (64), in float32. The network's `head` classifies the features."""

    name = NAME
    resize = "zero-pad-28-to-32"

    def __init__(self, network: SmallNetwork, sha256: str, device: str = "cpu") -> None:
        self.network = network.eval().requires_grad_(False).to(device)
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.sha256 = sha256
        self.outputs = {"pool": sum(FEATURES)}

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Maps uint8 (B, C, H, W) to {"pool": float32 (B, 64)} on the CPU.

        28x28 is padded with zeros to 32x32. Three channels are taken only if they are equal: grey
        images that some program has stored as RGB.

        Raises:
            DataError: for another size, or images in colour.
        """
        x = prepare(images).to(self.network.mean.device)
        with torch.inference_mode():
            features = self.network(x.contiguous(memory_format=torch.channels_last))
        return {"pool": features.cpu().clone()}  # made outside, it is an ordinary tensor again


def prepare(images: Tensor) -> Tensor:
    """Maps uint8 (B, 1 or 3, 28 or 32, ...) to (B, 1, 32, 32) in [0, 1]; raises DataError."""
    size = tuple(images.shape[-2:])
    if size not in ((SIDE, SIDE), (PADDED_FROM, PADDED_FROM)):
        raise DataError(
            f"{NAME} is for 32x32 images, and 28x28 which it pads, not {size[1]}x{size[0]};"
            " take another extractor, such as inception"
        )
    if images.shape[1] == 3 and not (images == images[:, :1]).all():
        raise DataError(
            f"{NAME} is for grey images, and these have colour; take another extractor, such as"
            " inception"
        )
    margin = (SIDE - size[0]) // 2
    return F.pad(images[:, :1].float() / 255.0, [margin] * 4)


def load_small(device: str = "cpu") -> SmallExtractor:
    """Returns the extractor, with the weights that come with the package."""
    stored = (_folder() / "model.safetensors").read_bytes()
    network = SmallNetwork()
    network.load_state_dict({name: each.float() for name, each in load(stored).items()})
    return SmallExtractor(network, hashlib.sha256(stored).hexdigest(), device)


def small_reference(name: str = "fashion-mnist") -> Statistics:
    """Returns the statistics of a set that come with the package.

    `fashion-mnist` is the whole training set in 32x32, the usual reference.

    Raises:
        UnknownNameError: if there are none of that name.
    """
    known = [each.name.removesuffix(".npz") for each in _folder().iterdir()]
    known = [each for each in known if "." not in each]
    if name not in known:
        raise UnknownNameError(f"reference of {NAME}", name, known)
    with as_file(_folder() / f"{name}.npz") as path:
        return load_output(Path(path))


def _folder() -> Traversable:
    return files(__package__.rpartition(".")[0]) / "embedded" / NAME
