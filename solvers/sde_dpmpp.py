"""SDE-DPM-Solver++ of orders 1, 2 and 3: DPM-Solver++ with as much noise as eta says.

Every eta has a reverse SDE with the marginals of the diffusion. Its exponential step is, with
m = x0, h = lam_s - lam_t and q = 1 + eta,

    x_s = (sigma_s / sigma_t) e^{-eta h} x_t + alpha_s q int_0^h e^{-q (h - u)} m(lam_t + u) du
          + sigma_s sqrt(1 - e^{-2 eta h}) z.

But for the noise it is the step of the ODE with q lam in place of lam, so everything known of
DPM-Solver++ carries over; with D, D1, D2 of `dpmpp` and E = e^{-q h} - 1, P = E / (q h) + 1:

    order 1:  x_s = (sigma_s / sigma_t) e^{-eta h} x_t - alpha_s E m0 + noise
    order 2:  ... - alpha_s E D / 2  (midpoint)  or  + alpha_s P D  (taylor)
    order 3:  ... + alpha_s P D1 - c alpha_s (P / (q h) - 1/2) D2

eta = 1 at orders 1 and 2 is arXiv:2211.01095; eta in between and order 3 are k-diffusion's. The
order 3 of diffusers' "sde-dpmsolver++" is another, with a wrong sign in the weight of D2.
"""

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from ..models.schedule import Node, TimeGrid
from .base import SolverInfo, register
from .dpmpp import DPMpp1M, DPMpp2M, DPMpp3M, Kind
from .multistep import LinearSolver, LowerOrderFinal
from .step_schedule import StepSpec
from .table import Combination
from .taylor import taylor

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Scale = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]


def stretched(nodes: Sequence[Node], eta: float) -> Sequence[Node]:
    """The nodes with (1 + eta) lam for lam; over them an ODE step is the SDE step less its noise.

    sigma becomes alpha e^{-(1 + eta) lam}, which is infinite at alpha = 0.
    """
    if eta == 0.0:
        return nodes
    return [
        replace(
            node,
            sigma=math.inf if node.alpha == 0.0 else node.sigma * math.exp(-eta * node.lam),
            lam=(1.0 + eta) * node.lam,
        )
        for node in nodes
    ]


def noise_std(grid: TimeGrid, n: int, eta: float) -> float:
    """sigma_s sqrt(1 - e^{-2 eta h}): the noise of step n, from t to s."""
    t, s = grid.nodes[n], grid.nodes[n + 1]
    if eta == 0.0 or s.sigma == 0.0:
        return 0.0
    return s.sigma * math.sqrt(-math.expm1(-2.0 * eta * (s.lam - t.lam)))


@dataclass(frozen=True)
class SDEDPMpp(LinearSolver):
    """Settings of all three orders.

    eta:     share of the noise of the reverse SDE; 0 is the ODE solver `dpmpp-1m`, `-2m` or `-3m`.
    s_noise: factor on the noise; other than 1 it changes the variance of the samples.
    """

    eta: Share = 1.0
    s_noise: Scale = 1.0

    @abstractmethod
    def specs(self, grid: TimeGrid) -> list[StepSpec]:
        """The steps of the ODE solver."""

    def combinations(self, grid: TimeGrid) -> list[Combination]:
        nodes, combos = stretched(grid.nodes, self.eta), []
        for n, spec in enumerate(self.specs(grid)):
            combo = taylor(nodes, n, n + 1, spec, history=range(n - 1, -1, -1))
            combos.append({**combo, ("z", n): self.s_noise * noise_std(grid, n, self.eta)})
        return combos


def _info(p: int, order: int, source: str) -> SolverInfo:
    return SolverInfo(
        name=f"sde-dpmpp-{p}", order=order, calls_per_step=1, source=source, stochastic=True
    )


@register
@dataclass(frozen=True)
class SDEDPMpp1(SDEDPMpp):
    """Order 1; with eta = 1 the ancestral sampler `ddpm`."""

    info: ClassVar[SolverInfo] = _info(1, 1, "arXiv:2211.01095, SDE-DPM-Solver++1")

    def specs(self, grid: TimeGrid) -> list[StepSpec]:
        return DPMpp1M().steps(grid)


@register
@dataclass(frozen=True)
class SDEDPMpp2(SDEDPMpp):
    """Order 2 in the mean and variance of the samples.

    kind: "midpoint" or "taylor" (diffusers and k-diffusion call it "heun").
    lower_order_final: see `LowerOrderFinal`.
    """

    info: ClassVar[SolverInfo] = _info(2, 2, "arXiv:2211.01095, SDE-DPM-Solver++(2M)")
    kind: Kind = "midpoint"
    lower_order_final: LowerOrderFinal = LowerOrderFinal.UNDER_15

    def specs(self, grid: TimeGrid) -> list[StepSpec]:
        return DPMpp2M(kind=self.kind, lower_order_final=self.lower_order_final).steps(grid)


@register
@dataclass(frozen=True)
class SDEDPMpp3(SDEDPMpp):
    """Three terms.

    third_order: "published" is c = 1, as k-diffusion has it; "exact" is c = 2, with the whole
                 second derivative.
    kind:        of the order-2 steps at both ends; k-diffusion has "taylor".
    lower_order_final: see `LowerOrderFinal`.
    """

    info: ClassVar[SolverInfo] = _info(3, 2, "arXiv:2211.01095, SDE-DPM-Solver++ with three terms")
    kind: Kind = "midpoint"
    third_order: Literal["published", "exact"] = "published"
    lower_order_final: LowerOrderFinal = LowerOrderFinal.UNDER_15

    def specs(self, grid: TimeGrid) -> list[StepSpec]:
        return DPMpp3M(self.kind, self.third_order, self.lower_order_final).steps(grid)
