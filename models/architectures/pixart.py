"""PixArtTransformer2DModel: alpha and Sigma; a learned variance is dropped."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .base import (
    ONE_CALL,
    Architecture,
    BlockGroup,
    BlockStructure,
    Conditions,
    SelfAttention,
    Size,
)
from .common import BLOCKS, MASKED_TEXT, module_of, table_norm, tensor_of

ADDED = ("resolution", "aspect_ratio")


def _call(module: Any, x: Tensor, time: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
    added = {name: conditions.get(name) for name in ADDED}
    text = {name: value for name, value in conditions.items() if name not in ADDED}
    out = tensor_of(module, hidden_states=x, timestep=time, added_cond_kwargs=added, **text)
    return out[:, : x.shape[1]]


def _sizes(pipe: Any, size: Size) -> Conditions:
    """Returns the conditions of the 1024 pixel network of PixArt-alpha; the others have none."""
    module = module_of(pipe)
    if not getattr(module, "use_additional_conditions", False):
        return {}
    whole = torch.tensor([[float(size.height), float(size.width)]])
    return {"resolution": whole, "aspect_ratio": whole[:, :1] / whole[:, 1:]}


PIXART = Architecture(
    classes=("PixArtTransformer2DModel",),
    blocks=BlockStructure(
        groups=(BlockGroup(BLOCKS),),
        modules=(rf"{BLOCKS}\.\d+\.(attn1|attn2|ff)",),
        signal=table_norm,
    ),
    attention=SelfAttention(rf"{BLOCKS}\.\d+\.attn1", perturbable=True),
    prompted=(replace(MASKED_TEXT, call=_call, extra=_sizes),),
    pipelines={"PixArtAlphaPipeline": ONE_CALL, "PixArtSigmaPipeline": ONE_CALL},
)
