"""WanTransformer3DModel: text to video; samples stay latents, as there is no picture of them."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .base import Family, tensor_of, video_shape


def _call(module: Any, x: Tensor, time: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
    return tensor_of(module, hidden_states=x, timestep=time, **conditions)


def unscaled(vae: Any, latents: Tensor) -> Tensor:
    """The VAE's video (B, C, F, H, W) of latents that were scaled channel by channel."""
    mean, spread = _statistics(vae, latents)
    dtype = next(vae.parameters()).dtype
    video: Tensor = vae.decode((latents * spread + mean).to(dtype), return_dict=False)[0]
    return video.float()


def scaled(vae: Any, video: Tensor) -> Tensor:
    """The way back of `unscaled`, by the mode of the VAE's posterior."""
    dtype = next(vae.parameters()).dtype
    latents: Tensor = vae.encode(video.to(dtype), return_dict=False)[0].mode().float()
    mean, spread = _statistics(vae, latents)
    return (latents - mean) / spread


def _statistics(vae: Any, like: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel (1, C, 1, 1, 1)."""
    found = (like.new_tensor(vae.config[f"latents_{key}"]) for key in ("mean", "std"))
    mean, spread = (values.view(1, -1, 1, 1, 1) for values in found)
    return mean, spread


FAMILY = Family(
    classes=("WanTransformer3DModel",),
    returns=("prompt_embeds", "negative_prompt_embeds"),
    conditions={"encoder_hidden_states": "prompt_embeds"},
    shape=video_shape,
    call=_call,
    images=False,
)
