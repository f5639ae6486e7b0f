"""FluxTransformer2DModel: states packed into 2 x 2 patches, ids of places, guidance as a number."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from .base import (
    IMAGE,
    TEXT,
    Architecture,
    GuidanceLayout,
    PromptAdapter,
    PublishedCalibration,
    SelfAttention,
)
from .common import (
    SINGLE,
    adaptive_norm,
    distilled_guidance,
    double_and_single_blocks,
    pack,
    packed_shape,
    tensor_of,
    unpack,
)

PIPELINE = GuidanceLayout(turns=True, unit=1000.0)


def _call(module: Any, x: Tensor, time: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
    tokens = tensor_of(
        module,
        hidden_states=pack(x),
        timestep=time / 1000.0,
        img_ids=_places(x),
        txt_ids=x.new_zeros(conditions[TEXT].shape[1], 3),
        **conditions,
    )
    return unpack(tokens, x.shape)


def _places(x: Tensor) -> Tensor:
    """Returns the ids (H W / 4, 3) of all patches: 0, its row and its column."""
    rows, columns = (torch.arange(n // 2, device=x.device) for n in x.shape[-2:])
    place = torch.cartesian_prod(rows, columns)
    return torch.cat([torch.zeros_like(place[:, :1]), place], dim=1).to(x.dtype)


def _ratios() -> Iterable[float]:
    """Reads MagCache's ratios of FLUX.1, of a run of 28 steps, from diffusers."""
    from diffusers.hooks.mag_cache import FLUX_MAG_RATIOS

    return map(float, FLUX_MAG_RATIOS)


FLUX = Architecture(
    classes=("FluxTransformer2DModel",),
    same_blocks=("BriaTransformer2DModel", "LongCatImageTransformer2DModel"),
    blocks=double_and_single_blocks((TEXT, IMAGE), adaptive_norm),
    attention=SelfAttention(rf"{SINGLE}\.\d+\.attn", (20, 38), text=True),
    calibrations=(
        PublishedCalibration(
            "flux.1",
            {"num_layers": 19, "num_single_layers": 38, "in_channels": 64},
            (498.651651, -283.781631, 55.8554382, -3.82021401, 0.264230861),
            _ratios,
        ),
    ),
    prompted=(
        PromptAdapter(
            returns=("prompt_embeds", "pooled_prompt_embeds", "text_ids"),
            conditions={TEXT: "prompt_embeds", "pooled_projections": "pooled_prompt_embeds"},
            shape=packed_shape,
            call=_call,
            extra=distilled_guidance(3.5),
            packs=2,
        ),
    ),
    pipelines={"FluxPipeline": PIPELINE, "FluxImg2ImgPipeline": PIPELINE},
)
