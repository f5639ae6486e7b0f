"""Classifier-free guidance, in all steps or in an interval of noise levels."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...models.denoiser import Branch
from ...models.errors import SettingError
from ...models.schedule import Node


@dataclass(frozen=True)
class CFG:
    """x0 = x0_uncond + scale (x0_cond - x0_uncond) (arXiv:2207.12598; its w is scale - 1).

    scale:    1 is off: one branch, and to the bit what no guidance gives. 0 is the unconditional
              network alone.
    interval: (low, high) in kappa = sigma / alpha; guided where low < kappa <= high, conditional
              and one branch cheaper elsewhere (arXiv:2404.07724).
    """

    scale: float
    interval: tuple[float, float] = (0.0, math.inf)

    def __post_init__(self) -> None:
        if not math.isfinite(self.scale):
            raise SettingError(f"a guidance scale must be a number, not {self.scale}; 1 is off")
        low, high = self.interval
        if not 0.0 <= low < high:
            raise SettingError(
                f"the guidance interval {low:g},{high:g} is empty; give low,high in sigma/alpha"
                " with 0 <= low < high"
            )

    def branches(self, node: Node) -> tuple[Branch, ...]:
        low, high = self.interval
        if self.scale == 1.0 or not low < node.kappa <= high:
            return (Branch.COND,)
        return (Branch.UNCOND,) if self.scale == 0.0 else (Branch.UNCOND, Branch.COND)

    def combine(self, outputs: Sequence[Tensor], node: Node) -> Tensor:
        if len(outputs) == 1:
            return outputs[0]
        uncond, cond = outputs
        return torch.lerp(uncond, cond, self.scale)
