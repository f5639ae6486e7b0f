"""Dynamic thresholding: keeps x0 inside the range of images, whatever guidance made of it."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...models.denoiser import Branch
from ...models.errors import SettingError
from ...models.schedule import Node
from .base import Guidance, Unguided


@dataclass(frozen=True)
class Thresholded:
    """x0 <- clamp(x0, -q, q) / q with q = max(quantile of |x0| in the sample, floor).

    Imagen's dynamic thresholding (arXiv:2205.11487, sec. 2.3), for networks of images in [-1, 1]:
    latents have no such range, so on them it is refused unless asked for.

    inner:    the guidance whose x0 is thresholded.
    quantile: in (0, 1]; 0.995 is the published one.
    floor:    q is never smaller; 1 leaves x0 inside [-1, 1] alone.
    latents:  allow it on the latents of a network with a VAE.
    """

    inner: Guidance = field(default_factory=Unguided)
    quantile: float = 0.995
    floor: float = 1.0
    latents: bool = False

    def __post_init__(self) -> None:
        if not 0.0 < self.quantile <= 1.0:
            raise SettingError(f"a quantile lies in (0, 1], not {self.quantile:g}; 0.995 is usual")
        if not self.floor > 0.0:
            raise SettingError(f"the floor must be positive, not {self.floor:g}; 1 is usual")

    def branches(self, node: Node) -> tuple[Branch, ...]:
        return self.inner.branches(node)

    def combine(self, outputs: Sequence[Tensor], node: Node) -> Tensor:
        x0 = self.inner.combine(outputs, node)
        sizes = x0.flatten(1).abs()
        wide = sizes if sizes.dtype == torch.float64 else sizes.float()
        q = torch.quantile(wide, self.quantile, dim=1).clamp_(min=self.floor).to(x0.dtype)
        q = q.reshape(-1, *[1] * (x0.ndim - 1))
        return x0.clamp(-q, q).div_(q)
