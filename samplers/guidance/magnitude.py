"""Magnitude-aware guidance: less of it where the branches are far apart (MAMBO-G)."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from ...models.prediction import Prediction
from .base import Guide, Moment, Setup, register
from .settings import Both, Scaled
from .space import Space, choose_prediction, convert_from_x0, shape_per_row, widen_rows


@register
@dataclass(frozen=True)
class MagnitudeAware(Scaled):
    """CFG of the scale 1 + (scale - 1) exp(-alpha |c - u| / |u|), per image.

    scale: as in `CFG`; the most it can be.
    alpha: how fast it falls with the distance; 0 is CFG.
    space: of the norms; it was published in the network's own output, v here.
    """

    name: ClassVar[str] = "magnitude"
    source: ClassVar[str] = "MAMBO-G"

    alpha: Annotated[float, Field(ge=0)] = 8.0
    space: Space = "v"

    def guide(self, setup: Setup) -> Guide:
        return MagnitudeGuide(self, choose_prediction(self.space, setup.grid.schedule))


@dataclass(frozen=True)
class MagnitudeGuide(Both):
    """The rule in one prediction."""

    policy: MagnitudeAware
    kind: Prediction

    def blend(self, uncond: Tensor, cond: Tensor, x: Tensor, moment: Moment) -> Tensor:
        u, c = (
            widen_rows(convert_from_x0(each, x, moment.node, self.kind)) for each in (uncond, cond)
        )
        ratio = (c - u).norm(dim=1) / u.norm(dim=1).clamp_min(1e-30)
        scale = 1.0 + (self.policy.scale - 1.0) * torch.exp(-self.policy.alpha * ratio)
        return torch.lerp(uncond, cond, shape_per_row(scale, cond))
