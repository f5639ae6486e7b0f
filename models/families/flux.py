"""FluxTransformer2DModel: states packed into 2 x 2 patches, ids of places, guidance as a number."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .base import Family, Size, guidance_told, module_of, pack, tensor_of, unpack


def packed_shape(pipe: Any, size: Size) -> tuple[int, int, int]:
    """(C, H, W) of the state before it is packed."""
    per = 2 * int(pipe.vae_scale_factor)
    channels = int(module_of(pipe).config["in_channels"]) // 4
    return channels, size.height // per * 2, size.width // per * 2


def _call(module: Any, x: Tensor, time: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
    text = conditions["encoder_hidden_states"]
    tokens = tensor_of(
        module,
        hidden_states=pack(x),
        timestep=time / 1000.0,
        img_ids=_places(x),
        txt_ids=x.new_zeros(text.shape[1], 3),
        **conditions,
    )
    return unpack(tokens, x.shape)


def _places(x: Tensor) -> Tensor:
    """(H W / 4, 3): 0, the row and the column of every patch."""
    rows, columns = (torch.arange(n // 2, device=x.device) for n in x.shape[-2:])
    place = torch.cartesian_prod(rows, columns)
    return torch.cat([torch.zeros_like(place[:, :1]), place], dim=1).to(x.dtype)


FAMILY = Family(
    classes=("FluxTransformer2DModel",),
    returns=("prompt_embeds", "pooled_prompt_embeds", "text_ids"),
    conditions={
        "encoder_hidden_states": "prompt_embeds",
        "pooled_projections": "pooled_prompt_embeds",
    },
    shape=packed_shape,
    call=_call,
    extra=guidance_told(3.5),
    packs=2,
)
