"""LTXVideoTransformer3DModel: text to video at 25 frames a second; samples stay latents."""

from collections.abc import Mapping
from math import prod
from typing import Any

import torch
from torch import Tensor

from ..errors import ModelError
from .base import Conditions, Family, Size, module_of, tensor_of

FRAME_RATE = 25.0


def _shape(pipe: Any, size: Size) -> tuple[int, int, int, int]:
    """(C, F, H, W); every place is one token."""
    config, (per_time, per, _) = module_of(pipe).config, _compression(pipe)
    if (config.get("patch_size", 1), config.get("patch_size_t", 1)) != (1, 1):
        raise ModelError("this LTX network takes patches of more than one place, which is not done")
    frames = (size.frames - 1) // per_time + 1
    return int(config["in_channels"]), frames, size.height // per, size.width // per


def _compression(pipe: Any) -> tuple[int, int, int]:
    """Frames, rows and columns of one place of the latent."""
    side = int(pipe.vae_spatial_compression_ratio)
    return int(pipe.vae_temporal_compression_ratio), side, side


def _call(module: Any, x: Tensor, time: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
    text = {name: value for name, value in conditions.items() if name != "compression"}
    seconds = x.new_tensor([FRAME_RATE, 1.0, 1.0], dtype=torch.float32)
    tokens = tensor_of(
        module,
        hidden_states=x.flatten(2).transpose(1, 2),
        timestep=time,
        **dict(zip(("num_frames", "height", "width"), x.shape[2:], strict=True)),
        rope_interpolation_scale=conditions["compression"][0] / seconds,
        **text,
    )
    return tokens.transpose(1, 2).reshape(x.shape)


def _places(pipe: Any, size: Size) -> Conditions:
    return {"compression": torch.tensor([_compression(pipe)])}  # whole numbers keep their dtype


FAMILY = Family(
    classes=("LTXVideoTransformer3DModel",),
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
    shape=_shape,
    call=_call,
    extra=_places,
    tokens=lambda shape: prod(shape[1:]),
    images=False,
)
