"""What a sampler was asked for, kept beside its result so that it can be recorded."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..models.speed import Speed


@dataclass(frozen=True)
class LoadedFrom:
    """How the network of a sampler was loaded; the arguments of `models.load.load`."""

    source: Any
    dtype: str | torch.dtype | None = None
    device: str | torch.device | None = None
    speed: Speed | None = None


@dataclass(frozen=True)
class SamplerCall:
    """The arguments of a call.

    loaded:    None where the sampler was made of a network.
    arguments: by name, as they were given; seeds and class labels as lists of integers.
    """

    loaded: LoadedFrom | None
    arguments: Mapping[str, Any]
