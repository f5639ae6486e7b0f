"""iPNDM of orders 1 to 4: the classical Adams-Bashforth weights on eps, then a DDIM step.

    e = sum_{j < p} a_j eps_{t-j},   x_s = (alpha_s / alpha_t) (x_t - sigma_t e) + sigma_s e

with the weights a of even steps, whatever the steps are: that limits the order to 2, and at few
steps it damps the extrapolation. The first steps have order 1, 2, ...; the step to sigma = 0 has
the full order. With the weights of the true steps in kappa this is `ipndm-v`, or `lms`.
"""

from typing import ClassVar

from pydantic.dataclasses import dataclass

from ..models.schedule import TimeGrid
from .adams import adams
from .base import SolverInfo, register
from .multistep import LinearSolver
from .table import Combination

_PAST = {  # weights of eps_{t-1}, eps_{t-2}, ...; all weights of an order sum to 1
    1: (),
    2: (-1 / 2,),
    3: (-16 / 12, 5 / 12),
    4: (-59 / 24, 37 / 24, -9 / 24),
}


@dataclass(frozen=True)
class IPNDM(LinearSolver):
    """All four orders; no settings."""

    p: ClassVar[int]

    def combinations(self, grid: TimeGrid) -> list[Combination]:
        combos = []
        for n, (t, s) in enumerate(zip(grid.nodes, grid.nodes[1:], strict=False)):
            past = _PAST[min(self.p, n + 1)]
            combos.append(adams(grid.nodes, n, [(s.kappa - t.kappa) * a for a in past]))
        return combos


def _info(p: int) -> SolverInfo:
    source = f"arXiv:2204.13902 (iPNDM), {p} terms; after arXiv:2202.09778"
    return SolverInfo(name=f"ipndm-{p}", order=min(p, 2), calls_per_step=1, source=source)


@register
@dataclass(frozen=True)
class IPNDM1(IPNDM):
    """The DDIM step."""

    info: ClassVar[SolverInfo] = _info(1)
    p: ClassVar[int] = 1


@register
@dataclass(frozen=True)
class IPNDM2(IPNDM):
    info: ClassVar[SolverInfo] = _info(2)
    p: ClassVar[int] = 2


@register
@dataclass(frozen=True)
class IPNDM3(IPNDM):
    info: ClassVar[SolverInfo] = _info(3)
    p: ClassVar[int] = 3


@register
@dataclass(frozen=True)
class IPNDM4(IPNDM):
    info: ClassVar[SolverInfo] = _info(4)
    p: ClassVar[int] = 4
