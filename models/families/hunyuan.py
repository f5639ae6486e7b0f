"""HunyuanVideoTransformer3DModel: text to video; samples stay latents."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .base import Family, guidance_told, tensor_of, video_shape


def _call(module: Any, x: Tensor, time: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
    return tensor_of(module, hidden_states=x, timestep=time, **conditions)


FAMILY = Family(
    classes=("HunyuanVideoTransformer3DModel",),
    returns=("prompt_embeds", "pooled_prompt_embeds", "prompt_attention_mask"),
    conditions={
        "encoder_hidden_states": "prompt_embeds",
        "encoder_attention_mask": "prompt_attention_mask",
        "pooled_projections": "pooled_prompt_embeds",
    },
    shape=video_shape,
    call=_call,
    extra=guidance_told(6.0, unit=1000.0),
    images=False,
)
