"""SanaTransformer2DModel."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from .base import (
    ONE_CALL,
    Architecture,
    BlockGroup,
    BlockStructure,
    Conditions,
    SelfAttention,
    Size,
)
from .common import (
    BLOCKS,
    MASKED_TEXT,
    call_transformer,
    distilled_guidance,
    module_of,
    table_norm,
    tensor_of,
)


def _call(module: Any, x: Tensor, time: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
    scaled = time * float(module.config.get("timestep_scale", 1.0))
    return tensor_of(module, hidden_states=x, timestep=scaled, **conditions)[:, : x.shape[1]]


def _tell_scale(pipe: Any, size: Size) -> Conditions:
    """Returns the guidance scale that SANA-Sprint is told, 4.5 where the size says none."""
    unit = float(module_of(pipe).config.get("guidance_embeds_scale", 0.1))
    return distilled_guidance(4.5, unit)(pipe, size)


SPRINT = replace(
    MASKED_TEXT,
    returns=("prompt_embeds", "prompt_attention_mask"),
    call=call_transformer,
    config={"guidance_embeds": True},
    extra=_tell_scale,
)
SANA = Architecture(
    classes=("SanaTransformer2DModel",),
    same_blocks=("SanaVideoTransformer3DModel",),
    blocks=BlockStructure(
        groups=(BlockGroup(BLOCKS),),
        modules=(rf"{BLOCKS}\.\d+\.(attn1|attn2|ff)",),
        signal=table_norm,
    ),
    attention=SelfAttention(rf"{BLOCKS}\.\d+\.attn1", perturbable=True),
    prompted=(SPRINT, replace(MASKED_TEXT, call=_call)),
    pipelines={"SanaPipeline": ONE_CALL},
)
