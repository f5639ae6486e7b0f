"""The quality that a calibrated cache must keep: how near cached images stay to uncached ones."""

import math
from dataclasses import dataclass

from torch import Tensor

from ..models.errors import SettingError, UnknownNameError
from .experiments.cache import QUALITIES

HIGHER = ("psnr",)  # is better; of the others lower is
ROOT = ("rel-l2",)  # the root of a mean; the others are means


@dataclass(frozen=True)
class Quality:
    """How near cached images must stay to the uncached ones.

    metric: a name of `QUALITIES`; bound: the worst value that will do.
    """

    metric: str
    bound: float

    @classmethod
    def parse(cls, text: str) -> "Quality":
        """Reads `rel-l2=0.05` or `psnr=30`; raises FewstepError for anything else."""
        name, _, value = text.partition("=")
        if name not in QUALITIES:
            raise UnknownNameError("quality", name, QUALITIES)
        try:
            bound = float(value)
        except ValueError:
            bound = math.nan
        if not (math.isfinite(bound) and bound > 0.0):
            raise SettingError(
                f"{text!r} is not a quality; write rel-l2=0.05, psnr=30 or lpips=0.05"
            )
        return cls(name, bound)

    def met(self, value: float) -> bool:
        return value >= self.bound if self.metric in HIGHER else value <= self.bound

    def badness(self, value: float) -> float:
        """Returns the value with its sign turned where more is better."""
        return -value if self.metric in HIGHER else value

    def summarize(self, figures: Tensor) -> float:
        """Returns the value of the figures (n,) of single images, as `judge_images` gives them."""
        mean = float(figures.double().mean())
        return math.sqrt(mean) if self.metric in ROOT else mean
