"""UNet2DConditionModel: Stable Diffusion 1.x and 2.x, and SDXL with its sizes and pooled text."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .base import ONE_CALL, TEXT, Architecture, Conditions, SelfAttention, Size
from .common import PLAIN_TEXT, tensor_of

ADDED = ("text_embeds", "time_ids")


def _call(module: Any, x: Tensor, time: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
    added = {name: conditions[name] for name in ADDED if name in conditions}
    return tensor_of(
        module,
        sample=x,
        timestep=time,
        encoder_hidden_states=conditions[TEXT],
        added_cond_kwargs=added or None,
    )


def _sizes(pipe: Any, size: Size) -> Conditions:
    """Returns the original size, the crop and the target size, as SDXL takes them."""
    whole = (size.height, size.width)
    return {"time_ids": torch.tensor([[*whole, 0, 0, *whole]], dtype=torch.float32)}


PLAIN = replace(PLAIN_TEXT, call=_call, config={"addition_embed_type": None})
XL = replace(
    PLAIN,
    config={"addition_embed_type": "text_time"},
    returns=(*PLAIN.returns, "pooled_prompt_embeds", "negative_pooled_prompt_embeds"),
    conditions={**PLAIN.conditions, "text_embeds": "pooled_prompt_embeds"},
    extra=_sizes,
)
UNET_CONDITION = Architecture(
    classes=("UNet2DConditionModel",),
    unet=True,
    attention=SelfAttention(r".*transformer_blocks\.\d+\.attn1", perturbable=True),
    prompted=(PLAIN, XL),
    pipelines={
        "StableDiffusionPipeline": ONE_CALL,
        "StableDiffusionImg2ImgPipeline": ONE_CALL,
        "StableDiffusionInpaintPipeline": ONE_CALL,
        "StableDiffusionXLPipeline": ONE_CALL,
    },
    modular=True,
)
