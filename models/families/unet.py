"""UNet2DConditionModel: Stable Diffusion 1.x and 2.x, and SDXL with its sizes and pooled text."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .base import Conditions, Family, Size, latent_shape, module_of, tensor_of

ADDED = ("text_embeds", "time_ids")


def _call(module: Any, x: Tensor, time: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
    added = {name: conditions[name] for name in ADDED if name in conditions}
    text = conditions["encoder_hidden_states"]
    return tensor_of(
        module,
        sample=x,
        timestep=time,
        encoder_hidden_states=text,
        added_cond_kwargs=added or None,
    )


def _sizes(pipe: Any, size: Size) -> Conditions:
    """Original size, crop and target size, as SDXL is told them."""
    if module_of(pipe).config.get("addition_embed_type") != "text_time":
        return {}
    whole = (size.height, size.width)
    return {"time_ids": torch.tensor([[*whole, 0, 0, *whole]], dtype=torch.float32)}


PLAIN = Family(
    classes=("UNet2DConditionModel",),
    returns=("prompt_embeds", "negative_prompt_embeds"),
    conditions={"encoder_hidden_states": "prompt_embeds"},
    shape=latent_shape,
    call=_call,
)
XL = Family(
    classes=("UNet2DConditionModel",),
    returns=(*PLAIN.returns, "pooled_prompt_embeds", "negative_pooled_prompt_embeds"),
    conditions={**PLAIN.conditions, "text_embeds": "pooled_prompt_embeds"},
    shape=latent_shape,
    call=_call,
    extra=_sizes,
)
