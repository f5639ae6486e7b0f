"""TCFG: guidance from what the branches share of the unconditional one (arXiv:2503.18137)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...models.prediction import Prediction
from .base import Guide, Moment, Setup, register
from .settings import Both, Scaled
from .space import (
    Space,
    choose_prediction,
    convert_from_x0,
    convert_to_x0,
    shape_per_row,
    widen_rows,
)


@register
@dataclass(frozen=True)
class TCFG(Scaled):
    """u' + scale (c - u') with u' = (u . v) v, v the first right singular vector of [c; u].

    Per image. What u has across v, the direction that both branches share, is dropped from it.

    scale: as in `CFG`.
    space: of the rule, which is another one in each; it was published in the network's own output,
           v here.
    """

    name: ClassVar[str] = "tcfg"
    source: ClassVar[str] = "arXiv:2503.18137"

    space: Space = "v"

    def guide(self, setup: Setup) -> Guide:
        return TangentialGuide(self.scale, choose_prediction(self.space, setup.grid.schedule))


@dataclass(frozen=True)
class TangentialGuide(Both):
    """The rule in one prediction."""

    scale: float
    kind: Prediction

    def blend(self, uncond: Tensor, cond: Tensor, x: Tensor, moment: Moment) -> Tensor:
        u, c = (convert_from_x0(each, x, moment.node, self.kind) for each in (uncond, cond))
        guided = torch.lerp(project_to_common(u, c), c, self.scale)
        return convert_to_x0(guided, x, moment.node, self.kind)


def project_to_common(u: Tensor, c: Tensor) -> Tensor:
    """Returns u (B, *) projected, per image, on the first right singular vector of [c; u].

    That is b (a c + b u), with (a, b) the eigenvector of length 1 of their 2 x 2 Gram matrix to its
    larger eigenvalue. Of the two rows that give it, that of the longer branch does not cancel.
    """
    flat_u, flat_c = widen_rows(u), widen_rows(c)
    uu, cc, cu = (flat_u * flat_u).sum(1), (flat_c * flat_c).sum(1), (flat_c * flat_u).sum(1)
    half = 0.5 * (cc - uu)
    grown = half.abs() + torch.hypot(half, cu)  # the larger eigenvalue less the smaller norm
    longer = cc >= uu
    a, b = torch.where(longer, grown, cu), torch.where(longer, cu, grown)
    share = b / (a * a + b * b).clamp_min(1e-30)
    return shape_per_row(share * a, c) * c + shape_per_row(share * b, u) * u
