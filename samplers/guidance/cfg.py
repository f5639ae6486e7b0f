"""Classifier-free guidance, in all steps or in an interval of noise levels."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from numbers import Real
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ...models.denoiser import Ask
from ...models.errors import SettingError
from ...models.schedule import Node, TimeGrid
from .base import BOTH, COND, UNCOND, Guidance, Guide, Moment, Setup, register
from .settings import check_scale
from .space import shape_per_row, widen_rows

Coordinate = Literal["sigma", "lam", "t", "step"]
WORDS = {"sigma": "sigma/alpha", "lam": "lam", "t": "t", "step": "the fraction of steps"}


@dataclass(frozen=True)
class Span:
    """low < place <= high; in "step", low N <= n < high N of N steps, rounded down.

    where: "sigma" is kappa = sigma / alpha, EDM's noise level; "lam" is log(alpha / sigma), "t" the
           schedule's own time, "step" the fraction of steps taken.
    """

    low: float
    high: float
    where: Coordinate = "sigma"

    def __post_init__(self) -> None:
        least = -math.inf if self.where == "lam" else 0.0
        most = 1.0 if self.where == "step" else math.inf
        if not least <= self.low < self.high <= most:
            raise SettingError(
                f"the guidance interval {self.low:g},{self.high:g} is empty or out of range; give"
                f" low < high in {WORDS[self.where]}, from {least:g} to {most:g}"
            )

    def covers(self, node: Node, step: int = 0, steps: int = 1) -> bool:
        """Returns whether an evaluation at a node, in a step of so many, lies inside."""
        if self.where == "step":
            return self.covers_step(step, steps)
        place = {"sigma": node.kappa, "lam": node.lam, "t": node.t}[self.where]
        return self.low < place <= self.high or self.low == place == -math.inf

    def covers_step(self, step: int, steps: int) -> bool:
        """Returns whether a step of so many lies inside, by the fraction of steps."""
        return int(self.low * steps) <= step < int(self.high * steps)

    def check(self, grid: TimeGrid) -> None:
        """Raises SettingError if no step of a run on this grid starts inside."""
        places = grid.nodes[:-1]
        if not any(self.covers(node, n, grid.steps) for n, node in enumerate(places)):
            first, last = places[0], places[-1]
            ends = {
                "sigma": (last.kappa, first.kappa),
                "lam": (first.lam, last.lam),
                "t": (last.t, first.t),
                "step": (0.0, 1.0),
            }[self.where]
            raise SettingError(
                f"the guidance interval {self.low:g},{self.high:g} covers no step of this run; its"
                f" steps start from {ends[0]:g} to {ends[1]:g} in {WORDS[self.where]}"
            )


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
                f"{self.interval!r} is not a guidance interval (low, high); write interval=[0.3,5]"
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
    size, target = widen_rows(guided).std(1), widen_rows(cond).std(1)
    ratio = torch.where(size > 0.0, target / size, 1.0)
    return guided * shape_per_row(1.0 + share * (ratio - 1.0), guided)
