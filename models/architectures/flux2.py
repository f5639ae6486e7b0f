"""Flux2Transformer2DModel."""

from typing import Any

from torch import Tensor

from .base import IMAGE, TEXT, Architecture, Arguments, BlockGroup, BlockStructure
from .common import BLOCKS, SINGLE


def _shared_modulation(block: Any, arguments: Arguments) -> Tensor:
    """Modulates it by one computation for all blocks, (B, 6 d) or (B, L, 6 d)."""
    rows = arguments["temb_mod_img"]
    shift, scale = (rows.unsqueeze(1) if rows.ndim == 2 else rows).chunk(6, dim=-1)[:2]
    out: Tensor = (1 + scale) * block.norm1(arguments[IMAGE]) + shift
    return out


FLUX_2 = Architecture(
    classes=("Flux2Transformer2DModel",),
    blocks=BlockStructure(
        groups=(BlockGroup(BLOCKS, (TEXT, IMAGE)), BlockGroup(SINGLE, joint="first")),
        modules=(rf"{BLOCKS}\.\d+\.(attn|ff|ff_context)", rf"{SINGLE}\.\d+\.attn"),
        signal=_shared_modulation,
    ),
)
