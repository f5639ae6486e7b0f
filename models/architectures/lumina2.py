"""Lumina2Transformer2DModel: its time runs from noise, 0, to data, 1, and its output likewise."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from .base import (
    IMAGE,
    Architecture,
    Arguments,
    BlockGroup,
    BlockStructure,
    GuidanceLayout,
    SelfAttention,
    Size,
)
from .common import MASKED_TEXT, latent_shape, tensor_of


def _call(module: Any, x: Tensor, time: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
    return -tensor_of(module, hidden_states=x, timestep=1.0 - time / 1000.0, **conditions)


def _shape(pipe: Any, size: Size) -> tuple[int, int, int]:
    return latent_shape(pipe, size, patch=2)


def _rms_norm(block: Any, arguments: Arguments) -> Tensor:
    out: Tensor = block.norm1(arguments[IMAGE], arguments["temb"])[0]
    return out


LUMINA_2 = Architecture(
    classes=("Lumina2Transformer2DModel",),
    blocks=BlockStructure(
        groups=(BlockGroup("layers"),),
        modules=(r"layers\.\d+\.(attn|feed_forward)",),
        signal=_rms_norm,
    ),
    attention=SelfAttention(r"layers\.\d+\.attn", text=True),
    prompted=(
        replace(
            MASKED_TEXT,
            shape=_shape,
            call=_call,
            tokens=lambda shape: shape[0],  # the pipeline counts channels where it means tokens
        ),
    ),
    pipelines={
        "Lumina2Pipeline": GuidanceLayout(turns=True, unit=1000.0, from_data=True, sign=-1.0)
    },
)
