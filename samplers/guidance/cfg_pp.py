"""CFG++: guided x0, but renoised with the unconditional eps (arXiv:2406.08070)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...models.denoiser import Branch
from ...models.errors import SettingError
from ...models.schedule import Node, TimeGrid
from .base import BOTH, Guidance, Guide, Moment, Setup, register
from .settings import Both, Checked
from .signature import check_ddim


@register
@dataclass(frozen=True)
class CFGPlusPlus(Checked, Guidance):
    """A step from t to s is x_s = alpha_s (u + scale (c - u)) + sigma_s eps_u.

    A step of order 1 with CFG of the scale

        w = scale alpha_s sigma_t / (alpha_s sigma_t - alpha_t sigma_s)

    is the same step, exactly, and that is how it is done. As w depends on the length of the step,
    it is for solvers of order 1 with one evaluation a step, ddim and euler: others would take its
    change for one of the prediction.

    scale: lambda in [0, 1]; 0.6 is usual, and 1 is no off switch.
    """

    name: ClassVar[str] = "cfg-pp"
    source: ClassVar[str] = "arXiv:2406.08070"

    scale: float = 0.6

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.scale <= 1.0:
            raise SettingError(
                f"cfg-pp: its scale lies in [0, 1], not {self.scale:g}; 0.6 is usual, and cfg takes"
                " scales above 1"
            )

    def needs(self, grid: TimeGrid) -> set[Branch]:
        return {ask.branch for ask in BOTH}

    def check(self, setup: Setup) -> None:
        reason = "guides by the length of the step, which only steps of order 1 take as meant"
        check_ddim(self.name, reason, setup)

    def begin(self, setup: Setup) -> Guide:
        return PlusPlusGuide(self.scale, setup.grid)


@dataclass(frozen=True)
class PlusPlusGuide(Both):
    """CFG with the scale of each step."""

    scale: float
    grid: TimeGrid

    def blend(self, uncond: Tensor, cond: Tensor, x: Tensor, moment: Moment) -> Tensor:
        t, s = self.grid.nodes[moment.step : moment.step + 2]
        return torch.lerp(uncond, cond, compute_scale(self.scale, t, s))


def compute_scale(scale: float, t: Node, s: Node) -> float:
    """Returns the scale of CFG that a step from t to s has to take."""
    return scale * s.alpha * t.sigma / (s.alpha * t.sigma - t.alpha * s.sigma)
