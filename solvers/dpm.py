"""DPM-Solver multistep of orders 2 and 3: DPM-Solver++ (`dpmpp`) in noise prediction.

With e0 = eps at t, e1, e2 the predictions before it, h = lam_s - lam_t, F = e^h - 1,
r0 = (lam_t - lam_{t1}) / h and r1 = (lam_{t1} - lam_{t2}) / h:

    order 1:  x_s = (alpha_s / alpha_t) x_t - sigma_s F e0
    order 2:  ... - sigma_s F D / 2                  (midpoint)
              ... - sigma_s (F / h - 1) D            (taylor),     D = (e0 - e1) / r0
    order 3:  ... - sigma_s (F / h - 1) D1 - c sigma_s ((F / h - 1) / h - 1/2) D2

The step to sigma = 0 has order 1, where both predictions give the same.
"""

from collections.abc import Sequence
from typing import ClassVar

from pydantic.dataclasses import dataclass

from ..models.schedule import TimeGrid
from .base import SolverInfo, register
from .dpmpp import DPMpp2M, DPMpp3M
from .step_schedule import StepSpec


def _in_noise(specs: Sequence[StepSpec]) -> list[StepSpec]:
    return [
        spec if spec.order == 1 else spec.model_copy(update={"pred": "noise"}) for spec in specs
    ]


@register
@dataclass(frozen=True)
class DPM2M(DPMpp2M):
    """Order 2; the settings of `dpmpp-2m`."""

    info: ClassVar[SolverInfo] = SolverInfo(
        name="dpm-2m", order=2, calls_per_step=1, source="arXiv:2211.01095 alg. 2, with eps for x0"
    )

    def steps(self, grid: TimeGrid) -> list[StepSpec]:
        return _in_noise(super().steps(grid))


@register
@dataclass(frozen=True)
class DPM3M(DPMpp3M):
    """Order 3 in name; the settings of `dpmpp-3m`, whose note on c = 1 and c = 2 holds here too."""

    info: ClassVar[SolverInfo] = SolverInfo(
        name="dpm-3m",
        order=2,
        calls_per_step=1,
        source="arXiv:2211.01095 app. B (multistep), with eps for x0",
    )

    def steps(self, grid: TimeGrid) -> list[StepSpec]:
        return _in_noise(super().steps(grid))
