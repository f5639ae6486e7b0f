"""SanaTransformer2DModel."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from .base import ONE_CALL, Architecture, BlockGroup, BlockStructure, SelfAttention
from .common import BLOCKS, MASKED_TEXT, table_norm, tensor_of


def _call(module: Any, x: Tensor, time: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
    scaled = time * float(module.config.get("timestep_scale", 1.0))
    return tensor_of(module, hidden_states=x, timestep=scaled, **conditions)[:, : x.shape[1]]


SANA = Architecture(
    classes=("SanaTransformer2DModel",),
    same_blocks=("SanaVideoTransformer3DModel",),
    blocks=BlockStructure(
        groups=(BlockGroup(BLOCKS),),
        modules=(rf"{BLOCKS}\.\d+\.(attn1|attn2|ff)",),
        signal=table_norm,
    ),
    attention=SelfAttention(rf"{BLOCKS}\.\d+\.attn1", perturbable=True),
    prompted=(replace(MASKED_TEXT, call=_call),),
    pipelines={"SanaPipeline": ONE_CALL},
)
