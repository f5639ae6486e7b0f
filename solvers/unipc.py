"""UniPC: the predictor UniP-p and the corrector UniC-p, in data prediction.

With B(h) = -h (bh1) or e^{-h} - 1 (bh2), nodes rho_k = (lam_k - lam_t) / h of past predictions
m_k, rho_p = 1 for the new one, and D_k = (m_k - m0) / rho_k:

    x_s^p = (sigma_s / sigma_t) x_t - alpha_s (e^{-h} - 1) m0 - alpha_s B(h) sum_{k < p} a_k D_k
    x_s^c = the same with c_k, and c_p (m_s - m0) added, where m_s = x0 at x_s^p

a and c solve Vandermonde systems in rho, but for p = 2 the predictor has a = 1/2 and for p = 1 the
corrector c = 1/2 by convention; only there does B(h) have an effect. The corrected state replaces
x_s; m_s is not evaluated again, so the corrector costs no call. It raises the order by one.
"""

from typing import ClassVar, Literal

from pydantic.dataclasses import dataclass

from ..models.schedule import TimeGrid
from .base import SolverInfo, register
from .multistep import Encoder, LowerOrderFinal, orders
from .step_schedule import Corrector, StepSpec


@dataclass(frozen=True)
class UniPC(Encoder):
    """Settings of all three orders.

    solver_type: "bh1" or "bh2", the choice of B(h).
    corrector:   False leaves UniP, the predictor alone.
    disable_corrector: numbers of the steps that are not corrected, counted from 0; [0] helps at
                 very large guidance scales.
    lower_order_final: see `LowerOrderFinal`.
    """

    p: ClassVar[int]
    solver_type: Literal["bh1", "bh2"] = "bh2"
    corrector: bool = True
    disable_corrector: tuple[int, ...] = ()
    lower_order_final: LowerOrderFinal = LowerOrderFinal.ALWAYS

    def steps(self, grid: TimeGrid) -> list[StepSpec]:
        orders_ = orders(grid, self.p, self.lower_order_final)
        return [self._step(i, p, i == grid.steps - 1) for i, p in enumerate(orders_)]

    def _step(self, i: int, p: int, last: bool) -> StepSpec:
        on = self.corrector and i not in self.disable_corrector and not last
        return StepSpec(
            order=p,
            relax=self.solver_type if p == 2 else "none",
            corr=Corrector(on=on, relax=self.solver_type if on and p == 1 else "none"),
        )


def _info(p: int) -> SolverInfo:
    source = f"arXiv:2302.04867 alg. 5-8, p = {p}"
    return SolverInfo(name=f"unipc-{p}", order=p + 1, calls_per_step=1, source=source)


@register
@dataclass(frozen=True)
class UniPC1(UniPC):
    info: ClassVar[SolverInfo] = _info(1)
    p: ClassVar[int] = 1


@register
@dataclass(frozen=True)
class UniPC2(UniPC):
    info: ClassVar[SolverInfo] = _info(2)
    p: ClassVar[int] = 2


@register
@dataclass(frozen=True)
class UniPC3(UniPC):
    info: ClassVar[SolverInfo] = _info(3)
    p: ClassVar[int] = 3
