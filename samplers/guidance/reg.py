"""REG: the difference of the branches, weighed by how x0 follows the state (arXiv:2501.18865)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .base import Guide, Moment, Setup, register
from .settings import Both, Scaled


@register
@dataclass(frozen=True)
class REG(Scaled):
    """x0 = c + (scale - 1) rho (c - u), entry by entry, with rho = alpha d(sum of c) / dx.

    rho is the column sum of the Jacobian, which stands for its diagonal. On Gaussian data it goes
    from 0 at pure noise to 1 at the data.

    scale: as in `CFG`.

    A step differentiates the network once.
    """

    name: ClassVar[str] = "reg"
    source: ClassVar[str] = "arXiv:2501.18865"

    @property
    def gradient(self) -> bool:
        return not self.off

    def guide(self, setup: Setup) -> Guide:
        return WeighedGuide(self.scale)


@dataclass(frozen=True)
class WeighedGuide(Both):
    """Needs nothing of a run but the node."""

    scale: float

    def blend(self, uncond: Tensor, cond: Tensor, x: Tensor, moment: Moment) -> Tensor:
        (slopes,) = torch.autograd.grad(cond.sum(), x)
        weight = (self.scale - 1.0) * moment.node.alpha
        return torch.addcmul(cond, slopes, cond - uncond, value=weight)
