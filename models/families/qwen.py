"""QwenImageTransformer2DModel: packed states, one prompt encoded at a time."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .base import Family, guidance_told, pack, tensor_of, unpack
from .flux import packed_shape
from .wan import scaled, unscaled


def _call(module: Any, x: Tensor, time: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
    places = [[(1, x.shape[-2] // 2, x.shape[-1] // 2)]] * len(x)
    tokens = tensor_of(
        module, hidden_states=pack(x), timestep=time / 1000.0, img_shapes=places, **conditions
    )
    return unpack(tokens, x.shape)


def _decode(vae: Any, latents: Tensor) -> Tensor:
    """Images are videos of one frame to this VAE."""
    return unscaled(vae, latents.unsqueeze(2))[:, :, 0]


def _encode(vae: Any, images: Tensor) -> Tensor:
    return scaled(vae, images.unsqueeze(2))[:, :, 0]


FAMILY = Family(
    classes=("QwenImageTransformer2DModel",),
    returns=("prompt_embeds", "prompt_embeds_mask"),
    conditions={
        "encoder_hidden_states": "prompt_embeds",
        "encoder_hidden_states_mask": "prompt_embeds_mask",
    },
    shape=packed_shape,
    call=_call,
    extra=guidance_told(3.5),
    packs=2,
    decode=_decode,
    encode=_encode,
)
