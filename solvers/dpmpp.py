"""DPM-Solver++ multistep of orders 1, 2 and 3, in data prediction.

With m0 = x0 at t, m1, m2 the predictions before it, h = lam_s - lam_t, E = e^{-h} - 1,
r0 = (lam_t - lam_{t1}) / h and r1 = (lam_{t1} - lam_{t2}) / h:

    order 1:  x_s = (sigma_s / sigma_t) x_t - alpha_s E m0
    order 2:  ... - alpha_s E D / 2                  (midpoint)
              ... + alpha_s (E / h + 1) D            (taylor),     D = (m0 - m1) / r0
    order 3:  ... + alpha_s (E / h + 1) D1 - c alpha_s ((E / h + 1) / h - 1/2) D2
"""

from typing import ClassVar, Literal

from pydantic.dataclasses import dataclass

from ..models.schedule import TimeGrid
from .base import SolverInfo, register
from .multistep import Encoder, LowerOrderFinal, orders
from .step_schedule import Relax, StepSpec

Kind = Literal["midpoint", "taylor"]


def _steps(
    grid: TimeGrid, order: int, kind: Kind, third_order: str, policy: LowerOrderFinal
) -> list[StepSpec]:
    relax: Relax = "bh2" if kind == "midpoint" else "none"
    kmul = (1.0, 0.5) if third_order == "published" else None
    each = {1: StepSpec(), 2: StepSpec(order=2, relax=relax), 3: StepSpec(order=3, kmul=kmul)}
    return [each[p] for p in orders(grid, order, policy)]


@register
@dataclass(frozen=True)
class DPMpp1M(Encoder):
    """Order 1: the DDIM step under its other name."""

    info: ClassVar[SolverInfo] = SolverInfo(
        name="dpmpp-1m", order=1, calls_per_step=1, source="arXiv:2211.01095 eq. 9, k = 1"
    )

    def steps(self, grid: TimeGrid) -> list[StepSpec]:
        return [StepSpec()] * grid.steps


@register
@dataclass(frozen=True)
class DPMpp2M(Encoder):
    """Order 2.

    kind: "midpoint" (the paper's) or "taylor" (diffusers calls it "heun").
    lower_order_final: see `LowerOrderFinal`.
    """

    info: ClassVar[SolverInfo] = SolverInfo(
        name="dpmpp-2m", order=2, calls_per_step=1, source="arXiv:2211.01095 alg. 2"
    )
    kind: Kind = "midpoint"
    lower_order_final: LowerOrderFinal = LowerOrderFinal.UNDER_15

    def steps(self, grid: TimeGrid) -> list[StepSpec]:
        return _steps(grid, 2, self.kind, "exact", self.lower_order_final)


@register
@dataclass(frozen=True)
class DPMpp3M(Encoder):
    """Order 3 in name.

    third_order: "published" is c = 1, as in the authors' code and every copy of it. Its D2 is half
        the second derivative, so the method converges with order 2, but it damps errors at few
        steps. "exact" is c = 2, a true third-order step.
    kind:        of the order-2 steps at both ends.
    lower_order_final: see `LowerOrderFinal`.
    """

    info: ClassVar[SolverInfo] = SolverInfo(
        name="dpmpp-3m", order=2, calls_per_step=1, source="arXiv:2211.01095 app. B (multistep)"
    )
    kind: Kind = "midpoint"
    third_order: Literal["published", "exact"] = "published"
    lower_order_final: LowerOrderFinal = LowerOrderFinal.UNDER_15

    def steps(self, grid: TimeGrid) -> list[StepSpec]:
        return _steps(grid, 3, self.kind, self.third_order, self.lower_order_final)
