"""DEIS in lam: eps is interpolated in lam and integrated exactly, orders 1, 2 and 3.

    x_s = (alpha_s / alpha_t) x_t - sigma_s sum_{k < p} h^{k+1} phi_{k+1}(h) eps^{(k)}

with the derivatives of eps in lam taken from its last p values. This is what diffusers calls DEIS;
the paper's tAB-DEIS interpolates in t instead (arXiv:2204.13902, eq. 15).
"""

from typing import ClassVar

from pydantic.dataclasses import dataclass

from ..models.schedule import TimeGrid
from .base import SolverInfo, register
from .multistep import Encoder, LowerOrderFinal, orders
from .step_schedule import StepSpec


@dataclass(frozen=True)
class DEIS(Encoder):
    """Settings of all three orders; lower_order_final: see `LowerOrderFinal`."""

    p: ClassVar[int]
    lower_order_final: LowerOrderFinal = LowerOrderFinal.UNDER_15

    def steps(self, grid: TimeGrid) -> list[StepSpec]:
        chosen = orders(grid, self.p, self.lower_order_final)
        steps = [StepSpec(pred="noise", order=p) for p in chosen]
        if grid.nodes[-1].sigma == 0.0:  # at order 1 both predictions give the same step
            steps[-1] = StepSpec()
        return steps


def _info(p: int, order: int) -> SolverInfo:
    source = f"arXiv:2204.13902 sec. 3 with lam for t, {p} terms"
    return SolverInfo(name=f"deis-{p}", order=order, calls_per_step=1, source=source)


@register
@dataclass(frozen=True)
class DEIS1(DEIS):
    info: ClassVar[SolverInfo] = _info(1, order=1)
    p: ClassVar[int] = 1


@register
@dataclass(frozen=True)
class DEIS2(DEIS):
    info: ClassVar[SolverInfo] = _info(2, order=2)
    p: ClassVar[int] = 2


@register
@dataclass(frozen=True)
class DEIS3(DEIS):
    """The single first-order step at the start limits its global order to 2."""

    info: ClassVar[SolverInfo] = _info(3, order=2)
    p: ClassVar[int] = 3
