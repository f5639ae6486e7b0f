"""Parts that several cards share: shapes, packing, calls of a network, signals of TeaCache."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import ModelError
from .base import (
    IMAGE,
    TEXT,
    Arguments,
    BlockGroup,
    BlockStructure,
    Conditions,
    Modulate,
    PromptAdapter,
    Size,
)

BLOCKS = "transformer_blocks"
SINGLE = "single_transformer_blocks"


def module_of(pipe: Any) -> Any:
    """Returns the network of a pipeline; raises ModelError if it has none."""
    for name in ("transformer", "unet"):
        module = getattr(pipe, name, None)
        if module is not None:  # a compiled one has no truth value
            return module
    raise ModelError(f"{type(pipe).__name__} has neither a unet nor a transformer to sample")


def latent_shape(pipe: Any, size: Size, patch: int = 1) -> tuple[int, int, int]:
    """Returns (C, H, W) of the network's own state, rounded down to whole patches."""
    per = int(pipe.vae_scale_factor) * patch
    config = module_of(pipe).config
    return int(config["in_channels"]), size.height // per * patch, size.width // per * patch


def packed_shape(pipe: Any, size: Size) -> tuple[int, int, int]:
    """Returns (C, H, W) of the state before it is packed."""
    channels, height, width = latent_shape(pipe, size, patch=2)
    return channels // 4, height, width


def video_shape(pipe: Any, size: Size) -> tuple[int, int, int, int]:
    """Returns (C, F, H, W) of a video's latent."""
    per, frames = int(pipe.vae_scale_factor_spatial), int(pipe.vae_scale_factor_temporal)
    channels = int(module_of(pipe).config["in_channels"])
    return channels, (size.frames - 1) // frames + 1, size.height // per, size.width // per


def pack(x: Tensor) -> Tensor:
    """Packs (B, C, H, W) into (B, H W / 4, 4 C): 2 x 2 patches as tokens, channels outermost."""
    b, c, h, w = x.shape
    return x.view(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, -1, 4 * c)


def unpack(tokens: Tensor, shape: torch.Size) -> Tensor:
    """Inverts `pack` for a state of this shape."""
    b, c, h, w = shape
    return tokens.view(b, h // 2, w // 2, c, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(shape)


def tensor_of(module: Any, **arguments: Any) -> Tensor:
    """Returns a diffusers model's output as a tensor."""
    out: Tensor = module(**arguments, return_dict=False)[0]
    return out


def call_transformer(
    module: Any, x: Tensor, time: Tensor, conditions: Mapping[str, Tensor]
) -> Tensor:
    """Calls a transformer that takes its state, time and conditions as they are."""
    return tensor_of(module, hidden_states=x, timestep=time, **conditions)


def distilled_guidance(usual: float, unit: float = 1.0) -> Callable[[Any, Size], Conditions]:
    """Returns the condition of networks distilled to a guidance scale, and none for the others.

    usual: the scale where the size says none. unit: what a scale of 1 is for the network.
    """

    def extra(pipe: Any, size: Size) -> Conditions:
        if not module_of(pipe).config.get("guidance_embeds"):
            return {}
        scale = usual if size.guidance is None else size.guidance
        return {"guidance": torch.tensor([float(scale) * unit])}

    return extra


PLAIN_TEXT = PromptAdapter(
    returns=("prompt_embeds", "negative_prompt_embeds"),
    conditions={TEXT: "prompt_embeds"},
    shape=latent_shape,
    call=call_transformer,
)
MASKED_TEXT = PromptAdapter(
    returns=(
        "prompt_embeds",
        "prompt_attention_mask",
        "negative_prompt_embeds",
        "negative_prompt_attention_mask",
    ),
    conditions={TEXT: "prompt_embeds", "encoder_attention_mask": "prompt_attention_mask"},
    shape=latent_shape,
    call=call_transformer,
)


def double_and_single_blocks(streams: tuple[str, ...], signal: Modulate) -> BlockStructure:
    """Returns the blocks of Flux and its like: image and text apart, then joined inside a block."""
    return BlockStructure(
        groups=(BlockGroup(BLOCKS, streams), BlockGroup(SINGLE, streams)),
        modules=(rf"{BLOCKS}\.\d+\.(attn|ff|ff_context)", rf"{SINGLE}\.\d+\.proj_out"),
        idle=(rf"{SINGLE}\.\d+\.(attn|proj_mlp)",),
        signal=signal,
    )


def adaptive_norm(block: Any, arguments: Arguments) -> Tensor:
    """Modulates the first norm: adaLN-zero with a time embedding."""
    out: Tensor = block.norm1(arguments[IMAGE], emb=arguments["temb"])[0]
    return out


def table_norm(block: Any, arguments: Arguments) -> Tensor:
    """Modulates it by one embedding for all blocks plus a table of six rows in each."""
    image = arguments[IMAGE]
    rows = block.scale_shift_table[None] + arguments["timestep"].reshape(len(image), 6, -1)
    shift, scale = rows[:, :1], rows[:, 1:2]
    out: Tensor = block.norm1(image) * (1 + scale) + shift
    return out
