"""WanTransformer3DModel: text to video; samples stay latents, as there is no picture of them."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .base import Family, Size, module_of, tensor_of


def _shape(pipe: Any, size: Size) -> tuple[int, int, int, int]:
    per, frames = int(pipe.vae_scale_factor_spatial), int(pipe.vae_scale_factor_temporal)
    channels = int(module_of(pipe).config["in_channels"])
    return channels, (size.frames - 1) // frames + 1, size.height // per, size.width // per


def _call(module: Any, x: Tensor, time: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
    return tensor_of(module, hidden_states=x, timestep=time, **conditions)


def unscaled(vae: Any, latents: Tensor) -> Tensor:
    """The VAE's video (B, C, F, H, W) of latents that were scaled channel by channel."""
    shape = (1, -1, 1, 1, 1)
    mean, spread = (latents.new_tensor(vae.config[f"latents_{key}"]) for key in ("mean", "std"))
    plain = latents * spread.view(shape) + mean.view(shape)
    dtype = next(vae.parameters()).dtype
    video: Tensor = vae.decode(plain.to(dtype), return_dict=False)[0]
    return video.float()


FAMILY = Family(
    classes=("WanTransformer3DModel",),
    returns=("prompt_embeds", "negative_prompt_embeds"),
    conditions={"encoder_hidden_states": "prompt_embeds"},
    shape=_shape,
    call=_call,
    images=False,
)
