"""What the networks of text-to-image pipelines have in common, as far as our loop needs it."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..errors import ModelError, SettingError

Conditions = dict[str, Tensor]
TEXT = "encoder_hidden_states"  # what the tokens of the text are called
Call = Callable[[Any, Tensor, Tensor, Mapping[str, Tensor]], Tensor]


@dataclass(frozen=True)
class Size:
    """What shall be sampled, in pixels and frames.

    guidance: the scale that distilled networks are told; None is what their pipelines tell them.
    """

    height: int
    width: int
    frames: int = 1
    guidance: float | None = None

    def __post_init__(self) -> None:
        for name in ("height", "width", "frames"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise SettingError(f"{name}={value!r} must be a positive whole number")


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
    packs:      places that a patch takes on either side, where the state is packed first.
    decode:     (vae, samples) -> images in [-1, 1]; None is as `models.adapters` does it.
    encode:     the way back, (vae, images) -> samples; None likewise.
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
    packs: int = 1
    decode: Callable[[Any, Tensor], Tensor] | None = None
    encode: Callable[[Any, Tensor], Tensor] | None = None
    images: bool = True

    @property
    def guided(self) -> bool:
        """Whether the pipeline encodes a negative prompt of its own where none is given."""
        return any(name.startswith("negative_") for name in self.returns)


def module_of(pipe: Any) -> Any:
    """The network of a pipeline."""
    found = getattr(pipe, "transformer", None) or getattr(pipe, "unet", None)
    if found is None:
        raise ModelError(f"{type(pipe).__name__} has neither a unet nor a transformer to sample")
    return found


def device_of(pipe: Any) -> torch.device:
    """Where the network runs: an offloaded one is elsewhere as long as it waits."""
    module = module_of(pipe)
    grouped = any(hasattr(each, "_diffusers_hook") for each in module.modules())
    offloaded = grouped or hasattr(module, "_hf_hook") or module.device.type == "meta"
    return torch.device(pipe._execution_device if offloaded else module.device)


def latent_shape(pipe: Any, size: Size, patch: int = 1) -> tuple[int, int, int]:
    """(C, H, W) of the network's own state, rounded down to whole patches."""
    per = int(pipe.vae_scale_factor) * patch
    config = module_of(pipe).config
    return int(config["in_channels"]), size.height // per * patch, size.width // per * patch


def video_shape(pipe: Any, size: Size) -> tuple[int, int, int, int]:
    """(C, F, H, W) of a video's latent."""
    per, frames = int(pipe.vae_scale_factor_spatial), int(pipe.vae_scale_factor_temporal)
    channels = int(module_of(pipe).config["in_channels"])
    return channels, (size.frames - 1) // frames + 1, size.height // per, size.width // per


def guidance_told(usual: float, unit: float = 1.0) -> Callable[[Any, Size], Conditions]:
    """The scale that a distilled network is told, in its unit; the others are told none."""

    def extra(pipe: Any, size: Size) -> Conditions:
        if not module_of(pipe).config.get("guidance_embeds"):
            return {}
        scale = usual if size.guidance is None else size.guidance
        return {"guidance": torch.tensor([float(scale) * unit])}

    return extra


def encode(family: Family, pipe: Any, **texts: Any) -> tuple[Conditions, Conditions | None]:
    """The conditions of a prompt and of what it shall not be, None where that is not given.

    texts: prompt and negative_prompt, or the embeddings that the pipeline's own call takes; with
        do_classifier_free_guidance=True the pipeline's own negative prompt where none is given.
    """
    given = texts.get("negative_prompt") is not None or "negative_prompt_embeds" in texts
    wanted = texts.get("do_classifier_free_guidance", given)
    own = texts if family.guided else _texts(texts, negative=False)
    found = _encoded(family, pipe, {**own, "do_classifier_free_guidance": wanted})
    negative = {key: value for key, value in found.items() if key.startswith("negative_")}
    if wanted and not family.guided:  # such pipelines encode one prompt at a time
        other = _encoded(family, pipe, _texts(texts, negative=True))
        negative = {f"negative_{key}": value for key, value in other.items()}
    conditions = _named(family, found)
    if not wanted:
        return conditions, None
    return _aligned(family, conditions, _named(family, negative, "negative_"))


def _texts(texts: Mapping[str, Any], *, negative: bool) -> dict[str, Any]:
    """One prompt alone with the options of both, the negative one without that word."""
    options = {name: value for name, value in texts.items() if "prompt" not in name}
    asked = {name: v for name, v in texts.items() if name.startswith("negative_") == negative}
    return options | {name.removeprefix("negative_"): value for name, value in asked.items()}


def _encoded(family: Family, pipe: Any, texts: Mapping[str, Any]) -> dict[str, Any]:
    known = inspect.signature(pipe.encode_prompt).parameters
    given: dict[str, Any] = {
        "prompt": None,
        "prompt_2": None,
        "prompt_3": None,
        "num_images_per_prompt": 1,
    }
    given |= {"device": device_of(pipe), **texts}
    for name in texts.keys() - known.keys() - {"do_classifier_free_guidance"}:
        raise ModelError(
            f"{type(pipe).__name__} takes no {name}; it takes {', '.join(sorted(known))}"
        )
    if given["prompt"] is None and given.get("prompt_embeds") is None:
        name = type(pipe).__name__
        raise ModelError(f"{name} is asked with a prompt; give prompt= or prompt_embeds=")
    asked = {name: value for name, value in given.items() if name in known}
    try:
        with torch.no_grad():
            answer = pipe.encode_prompt(**asked)
    except AttributeError as error:
        if "'NoneType'" not in str(error):
            raise
        raise ModelError(
            f"{type(pipe).__name__} has no text encoder to read a prompt with; give its embeddings,"
            " as in prompt_embeds="
        ) from error
    return dict(zip(family.returns, answer, strict=True))


def _named(family: Family, found: Mapping[str, Any], prefix: str = "") -> Conditions:
    wanted = {name: found.get(prefix + source) for name, source in family.conditions.items()}
    return {name: value for name, value in wanted.items() if value is not None}


def _aligned(
    family: Family, conditions: Conditions, negative: Conditions
) -> tuple[Conditions, Conditions]:
    """Both with texts of one length, the shorter padded and masked.

    Most pipelines pad every prompt to one length; QwenImage's takes each as long as it is, and
    leaves out the mask of those that fill it.
    """
    both = conditions, negative
    mask = next((name for name in family.conditions if name.endswith("_mask")), "")
    length = max(each[TEXT].shape[1] for each in both)
    if all(each[TEXT].shape[1] == length for each in both) and conditions.keys() == negative.keys():
        return both
    if not mask:
        raise ModelError(
            "the prompt and the negative one have embeddings of different lengths; pad the shorter"
        )
    first, second = (_padded(each, mask, length) for each in both)
    return first, second


def _padded(conditions: Conditions, mask: str, length: int) -> Conditions:
    text = conditions[TEXT]
    missing = length - text.shape[1]
    seen = conditions.get(mask)
    seen = text.new_ones(text.shape[:2], dtype=torch.long) if seen is None else seen
    padded = {
        TEXT: functional.pad(text, (0, 0, 0, missing)),
        mask: functional.pad(seen, (0, missing)),
    }
    return {**conditions, **padded}


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
