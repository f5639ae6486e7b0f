"""Dynamic thresholding: keeps x0 inside the range of images, whatever guidance made of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from ...models.denoiser import Ask, Branch, Network
from ...models.errors import SettingError
from ...models.schedule import TimeGrid
from .base import Guidance, Guide, Inner, Moment, Setup, Unguided, register
from .settings import Checked


@register
@dataclass(frozen=True)
class Thresholded(Checked, Guidance):
    """x0 <- clamp(x0, -q, q) / q with q = max(quantile of |x0| in the sample, floor).

    Imagen's dynamic thresholding (arXiv:2205.11487, sec. 2.3), for networks of images in [-1, 1]:
    latents have no such range, so on them it is refused unless asked for.

    inner:    the guidance whose x0 is thresholded.
    quantile: in (0, 1]; 0.995 is the published one.
    floor:    q is never smaller; 1 leaves x0 inside [-1, 1] alone.
    latents:  allow it on the latents of a network with a VAE.
    """

    name: ClassVar[str] = "threshold"
    source: ClassVar[str] = "arXiv:2205.11487 sec. 2.3"

    inner: Inner = field(default_factory=Unguided)
    quantile: float = 0.995
    floor: float = 1.0
    latents: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 < self.quantile <= 1.0:
            raise SettingError(f"a quantile lies in (0, 1], not {self.quantile:g}; 0.995 is usual")
        if not self.floor > 0.0:
            raise SettingError(f"the floor must be positive, not {self.floor:g}; 1 is usual")

    @property
    def rewrites(self) -> bool:
        return self.inner.rewrites

    def needs(self, grid: TimeGrid) -> set[Branch]:
        return self.inner.needs(grid)

    def check(self, setup: Setup) -> None:
        if setup.network.decode is not None and not self.latents:
            raise SettingError(
                f"{setup.network.name} samples latents, which have no range to be kept in; drop the"
                " thresholding, or pass Thresholded(latents=True) if you mean it"
            )
        self.inner.check(setup)

    def networks(self, main: Network) -> Mapping[Branch, Network]:
        return self.inner.networks(main)

    def begin(self, setup: Setup) -> Guide:
        return ClippedGuide(self, self.inner.begin(setup))

    def stateless(self) -> Guide:
        return ClippedGuide(self, self.inner.stateless())

    def clip(self, x0: Tensor) -> Tensor:
        """Returns x0 (B, *) within its range."""
        sizes = x0.flatten(1).abs()
        wide = sizes if sizes.dtype == torch.float64 else sizes.float()
        q = torch.quantile(wide, self.quantile, dim=1).clamp_(min=self.floor).to(x0.dtype)
        q = q.reshape(-1, *[1] * (x0.ndim - 1))
        return x0.clamp(-q, q).div_(q)


@dataclass(frozen=True)
class ClippedGuide(Guide):
    """Thresholds what the inner guide gives."""

    policy: Thresholded
    inner: Guide

    def ask(self, moment: Moment) -> tuple[Ask, ...]:
        return self.inner.ask(moment)

    def combine(self, outputs: Sequence[Tensor], x: Tensor, moment: Moment) -> Tensor:
        return self.policy.clip(self.inner.combine(outputs, x, moment))

    @property
    def guided(self) -> bool | tuple[bool, ...]:
        return self.inner.guided

    def conditional(self, outputs: Sequence[Tensor], x: Tensor, moment: Moment) -> Tensor:
        return self.policy.clip(self.inner.conditional(outputs, x, moment))
