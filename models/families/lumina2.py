"""Lumina2Transformer2DModel: its time runs from noise, 0, to data, 1, and its output likewise."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from . import pixart
from .base import Size, latent_shape, tensor_of


def _call(module: Any, x: Tensor, time: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
    return -tensor_of(module, hidden_states=x, timestep=1.0 - time / 1000.0, **conditions)


def _shape(pipe: Any, size: Size) -> tuple[int, int, int]:
    return latent_shape(pipe, size, patch=2)


FAMILY = replace(
    pixart.FAMILY,
    classes=("Lumina2Transformer2DModel",),
    shape=_shape,
    call=_call,
    extra=lambda pipe, size: {},
    tokens=lambda shape: shape[0],  # the pipeline counts channels where it means tokens
)
