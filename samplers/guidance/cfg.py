"""Classifier-free guidance, in all steps or in an interval of noise levels."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from numbers import Real
from typing import ClassVar

import torch
from torch import Tensor

from ...models.denoiser import Ask
from ...models.errors import SettingError
from .base import BOTH, COND, UNCOND, Guidance, Guide, Moment, Setup
from .registry import register
from .settings import check_scale
from .space import shape_per_row, widen_rows
from .span import Span


@register
@dataclass(frozen=True)
class CFG(Guidance):
    """x0 = x0_uncond + scale (x0_cond - x0_uncond) (arXiv:2207.12598; its w is scale - 1).

    scale:    1 is off: one branch, and to the bit what no guidance gives. 0 is the unconditional
              network alone.
    interval: (low, high) in kappa = sigma / alpha; guided where low < kappa <= high, conditional
              and one branch cheaper elsewhere (arXiv:2404.07724). `Interval` narrows any policy,
              in other coordinates too.
    rescale:  phi in [0, 1]: by how much the guided x0 is brought back to the standard deviation of
              the conditional x0, per image (arXiv:2305.08891, eq. 15-16, there in v); 0 is off, 0.7
              the published one.
    """

    name: ClassVar[str] = "cfg"
    source: ClassVar[str] = "arXiv:2207.12598; rescale arXiv:2305.08891"

    scale: float
    interval: tuple[float, float] = (0.0, math.inf)
    rescale: float = field(default=0.0, metadata={"later": True})

    def __post_init__(self) -> None:
        for key in ("scale", "rescale"):
            value = getattr(self, key)
            if isinstance(value, bool) or not isinstance(value, Real):
                raise SettingError(f"cfg: {key}={value!r}: it must be a number, as in cfg:scale=2")
        check_scale(self.scale)
        if not 0.0 <= self.rescale <= 1.0:
            raise SettingError(f"cfg: rescale lies in [0, 1], not {self.rescale:g}; 0 is off")
        object.__setattr__(self, "interval", (self.span.low, self.span.high))

    @cached_property
    def span(self) -> Span:
        """Where it guides."""
        try:
            low, high = map(float, self.interval)
        except (TypeError, ValueError):
            raise SettingError(
                f"{self.interval!r} is no guidance interval (low, high); write interval=[0.3,5]"
            ) from None
        return Span(low, high)

    @property
    def off(self) -> bool:
        return self.scale == 1.0

    def check(self, setup: Setup) -> None:
        if not self.off:
            self.span.check(setup.grid)

    def stateless(self) -> Guide:
        return CFGGuide(self)


@dataclass(frozen=True)
class CFGGuide(Guide):
    """Needs nothing of a run."""

    policy: CFG

    def ask(self, moment: Moment) -> tuple[Ask, ...]:
        if self.policy.off or not self.policy.span.covers(moment.node):
            return COND
        return UNCOND if self.policy.scale == 0.0 else BOTH

    def combine(self, outputs: Sequence[Tensor], x: Tensor, moment: Moment) -> Tensor:
        if len(outputs) == 1:
            return outputs[0]
        uncond, cond = outputs
        guided = torch.lerp(uncond, cond, self.policy.scale)
        share = self.policy.rescale
        return guided if share == 0.0 else _rescale(guided, cond, share)


def _rescale(guided: Tensor, cond: Tensor, share: float) -> Tensor:
    """Returns phi g std(c) / std(g) + (1 - phi) g."""
    size, wanted = widen_rows(guided).std(1), widen_rows(cond).std(1)
    ratio = torch.where(size > 0.0, wanted / size, 1.0)
    return guided * shape_per_row(1.0 + share * (ratio - 1.0), guided)
