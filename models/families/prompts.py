"""What a pipeline does around its network: it makes conditions of prompts."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from .base import Conditions, Family, Size, encode, module_of

Texts = str | Sequence[str]


@dataclass(frozen=True)
class Prompts:
    """The texts of one pipeline, and the size that its network samples.

    A list holds one prompt per image; a single prompt is one row, which serves all images.
    """

    family: Family
    pipe: Any
    size: Size

    @property
    def multiple(self) -> int:
        """What both sides of a picture must be multiples of, in pixels."""
        patch = module_of(self.pipe).config.get("patch_size") or 1
        return int(self.pipe.vae_scale_factor) * max(self.family.packs, patch)

    @property
    def unit(self) -> float:
        """What a network that is told its guidance is told for a scale of 1."""
        told = self.family.extra(self.pipe, replace(self.size, guidance=1.0))
        return float(told["guidance"]) if "guidance" in told else 1.0

    def conditions(
        self, prompt: Texts, negative: Texts | None = None
    ) -> tuple[Conditions, Conditions | None]:
        """The conditions of prompts and of what the image shall not be.

        negative: None is the pipeline's own (mostly the empty prompt) for networks that are guided
            by two branches, and none at all for the others.
        """
        texts: dict[str, Any] = {"prompt": prompt}
        if negative is not None:
            texts |= _alike(prompt, negative)
        elif self.family.guided:
            texts["do_classifier_free_guidance"] = True
        conditions, other = encode(self.family, self.pipe, **texts)
        return {**conditions, **self.family.extra(self.pipe, self.size)}, other


def _alike(prompt: Texts, negative: Texts) -> dict[str, Texts]:
    """Both as one text or both as lists of one length, as the pipelines want it."""
    if isinstance(prompt, str) and isinstance(negative, str):
        return {"prompt": prompt, "negative_prompt": negative}
    n = max(len(each) for each in (prompt, negative) if not isinstance(each, str))
    listed = ([each] * n if isinstance(each, str) else list(each) for each in (prompt, negative))
    return dict(zip(("prompt", "negative_prompt"), listed, strict=True))
