"""LTXVideoTransformer3DModel: text to video at 25 frames a second; samples stay latents."""

from collections.abc import Mapping
from dataclasses import replace
from math import prod
from typing import Any

import torch
from torch import Tensor

from ..errors import ModelError
from .base import (
    IMAGE,
    ONE_CALL,
    Architecture,
    Arguments,
    BlockGroup,
    BlockStructure,
    Conditions,
    PublishedCalibration,
    SelfAttention,
    Size,
)
from .common import BLOCKS, MASKED_TEXT, module_of, tensor_of

FRAME_RATE = 25.0


def _shape(pipe: Any, size: Size) -> tuple[int, int, int, int]:
    """Returns (C, F, H, W); every place is one token."""
    config, (per_time, per, _) = module_of(pipe).config, _compression(pipe)
    if (config.get("patch_size", 1), config.get("patch_size_t", 1)) != (1, 1):
        raise ModelError("this LTX network takes patches of more than one place, which is not done")
    frames = (size.frames - 1) // per_time + 1
    return int(config["in_channels"]), frames, size.height // per, size.width // per


def _compression(pipe: Any) -> tuple[int, int, int]:
    """Returns the frames, rows and columns of one place of the latent."""
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


def _table_per_token(block: Any, arguments: Arguments) -> Tensor:
    """Modulates as `table_norm` does, by times that may differ from token to token."""
    image, temb = arguments[IMAGE], arguments["temb"]
    rows = block.scale_shift_table + temb.reshape(len(image), temb.shape[1], 6, -1)
    out: Tensor = block.norm1(image) * (1 + rows[:, :, 1]) + rows[:, :, 0]
    return out


LTX = Architecture(
    classes=("LTXVideoTransformer3DModel",),
    blocks=BlockStructure(
        groups=(BlockGroup(BLOCKS),),
        modules=(rf"{BLOCKS}\.\d+\.(attn1|attn2|ff)",),
        signal=_table_per_token,
    ),
    attention=SelfAttention(rf"{BLOCKS}\.\d+\.attn1"),
    calibrations=(
        PublishedCalibration(
            "ltx-video",
            {"num_layers": 28},
            (21.4700694, -12.8016453, 2.31279151, 0.792487521, 0.00969274326),
        ),
    ),
    prompted=(
        replace(
            MASKED_TEXT,
            shape=_shape,
            call=_call,
            extra=_places,
            tokens=lambda shape: prod(shape[1:]),
            images=False,
        ),
    ),
    pipelines={"LTXPipeline": ONE_CALL},
)
