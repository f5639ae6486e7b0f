"""SanaTransformer2DModel."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from . import pixart
from .base import tensor_of


def _call(module: Any, x: Tensor, time: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
    scaled = time * float(module.config.get("timestep_scale", 1.0))
    return tensor_of(module, hidden_states=x, timestep=scaled, **conditions)[:, : x.shape[1]]


FAMILY = replace(
    pixart.FAMILY,
    classes=("SanaTransformer2DModel",),
    call=_call,
    extra=lambda pipe, size: {},
)
