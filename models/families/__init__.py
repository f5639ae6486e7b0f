"""Adapters of networks that are asked with a prompt: one small file per family.

The pipeline encodes the prompt and decodes the latent; the sampling between is ours.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..adapters import decoder_of
from ..denoiser import Network
from ..diffusers_config import from_scheduler_config
from ..errors import ModelError
from ..schedule import Node
from . import flux, pixart, qwen, sana, sd3, unet, wan
from .base import Conditions, Family, Size, encode, module_of

__all__ = ["FAMILIES", "Family", "Size", "encoded", "family_of", "network_of"]

FAMILIES = (
    unet.PLAIN,
    unet.XL,
    sd3.FAMILY,
    flux.FAMILY,
    pixart.FAMILY,
    sana.FAMILY,
    qwen.FAMILY,
    wan.FAMILY,
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
    """
    family, module = _known(pipe), module_of(pipe)
    shape = family.shape(pipe, size)
    config = {**pipe.scheduler.config, "_class_name": type(pipe.scheduler).__name__}
    schedule, prediction = from_scheduler_config(config, tokens=family.tokens(shape))

    def forward(x: Tensor, node: Node, conditions: Mapping[str, Any]) -> Tensor:
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
        needs=tuple(name for name in family.conditions if "mask" not in name),
        device=torch.device(module.device),
        name=str(getattr(pipe, "name_or_path", "") or type(pipe).__name__),
        module=module,
    )


def encoded(pipe: Any, size: Size, **texts: Any) -> tuple[Conditions, Conditions | None]:
    """The conditions of a prompt, and of a negative one where it is given, as `Sampler` takes them.

    texts: prompt, negative_prompt, or the embeddings that the pipeline's call takes in their place.
    """
    family = _known(pipe)
    conditions, negative = encode(family, pipe, **texts)
    return {**conditions, **family.extra(pipe, size)}, negative


def _known(pipe: Any) -> Family:
    family = family_of(pipe)
    if family is None:
        classes = sorted({name for each in FAMILIES for name in each.classes})
        raise ModelError(
            f"there is no adapter for {type(module_of(pipe)).__name__}, only for"
            f" {', '.join(classes)}; put a SolverScheduler in the pipeline instead"
        )
    return family


def _decoder(family: Family, pipe: Any) -> Any:
    vae = getattr(pipe, "vae", None)
    if vae is None or not family.images:
        return None
    return decoder_of(vae) if family.decode is None else partial(family.decode, vae)
