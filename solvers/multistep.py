"""Exponential multistep methods in lam: DDIM, DPM-Solver++, DPM-Solver, DEIS and UniPC.

DPM-Solver++ multistep of orders 1, 2 and 3 is in data prediction.

With m0 = x0 at t, m1, m2 the predictions before it, h = lam_s - lam_t, E = e^{-h} - 1,
r0 = (lam_t - lam_{t1}) / h and r1 = (lam_{t1} - lam_{t2}) / h:

    order 1:  x_s = (sigma_s / sigma_t) x_t - alpha_s E m0
    order 2:  ... - alpha_s E D / 2                  (midpoint)
              ... + alpha_s (E / h + 1) D            (taylor),     D = (m0 - m1) / r0
    order 3:  ... + alpha_s (E / h + 1) D1 - c alpha_s ((E / h + 1) / h - 1/2) D2

DPM-Solver multistep of orders 2 and 3 is the same in noise prediction: eps takes the place of x0,
and alpha and sigma, h and -h change places. With F = e^h - 1, order 1 is

    x_s = (alpha_s / alpha_t) x_t - sigma_s F e0.

The step to sigma = 0 has order 1, where both predictions give the same.

All of these are polynomials in lam. Where a run starts at alpha = 0, lam is -inf, and the steps
that use that node are made in t instead, as `interpolation` says; so they have the order of a start
just below it.

DEIS in lam, of orders 1, 2 and 3, interpolates eps in lam and integrates it exactly,

    x_s = (alpha_s / alpha_t) x_t - sigma_s sum_{k < p} h^{k+1} phi_{k+1}(h) eps^{(k)}

with the derivatives of eps in lam taken from its last p values. This is what diffusers calls DEIS;
the paper's tAB-DEIS (`deis-tab`) interpolates in t instead (arXiv:2204.13902, eq. 15).

UniPC is the predictor UniP-p with the corrector UniC-p, in data prediction.

With B(h) = -h (bh1) or e^{-h} - 1 (bh2), nodes rho_k = (lam_k - lam_t) / h of past predictions
m_k, rho_p = 1 for the new one, and D_k = (m_k - m0) / rho_k:

    x_s^p = (sigma_s / sigma_t) x_t - alpha_s (e^{-h} - 1) m0 - alpha_s B(h) sum_{k < p} a_k D_k
    x_s^c = the same with c_k, and c_p (m_s - m0) added, where m_s = x0 at x_s^p

a and c solve Vandermonde systems in rho, but for p = 2 the predictor has a = 1/2 and for p = 1 the
corrector c = 1/2 by convention; only there does B(h) have an effect. The corrected state replaces
x_s; m_s is not evaluated again, so the corrector costs no call. It raises the order by one.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, Literal

from pydantic.dataclasses import dataclass

from ..models.schedule import TimeGrid
from .base import SolverInfo, register
from .exponential import Corrector, Relax, StepSpec
from .linear import Encoder, Interpolating, LowerOrderFinal, plan_orders


@register
@dataclass(frozen=True)
class DDIM(Encoder):
    """x_s = (sigma_s / sigma_t) x_t + (alpha_s - alpha_t sigma_s / sigma_t) x0."""

    info: ClassVar[SolverInfo] = SolverInfo(
        name="ddim", order=1, source="arXiv:2010.02502 eq. 12 with eta = 0"
    )

    def steps(self, grid: TimeGrid) -> list[StepSpec]:
        return [StepSpec()] * grid.steps


@register
@dataclass(frozen=True)
class Euler(DDIM):
    """x_s = x_t + (sigma_s - sigma_t) dx/dsigma, with dx/dsigma = eps (EDM) or eps - x0 (flow).

    In both coordinates this is the DDIM step, term by term.
    """

    info: ClassVar[SolverInfo] = SolverInfo(
        name="euler",
        order=1,
        source="arXiv:2206.00364 alg. 1 without lines 6-8; arXiv:2209.03003 eq. 1",
        families=("edm", "flow"),
        same_as="ddim",
    )


Kind = Literal["midpoint", "taylor"]


def _make_dpmpp_steps(
    grid: TimeGrid, order: int, kind: Kind, third_order: str, policy: LowerOrderFinal
) -> list[StepSpec]:
    relax: Relax = "bh2" if kind == "midpoint" else "none"
    kmul = (1.0, 0.5) if third_order == "published" else None
    each = {1: StepSpec(), 2: StepSpec(order=2, relax=relax), 3: StepSpec(order=3, kmul=kmul)}
    return [each[p] for p in plan_orders(grid, order, policy)]


@register
@dataclass(frozen=True)
class DPMpp1M(DDIM):
    """Order 1: the DDIM step under its other name."""

    info: ClassVar[SolverInfo] = replace(
        DDIM.info, name="dpmpp-1m", source="arXiv:2211.01095 eq. 9, k = 1", same_as="ddim"
    )


@register
@dataclass(frozen=True)
class DPMpp2M(Interpolating):
    """Order 2.

    kind: "midpoint" (the paper's) or "taylor" (diffusers calls it "heun").
    lower_order_final: see `LowerOrderFinal`; coordinate: see `Interpolating`.
    """

    info: ClassVar[SolverInfo] = SolverInfo(
        name="dpmpp-2m", order=2, source="arXiv:2211.01095 alg. 2"
    )
    kind: Kind = "midpoint"
    lower_order_final: LowerOrderFinal = LowerOrderFinal.UNDER_15

    def steps(self, grid: TimeGrid) -> list[StepSpec]:
        return _make_dpmpp_steps(grid, 2, self.kind, "exact", self.lower_order_final)


@register
@dataclass(frozen=True)
class DPMpp3M(Interpolating):
    """Order 3 in name.

    third_order: "published" is c = 1, as in the authors' code and every copy of it. Its D2 is half
        the second derivative, so the method converges with order 2, but it damps errors at few
        steps. "exact" is c = 2, a true third-order step.
    kind:        of the order-2 steps at both ends.
    lower_order_final: see `LowerOrderFinal`; coordinate: see `Interpolating`.
    """

    info: ClassVar[SolverInfo] = SolverInfo(
        name="dpmpp-3m", order=2, source="arXiv:2211.01095 app. B (multistep)"
    )
    kind: Kind = "midpoint"
    third_order: Literal["published", "exact"] = "published"
    lower_order_final: LowerOrderFinal = LowerOrderFinal.UNDER_15

    def steps(self, grid: TimeGrid) -> list[StepSpec]:
        return _make_dpmpp_steps(grid, 3, self.kind, self.third_order, self.lower_order_final)


def _predict_noise(specs: Sequence[StepSpec]) -> list[StepSpec]:
    return [
        spec if spec.order == 1 else spec.model_copy(update={"pred": "noise"}) for spec in specs
    ]


@register
@dataclass(frozen=True)
class DPM2M(DPMpp2M):
    """Order 2; the settings of `dpmpp-2m`."""

    info: ClassVar[SolverInfo] = SolverInfo(
        name="dpm-2m", order=2, source="arXiv:2211.01095 alg. 2, with eps for x0"
    )

    def steps(self, grid: TimeGrid) -> list[StepSpec]:
        return _predict_noise(super().steps(grid))


@register
@dataclass(frozen=True)
class DPM3M(DPMpp3M):
    """Order 3 in name; the settings of `dpmpp-3m`, whose note on c = 1 and c = 2 holds here too."""

    info: ClassVar[SolverInfo] = SolverInfo(
        name="dpm-3m",
        order=2,
        source="arXiv:2211.01095 app. B (multistep), with eps for x0",
    )

    def steps(self, grid: TimeGrid) -> list[StepSpec]:
        return _predict_noise(super().steps(grid))


@dataclass(frozen=True)
class DEIS(Interpolating):
    """Settings of all three orders.

    lower_order_final: see `LowerOrderFinal`; coordinate: see `Interpolating`.
    """

    p: ClassVar[int]
    lower_order_final: LowerOrderFinal = LowerOrderFinal.UNDER_15

    def steps(self, grid: TimeGrid) -> list[StepSpec]:
        chosen = plan_orders(grid, self.p, self.lower_order_final)
        steps = [StepSpec(pred="noise", order=p) for p in chosen]
        if grid.nodes[-1].sigma == 0.0:  # at order 1 both predictions give the same step
            steps[-1] = StepSpec()
        return steps


def _describe_deis(p: int, order: int, same_as: str = "") -> SolverInfo:
    source = f"arXiv:2204.13902 sec. 3 with lam for t, {p} terms"
    return SolverInfo(name=f"deis-{p}", order=order, source=source, same_as=same_as)


@register
@dataclass(frozen=True)
class DEIS1(DEIS):
    """The DDIM step."""

    info: ClassVar[SolverInfo] = _describe_deis(1, order=1, same_as="ddim")
    p: ClassVar[int] = 1


@register
@dataclass(frozen=True)
class DEIS2(DEIS):
    info: ClassVar[SolverInfo] = _describe_deis(2, order=2)
    p: ClassVar[int] = 2


@register
@dataclass(frozen=True)
class DEIS3(DEIS):
    """The single first-order step at the start limits its global order to 2."""

    info: ClassVar[SolverInfo] = _describe_deis(3, order=2)
    p: ClassVar[int] = 3


@dataclass(frozen=True)
class UniPC(Interpolating):
    """Settings of all three orders.

    solver_type: "bh1" or "bh2", the choice of B(h); or "vary", which needs none: all weights are
                 solved for (vary_coeff). Its corrector has all its rows, and so its order; that of
                 the authors leaves the last out and is of order 1.
    corrector:   False leaves UniP, the predictor alone.
    disable_corrector: numbers of the steps that are not corrected, counted from 0; [0] helps at
                 very large guidance scales.
    lower_order_final: see `LowerOrderFinal`; coordinate: see `Interpolating`.
    """

    p: ClassVar[int]
    solver_type: Literal["bh1", "bh2", "vary"] = "bh2"
    corrector: bool = True
    disable_corrector: tuple[int, ...] = ()
    lower_order_final: LowerOrderFinal = LowerOrderFinal.ALWAYS

    def steps(self, grid: TimeGrid) -> list[StepSpec]:
        orders_ = plan_orders(grid, self.p, self.lower_order_final)
        return [self._specify(i, p, i == grid.steps - 1) for i, p in enumerate(orders_)]

    def _specify(self, i: int, p: int, last: bool) -> StepSpec:
        on = self.corrector and i not in self.disable_corrector and not last
        relax = "none" if self.solver_type == "vary" else self.solver_type
        return StepSpec(
            order=p,
            relax=relax if p == 2 else "none",
            corr=Corrector(on=on, relax=relax if on and p == 1 else "none"),
        )


def _describe_unipc(p: int) -> SolverInfo:
    source = f"arXiv:2302.04867 alg. 5-8, p = {p}"
    return SolverInfo(name=f"unipc-{p}", order=p + 1, source=source)


@register
@dataclass(frozen=True)
class UniPC1(UniPC):
    info: ClassVar[SolverInfo] = _describe_unipc(1)
    p: ClassVar[int] = 1


@register
@dataclass(frozen=True)
class UniPC2(UniPC):
    info: ClassVar[SolverInfo] = _describe_unipc(2)
    p: ClassVar[int] = 2


@register
@dataclass(frozen=True)
class UniPC3(UniPC):
    info: ClassVar[SolverInfo] = _describe_unipc(3)
    p: ClassVar[int] = 3
