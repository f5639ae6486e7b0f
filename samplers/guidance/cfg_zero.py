"""CFG-Zero*: guidance from an unconditional branch of the best length (arXiv:2503.18886)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from ...models.denoiser import Ask
from ...models.prediction import Prediction
from .base import COND, Guide, Moment, Setup, register
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
class CFGZeroStar(Scaled):
    """s u + scale (c - s u) with s = <c, u> / (|u|^2 + 1e-8), per image; zero at the first steps.

    scale:      as in `CFG`.
    zero_steps: first steps whose prediction is zero, which on rectified flow is no move at all. The
                released code has 1, the paper about 4 % of the steps; of few steps 1 is many. They
                cost the conditional row all the same.
    space:      of the rule; it was published in v, which is eps - x0 on rectified flow.
    """

    name: ClassVar[str] = "cfg-zero"
    source: ClassVar[str] = "arXiv:2503.18886"

    zero_steps: Annotated[int, Field(ge=0)] = 1
    space: Space = "v"

    def guide(self, setup: Setup) -> Guide:
        kind = choose_prediction(self.space, setup.grid.schedule)
        return ZeroGuide(self.scale, self.zero_steps, kind)


@dataclass(frozen=True)
class ZeroGuide(Both):
    """The rule in one prediction."""

    scale: float
    zero_steps: int
    kind: Prediction

    def ask(self, moment: Moment) -> tuple[Ask, ...]:
        return COND if moment.step < self.zero_steps else super().ask(moment)

    def combine(self, outputs: Sequence[Tensor], x: Tensor, moment: Moment) -> Tensor:
        if moment.step < self.zero_steps:
            return convert_to_x0(torch.zeros_like(x), x, moment.node, self.kind)
        return super().combine(outputs, x, moment)

    def blend(self, uncond: Tensor, cond: Tensor, x: Tensor, moment: Moment) -> Tensor:
        u, c = (convert_from_x0(each, x, moment.node, self.kind) for each in (uncond, cond))
        a, b = widen_rows(u), widen_rows(c)
        best = (a * b).sum(1) / ((a * a).sum(1) + 1e-8)
        guided = torch.lerp(shape_per_row(best, u) * u, c, self.scale)
        return convert_to_x0(guided, x, moment.node, self.kind)
