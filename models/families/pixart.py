"""PixArtTransformer2DModel: alpha and Sigma; a learned variance is dropped."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .base import Conditions, Family, Size, latent_shape, module_of, tensor_of

ADDED = ("resolution", "aspect_ratio")


def _call(module: Any, x: Tensor, time: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
    added = {name: conditions.get(name) for name in ADDED}
    text = {name: value for name, value in conditions.items() if name not in ADDED}
    out = tensor_of(module, hidden_states=x, timestep=time, added_cond_kwargs=added, **text)
    return out[:, : x.shape[1]]


def _sizes(pipe: Any, size: Size) -> Conditions:
    """What the 1024 pixel network of PixArt-alpha is told; the others are not."""
    module = module_of(pipe)
    if not getattr(module, "use_additional_conditions", False):
        return {}
    whole = torch.tensor([[float(size.height), float(size.width)]])
    return {"resolution": whole, "aspect_ratio": whole[:, :1] / whole[:, 1:]}


FAMILY = Family(
    classes=("PixArtTransformer2DModel",),
    returns=(
        "prompt_embeds",
        "prompt_attention_mask",
        "negative_prompt_embeds",
        "negative_prompt_attention_mask",
    ),
    conditions={
        "encoder_hidden_states": "prompt_embeds",
        "encoder_attention_mask": "prompt_attention_mask",
    },
    shape=latent_shape,
    call=_call,
    extra=_sizes,
)
