"""DDIM, the first-order exponential step."""

from typing import ClassVar

from pydantic.dataclasses import dataclass

from ..models.schedule import TimeGrid
from .base import SolverInfo, register
from .multistep import Encoder
from .step_schedule import StepSpec


@register
@dataclass(frozen=True)
class DDIM(Encoder):
    """x_s = (sigma_s / sigma_t) x_t + (alpha_s - alpha_t sigma_s / sigma_t) x0."""

    info: ClassVar[SolverInfo] = SolverInfo(
        name="ddim", order=1, calls_per_step=1, source="arXiv:2010.02502 eq. 12 with eta = 0"
    )

    def steps(self, grid: TimeGrid) -> list[StepSpec]:
        return [StepSpec()] * grid.steps
