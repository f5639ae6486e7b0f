"""SD3Transformer2DModel: Stable Diffusion 3 and 3.5."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .base import Family, latent_shape, tensor_of


def _call(module: Any, x: Tensor, time: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
    return tensor_of(module, hidden_states=x, timestep=time, **conditions)


FAMILY = Family(
    classes=("SD3Transformer2DModel",),
    returns=(
        "prompt_embeds",
        "negative_prompt_embeds",
        "pooled_prompt_embeds",
        "negative_pooled_prompt_embeds",
    ),
    conditions={
        "encoder_hidden_states": "prompt_embeds",
        "pooled_projections": "pooled_prompt_embeds",
    },
    shape=latent_shape,
    call=_call,
)
