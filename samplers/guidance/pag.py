"""Guidance away from the network with its attention changed: PAG and SEG."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field
from torch import Tensor

from ...models.denoiser import Ask, Branch, Network
from ...models.errors import SettingError
from ...models.perturbed import perturb_attention
from ...models.schedule import TimeGrid
from .base import Guidance, Guide, Inner, Moment, Setup, Unguided, register
from .settings import Checked


def _numbers(given: Any) -> Any:
    if given is not None and not isinstance(given, list | tuple):
        raise ValueError("layers are numbers in brackets, as layers=[2,3]")
    return given


@register
@dataclass(frozen=True)
class PerturbedAttention(Checked, Guidance):
    """x0 = inner + scale (c - p), where p is c with the attention of some layers switched off.

    With `CFG` inside it is u + w (c - u) + scale (c - p), the published sum. It needs no class, no
    prompt and no second network, and costs one row more an evaluation.

    scale:  at least 0; unlike in `CFG`, 0 is off. The paper has 3 with CFG and 5 without.
    layers: numbers of the self-attention layers that are off; None takes those of a UNet's middle
            block, or the middle one of a transformer; see `models.perturbed`.
    inner:  the guidance it is added to; none by default, and c is then the network's only answer.
    """

    name: ClassVar[str] = "pag"
    source: ClassVar[str] = "arXiv:2403.17377"

    scale: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 3.0
    layers: Annotated[tuple[int, ...] | None, BeforeValidator(_numbers)] = None
    inner: Inner = field(default_factory=Unguided)

    @property
    def off(self) -> bool:
        return self.scale == 0.0 and self.inner.off

    @property
    def rewrites(self) -> bool:
        return self.inner.rewrites

    def needs(self, grid: TimeGrid) -> set[Branch]:
        return {Branch.COND} | self.inner.needs(grid)

    def check(self, setup: Setup) -> None:
        self.inner.check(setup)
        if self.scale == 0.0:
            return
        if setup.cached:
            raise SettingError(
                "a cache on the network would remember the perturbed evaluations among the others;"
                f" drop the cache, or {self.name}"
            )
        if self.inner.rewrites:
            raise SettingError(
                f"{self.name} goes on where the guidance inside it stops, which rewrite_history"
                " does not know; drop rewrite_history"
            )
        if self.inner.networks(setup.network):
            raise SettingError(
                "a run has one weaker network, and this guidance has two (of pag, seg and auto);"
                " drop one of them"
            )
        self.perturb(setup.network)

    def networks(self, main: Network) -> Mapping[Branch, Network]:
        if self.scale == 0.0:
            return self.inner.networks(main)
        return {Branch.WEAK: self.perturb(main)}

    def perturb(self, network: Network) -> Network:
        """Returns the network whose answer is p."""
        return perturb_attention(network, self.layers)

    def begin(self, setup: Setup) -> Guide:
        inner = self.inner.begin(setup)
        return inner if self.scale == 0.0 else PerturbedGuide(self.scale, inner)


@register
@dataclass(frozen=True)
class SmoothedEnergy(PerturbedAttention):
    """x0 = inner + scale (c - p), where p is c with the queries of some layers blurred.

    As `PerturbedAttention`, for the same networks, and the same defaults.

    blur: sigma of the Gaussian in tokens, positive; infinite, as published, takes the mean of the
          queries. A finite one needs a square of tokens.
    """

    name: ClassVar[str] = "seg"
    source: ClassVar[str] = "arXiv:2408.00760"

    blur: Annotated[float, Field(gt=0)] = math.inf

    def perturb(self, network: Network) -> Network:
        return perturb_attention(network, self.layers, self.blur)


@dataclass(frozen=True)
class PerturbedGuide(Guide):
    """Asks the perturbed network beside what the inner guide asks."""

    scale: float
    inner: Guide

    def ask(self, moment: Moment) -> tuple[Ask, ...]:
        asks = self.inner.ask(moment)  # CFG(0) asks for u alone; shown both, it gives u as well
        cond = () if asks[-1].branch is Branch.COND else (Ask(Branch.COND),)
        return (Ask(Branch.WEAK), *asks, *cond)

    def combine(self, outputs: Sequence[Tensor], x: Tensor, moment: Moment) -> Tensor:
        weak, *unperturbed = outputs
        guided = self.inner.combine(unperturbed, x, moment)
        return guided.add(unperturbed[-1] - weak, alpha=self.scale)
