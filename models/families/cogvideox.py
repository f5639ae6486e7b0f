"""CogVideoXTransformer3DModel without rotary embeddings (2B); samples (F, C, H, W) stay latents."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..errors import ModelError
from .base import Family, Size, module_of, tensor_of, video_shape


def _shape(pipe: Any, size: Size) -> tuple[int, int, int, int]:
    config = module_of(pipe).config
    if config.get("use_rotary_positional_embeddings") or config.get("patch_size_t") is not None:
        raise ModelError(
            "CogVideoX 5B and 1.5 have rotary embeddings, which their pipeline makes; put a"
            " SolverScheduler in it instead"
        )
    channels, frames, height, width = video_shape(pipe, size)
    return frames, channels, height, width


def _call(module: Any, x: Tensor, time: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
    return tensor_of(module, hidden_states=x, timestep=time, **conditions)


FAMILY = Family(
    classes=("CogVideoXTransformer3DModel",),
    returns=("prompt_embeds", "negative_prompt_embeds"),
    conditions={"encoder_hidden_states": "prompt_embeds"},
    shape=_shape,
    call=_call,
    images=False,
)
