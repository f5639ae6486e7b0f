"""AuraFlowTransformer2DModel."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from .base import TEXT, Architecture, GuidanceLayout
from .common import MASKED_TEXT, tensor_of


def _call(module: Any, x: Tensor, time: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
    return tensor_of(module, hidden_states=x, timestep=time / 1000.0, **conditions)


AURA_FLOW = Architecture(
    classes=("AuraFlowTransformer2DModel",),
    prompted=(replace(MASKED_TEXT, conditions={TEXT: "prompt_embeds"}, call=_call),),
    pipelines={"AuraFlowPipeline": GuidanceLayout(turns=False, unit=1000.0)},
)
