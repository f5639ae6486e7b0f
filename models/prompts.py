"""Encodes prompts into the conditions of a network, as its pipeline does."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.nn import functional

from .architectures.base import TEXT, Conditions, PromptAdapter, Size
from .architectures.common import module_of
from .errors import ModelError

Texts = str | Sequence[str]


@dataclass(frozen=True)
class Prompts:
    """The texts of one pipeline, and the size that its network samples.

    A list holds one prompt per image; a single prompt is one row, which serves all images.
    """

    adapter: PromptAdapter
    pipe: Any
    size: Size

    @property
    def multiple(self) -> int:
        """The number of pixels that both sides of a picture must be multiples of."""
        patch = module_of(self.pipe).config.get("patch_size") or 1
        return int(self.pipe.vae_scale_factor) * max(self.adapter.packs, patch)

    @property
    def unit(self) -> float:
        """The network's own number for a guidance scale of 1; 1 if it takes none."""
        conditions = self.adapter.extra(self.pipe, replace(self.size, guidance=1.0))
        return float(conditions["guidance"]) if "guidance" in conditions else 1.0

    def conditions(
        self, prompt: Texts, negative: Texts | None = None
    ) -> tuple[Conditions, Conditions | None]:
        """Returns the conditions of prompts and of negative prompts.

        negative: None is the pipeline's own (usually the empty prompt) for networks that are guided
            by two branches, and none at all for the others.
        """
        texts: dict[str, Any] = {"prompt": prompt}
        if negative is not None:
            texts |= _pair_texts(prompt, negative)
        elif self.adapter.guided:
            texts["do_classifier_free_guidance"] = True
        conditions, other = encode(self.adapter, self.pipe, **texts)
        return {**conditions, **self.adapter.extra(self.pipe, self.size)}, other


def _pair_texts(prompt: Texts, negative: Texts) -> dict[str, Texts]:
    """Returns both as one text or both as lists of one length, as the pipelines want it."""
    if isinstance(prompt, str) and isinstance(negative, str):
        return {"prompt": prompt, "negative_prompt": negative}
    n = max(len(each) for each in (prompt, negative) if not isinstance(each, str))
    listed = ([each] * n if isinstance(each, str) else list(each) for each in (prompt, negative))
    return dict(zip(("prompt", "negative_prompt"), listed, strict=True))


def device_of(pipe: Any) -> torch.device:
    """Returns the device that the network runs on; an offloaded one waits on another."""
    module = module_of(pipe)
    grouped = any(hasattr(each, "_diffusers_hook") for each in module.modules())
    offloaded = grouped or hasattr(module, "_hf_hook") or module.device.type == "meta"
    return torch.device(pipe._execution_device if offloaded else module.device)


def encode(adapter: PromptAdapter, pipe: Any, **texts: Any) -> tuple[Conditions, Conditions | None]:
    """Returns the conditions of a prompt and of a negative prompt; None where none is given.

    texts: prompt and negative_prompt, or the embeddings that the pipeline's own call takes; with
        do_classifier_free_guidance=True the pipeline's own negative prompt where none is given.
    """
    given = texts.get("negative_prompt") is not None or "negative_prompt_embeds" in texts
    is_guided = texts.get("do_classifier_free_guidance", given)
    prompt = texts if adapter.guided else _select_texts(texts, negative=False)
    embeddings = _call_encoder(adapter, pipe, {**prompt, "do_classifier_free_guidance": is_guided})
    negative = {key: value for key, value in embeddings.items() if key.startswith("negative_")}
    if is_guided and not adapter.guided:  # such pipelines encode one prompt at a time
        other = _call_encoder(adapter, pipe, _select_texts(texts, negative=True))
        negative = {f"negative_{key}": value for key, value in other.items()}
    conditions = _name_conditions(adapter, embeddings)
    if not is_guided:
        return conditions, None
    return _align(adapter, conditions, _name_conditions(adapter, negative, "negative_"))


def _select_texts(texts: Mapping[str, Any], *, negative: bool) -> dict[str, Any]:
    """Returns one prompt with the options of both; the negative one loses that word."""
    options = {name: value for name, value in texts.items() if "prompt" not in name}
    asked = {name: v for name, v in texts.items() if name.startswith("negative_") == negative}
    return options | {name.removeprefix("negative_"): value for name, value in asked.items()}


def _call_encoder(adapter: PromptAdapter, pipe: Any, texts: Mapping[str, Any]) -> dict[str, Any]:
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
    return dict(zip(adapter.returns, answer, strict=True))


def _name_conditions(
    adapter: PromptAdapter, embeddings: Mapping[str, Any], prefix: str = ""
) -> Conditions:
    conditions = {
        name: embeddings.get(prefix + source) for name, source in adapter.conditions.items()
    }
    return {name: value for name, value in conditions.items() if value is not None}


def _align(
    adapter: PromptAdapter, conditions: Conditions, negative: Conditions
) -> tuple[Conditions, Conditions]:
    """Pads and masks the shorter of two texts to the length of the other.

    Most pipelines pad every prompt to one length; QwenImage's takes each as long as it is, and
    leaves out the mask of those that fill it.
    """
    both = conditions, negative
    mask = next((name for name in adapter.conditions if name.endswith("_mask")), "")
    length = max(each[TEXT].shape[1] for each in both)
    if all(each[TEXT].shape[1] == length for each in both) and conditions.keys() == negative.keys():
        return both
    if not mask:
        raise ModelError(
            "the prompt and the negative one have embeddings of different lengths; pad the shorter"
        )
    first, second = (_pad(each, mask, length) for each in both)
    return first, second


def _pad(conditions: Conditions, mask: str, length: int) -> Conditions:
    text = conditions[TEXT]
    missing = length - text.shape[1]
    seen = conditions.get(mask)
    seen = text.new_ones(text.shape[:2], dtype=torch.long) if seen is None else seen
    padded = {
        TEXT: functional.pad(text, (0, 0, 0, missing)),
        mask: functional.pad(seen, (0, missing)),
    }
    return {**conditions, **padded}
