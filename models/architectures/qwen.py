"""QwenImageTransformer2DModel: packed states, one prompt encoded at a time."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .base import (
    IMAGE,
    TEXT,
    Architecture,
    Arguments,
    BlockGroup,
    BlockStructure,
    GuidanceLayout,
    PromptAdapter,
    SelfAttention,
)
from .common import BLOCKS, distilled_guidance, pack, packed_shape, tensor_of, unpack


def _call(module: Any, x: Tensor, time: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
    places = [[(1, x.shape[-2] // 2, x.shape[-1] // 2)]] * len(x)
    tokens = tensor_of(
        module, hidden_states=pack(x), timestep=time / 1000.0, img_shapes=places, **conditions
    )
    return unpack(tokens, x.shape)


def decode_image(vae: Any, latents: Tensor) -> Tensor:
    """Decodes latents (B, C, H, W), scaled channel by channel; images are videos of one frame."""
    latents = latents.unsqueeze(2)
    mean, std = _statistics(vae, latents)
    dtype = next(vae.parameters()).dtype
    video: Tensor = vae.decode((latents * std + mean).to(dtype), return_dict=False)[0]
    return video.float()[:, :, 0]


def encode_image(vae: Any, images: Tensor) -> Tensor:
    """Inverts `decode_image`, by the mode of the VAE's posterior."""
    dtype = next(vae.parameters()).dtype
    posterior = vae.encode(images.unsqueeze(2).to(dtype), return_dict=False)[0]
    latents: Tensor = posterior.mode().float()
    mean, std = _statistics(vae, latents)
    return ((latents - mean) / std)[:, :, 0]


def _statistics(vae: Any, like: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the mean and standard deviation of each channel, (1, C, 1, 1, 1)."""
    values = (like.new_tensor(vae.config[f"latents_{key}"]) for key in ("mean", "std"))
    mean, std = (each.view(1, -1, 1, 1, 1) for each in values)
    return mean, std


def _image_modulation(block: Any, arguments: Arguments) -> Tensor:
    """Modulates the image; with `zero_cond_t` a reference image has a time of its own."""
    first, _ = block.img_mod(arguments["temb"]).chunk(2, dim=-1)
    normed = block.img_norm1(arguments[IMAGE])
    out: Tensor = block._modulate(normed, first, arguments.get("modulate_index"))[0]
    return out


QWEN_IMAGE = Architecture(
    classes=("QwenImageTransformer2DModel",),
    blocks=BlockStructure(
        groups=(BlockGroup(BLOCKS, (TEXT, IMAGE)),),
        modules=(rf"{BLOCKS}\.\d+\.(attn|img_mlp|txt_mlp)",),
        signal=_image_modulation,
    ),
    attention=SelfAttention(rf"{BLOCKS}\.\d+\.attn"),
    prompted=(
        PromptAdapter(
            returns=("prompt_embeds", "prompt_embeds_mask"),
            conditions={TEXT: "prompt_embeds", f"{TEXT}_mask": "prompt_embeds_mask"},
            shape=packed_shape,
            call=_call,
            extra=distilled_guidance(3.5),
            packs=2,
            decode=decode_image,
            encode=encode_image,
        ),
    ),
    pipelines={"QwenImagePipeline": GuidanceLayout(turns=True, unit=1000.0, normed=True)},
)
