"""What the networks of text-to-image pipelines have in common, as far as our loop needs it."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..errors import ModelError

Conditions = dict[str, Tensor]
Call = Callable[[Any, Tensor, Tensor, Mapping[str, Tensor]], Tensor]


@dataclass(frozen=True)
class Size:
    """What shall be sampled, in pixels and frames; guidance is what distilled networks are told."""

    height: int
    width: int
    frames: int = 1
    guidance: float = 3.5


@dataclass(frozen=True, kw_only=True)
class Family:
    """How a pipeline's network is called without the pipeline.

    classes:    of diffusers models.
    returns:    what `encode_prompt` of the pipeline returns, in its order.
    conditions: name of each condition and which of those it is; a negative one is called the same
                with "negative_" before it.
    shape:      (pipe, size) -> one sample without the batch axis.
    call:       (module, x (B, *shape), network time (B,), conditions) -> output like x.
    extra:      (pipe, size) -> conditions of one row that do not come from the prompt.
    tokens:     shape -> number of image tokens, for networks that shift their times by it.
    decode:     (vae, samples) -> images in [-1, 1]; None is as `models.adapters` does it.
    images:     whether the samples are images at all.
    """

    classes: tuple[str, ...]
    returns: tuple[str, ...]
    conditions: Mapping[str, str]
    shape: Callable[[Any, Size], tuple[int, ...]]
    call: Call
    extra: Callable[[Any, Size], Conditions] = field(default=lambda pipe, size: {})
    tokens: Callable[[tuple[int, ...]], int] = field(
        default=lambda shape: shape[-2] * shape[-1] // 4
    )
    decode: Callable[[Any, Tensor], Tensor] | None = None
    images: bool = True


def module_of(pipe: Any) -> Any:
    """The network of a pipeline."""
    found = getattr(pipe, "transformer", None) or getattr(pipe, "unet", None)
    if found is None:
        raise ModelError(f"{type(pipe).__name__} has neither a unet nor a transformer to sample")
    return found


def latent_shape(pipe: Any, size: Size, patch: int = 1) -> tuple[int, int, int]:
    """(C, H, W) of the network's own state, rounded down to whole patches."""
    per = int(pipe.vae_scale_factor) * patch
    config = module_of(pipe).config
    return int(config["in_channels"]), size.height // per * patch, size.width // per * patch


def encode(family: Family, pipe: Any, **texts: Any) -> tuple[Conditions, Conditions | None]:
    """The conditions of a prompt and of what it shall not be, None where that is not given.

    texts: prompt and negative_prompt, or the embeddings that the pipeline's own call takes.
    """
    wanted = texts.get("negative_prompt") is not None or "negative_prompt_embeds" in texts
    both = any(name.startswith("negative_") for name in family.returns)
    found = _encoded(family, pipe, {**texts, "do_classifier_free_guidance": wanted})
    negative = {key: value for key, value in found.items() if key.startswith("negative_")}
    if wanted and not both:  # such pipelines encode one prompt at a time
        marked = {key.removeprefix("negative_"): v for key, v in texts.items() if "negative" in key}
        other = _encoded(family, pipe, marked)
        negative = {f"negative_{key}": value for key, value in other.items()}
    return _named(family, found), _named(family, negative, "negative_") if wanted else None


def _encoded(family: Family, pipe: Any, texts: Mapping[str, Any]) -> dict[str, Any]:
    known = inspect.signature(pipe.encode_prompt).parameters
    given = {"prompt": None, "prompt_2": None, "prompt_3": None, "num_images_per_prompt": 1}
    given |= {"device": module_of(pipe).device, **texts}
    for name in texts.keys() - known.keys() - {"do_classifier_free_guidance"}:
        raise ModelError(
            f"{type(pipe).__name__} takes no {name}; it takes {', '.join(sorted(known))}"
        )
    asked = {name: value for name, value in given.items() if name in known}
    with torch.no_grad():
        answer = pipe.encode_prompt(**asked)
    return dict(zip(family.returns, answer, strict=True))


def _named(family: Family, found: Mapping[str, Any], prefix: str = "") -> Conditions:
    wanted = {name: found.get(prefix + source) for name, source in family.conditions.items()}
    return {name: value for name, value in wanted.items() if value is not None}


def tensor_of(module: Any, **arguments: Any) -> Tensor:
    """A diffusers model's answer."""
    out: Tensor = module(**arguments, return_dict=False)[0]
    return out


def pack(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H W / 4, 4 C): 2 x 2 patches as tokens, channels outermost."""
    b, c, h, w = x.shape
    return x.view(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, -1, 4 * c)


def unpack(tokens: Tensor, shape: torch.Size) -> Tensor:
    """The inverse of `pack` for a state of this shape."""
    b, c, h, w = shape
    return tokens.view(b, h // 2, w // 2, c, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(shape)
