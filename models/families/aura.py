"""AuraFlowTransformer2DModel."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from . import pixart
from .base import tensor_of


def _call(module: Any, x: Tensor, time: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
    return tensor_of(module, hidden_states=x, timestep=time / 1000.0, **conditions)


FAMILY = replace(
    pixart.FAMILY,
    classes=("AuraFlowTransformer2DModel",),
    conditions={"encoder_hidden_states": "prompt_embeds"},
    call=_call,
    extra=lambda pipe, size: {},
)
