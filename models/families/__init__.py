"""Adapters of networks that are asked with a prompt: one small file per family.

The pipeline encodes the prompt and decodes the latent; the sampling between is ours.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..adapters import decoder_of, encoder_of
from ..denoiser import Network
from ..diffusers_config import from_scheduler_config
from ..errors import ModelError, SettingError, UnknownNameError
from ..schedule import Node
from . import aura, cogvideox, flux, hunyuan, ltx, lumina2, pixart, qwen, sana, sd3, unet, wan
from .base import Conditions, Family, Size, device_of, encode, module_of
from .checks import check_pipeline, no_adapter
from .prompts import Prompts

__all__ = [
    "FAMILIES",
    "Family",
    "Prompts",
    "Size",
    "default_size",
    "encoded",
    "family_of",
    "fitted",
    "network_of",
]

FAMILIES = (
    unet.PLAIN,
    unet.XL,
    sd3.FAMILY,
    flux.FAMILY,
    pixart.FAMILY,
    sana.FAMILY,
    qwen.FAMILY,
    wan.FAMILY,
    lumina2.FAMILY,
    aura.FAMILY,
    ltx.FAMILY,
    cogvideox.FAMILY,
    hunyuan.FAMILY,
)


def family_of(pipe: Any) -> Family | None:
    """The family of a pipeline's network; None where there is no adapter for it."""
    module = module_of(pipe)
    name = type(module).__name__
    if name == "UNet2DConditionModel":
        added = module.config.get("addition_embed_type")
        return {None: unet.PLAIN, "text_time": unet.XL}.get(added)
    return next((family for family in FAMILIES if name in family.classes), None)


def network_of(pipe: Any, size: Size) -> Network:
    """The network of a live pipeline, sampling images or videos of one size.

    Raises:
        ModelError: if there is no adapter for it, or its scheduler does not say how it was trained.
        SettingError: for a size that it does not draw.
    """
    family, module = _known(pipe), module_of(pipe)
    check_pipeline(family, pipe, size)
    shape = family.shape(pipe, size)
    if 0 in shape:
        raise SettingError(f"{size.width}x{size.height} is less than one patch of this network")
    extra = family.extra(pipe, size)
    known = {*family.conditions, *extra}
    config = {**pipe.scheduler.config, "_class_name": type(pipe.scheduler).__name__}
    schedule, prediction = from_scheduler_config(config, tokens=family.tokens(shape))

    def forward(x: Tensor, node: Node, conditions: Mapping[str, Any]) -> Tensor:
        for name in conditions.keys() - known:
            raise UnknownNameError("condition", name, known)
        kind = next(module.parameters()).dtype
        time = torch.full((len(x),), schedule.label(node), dtype=torch.float32, device=x.device)
        cast = {k: v.to(kind) if v.is_floating_point() else v for k, v in conditions.items()}
        return family.call(module, x.to(kind), time, cast).to(x.dtype)

    return Network(
        forward=forward,
        schedule=schedule,
        prediction=prediction,
        shape=shape,
        decode=_decoder(family, pipe),
        encode=_encoder(family, pipe),
        prompts=Prompts(family, pipe, size),
        needs=(*(name for name in family.conditions if "mask" not in name), *extra),
        device=device_of(pipe),
        name=str(getattr(pipe, "name_or_path", "") or type(pipe).__name__),
        module=module,
    )


def fitted(network: Network, shape: tuple[int, ...]) -> Network:
    """The network for samples of another shape (C, H, W), where a pipeline can make it.

    Its times may be others: some pipelines shift them by the number of tokens.
    """
    if network.prompts is None or network.encode is None or shape == network.shape:
        return network
    pipe, size = network.prompts.pipe, network.prompts.size
    per = int(pipe.vae_scale_factor)
    return network_of(pipe, replace(size, height=shape[-2] * per, width=shape[-1] * per))


def default_size(pipe: Any) -> Size:
    """What the pipeline draws if it is told no size.

    Raises:
        ModelError: if its network does not say it.
    """
    side = getattr(pipe, "default_sample_size", None) or module_of(pipe).config.get("sample_size")
    if side is None or not hasattr(pipe, "vae_scale_factor"):
        raise ModelError(
            f"{type(pipe).__name__} does not say what size it draws; give Size(height, width) to"
            " Sampler.from_pipeline"
        )
    height, width = (side, side) if isinstance(side, int) else side
    return Size(height * int(pipe.vae_scale_factor), width * int(pipe.vae_scale_factor))


def encoded(pipe: Any, size: Size, **texts: Any) -> tuple[Conditions, Conditions | None]:
    """The conditions of a prompt, and of a negative one where it is given, as `Sampler` takes them.

    texts: prompt, negative_prompt, or the embeddings that the pipeline's call takes in their place.
    """
    family = _known(pipe)
    texts = {name: value for name, value in texts.items() if value is not None}
    conditions, negative = encode(family, pipe, **texts)
    return {**conditions, **family.extra(pipe, size)}, negative


def _known(pipe: Any) -> Family:
    family = family_of(pipe)
    if family is None:
        raise no_adapter(pipe, FAMILIES)
    return family


def _decoder(family: Family, pipe: Any) -> Any:
    vae = getattr(pipe, "vae", None)
    if vae is None or not family.images:
        return None
    return decoder_of(vae) if family.decode is None else partial(family.decode, vae)


def _encoder(family: Family, pipe: Any) -> Any:
    vae = getattr(pipe, "vae", None)
    if vae is None or not family.images:
        return None
    return encoder_of(vae) if family.encode is None else partial(family.encode, vae)
