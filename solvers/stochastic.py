"""Stochastic exponential multistep methods: SDE-DPM-Solver++ and DDPM.

SDE-DPM-Solver++ of orders 1, 2 and 3 is DPM-Solver++ with as much noise as eta says. Every eta has
a reverse SDE with the marginals of the diffusion. Its exponential step is, with m = x0,
h = lam_s - lam_t and q = 1 + eta,

    x_s = (sigma_s / sigma_t) e^{-eta h} x_t + alpha_s q int_0^h e^{-q (h - u)} m(lam_t + u) du
          + sigma_s sqrt(1 - e^{-2 eta h}) z.

But for the noise it is the step of the ODE with q lam in place of lam, or lam + H where eta is not
constant (`noise_rate`), so everything known of DPM-Solver++ carries over; with D, D1, D2 of
`multistep` and E = e^{-q h} - 1, P = E / (q h) + 1:

    order 1:  x_s = (sigma_s / sigma_t) e^{-eta h} x_t - alpha_s E m0 + noise
    order 2:  ... - alpha_s E D / 2  (midpoint)  or  + alpha_s P D  (taylor)
    order 3:  ... + alpha_s P D1 - c alpha_s (P / (q h) - 1/2) D2

eta = 1 at orders 1 and 2 is arXiv:2211.01095; eta in between and order 3 are k-diffusion's. The
order 3 of diffusers' "sde-dpmsolver++" is another, with a wrong sign in the weight of D2.

DDPM is ancestral sampling between any two nodes.

    x_s = (sigma_s^2 a / sigma_t^2) x_t + (alpha_s v / sigma_t^2) x0 + sqrt(variance) z,
    a = alpha_t / alpha_s,   v = sigma_t^2 - a^2 sigma_s^2

is a draw from q(x_s | x_t, x0) if the variance is v sigma_s^2 / sigma_t^2 (arXiv:2006.11239, eq. 6
and 7). The mean and that variance are those of SDE-DPM-Solver++1 with eta = 1.
"""

import math
from abc import abstractmethod
from dataclasses import field
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from ..models.schedule import Node, TimeGrid
from .base import Clock, SolverInfo, register
from .exponential import MultistepPath, StepSpec
from .interpolation import AUTO, CoordinateSetting
from .linear import LinearSolver, LowerOrderFinal, place_steps
from .multistep import DPMpp1M, DPMpp2M, DPMpp3M, Kind
from .noise_rate import SBDM, ConstantRate, Form, NoiseRate, make_rate
from .table import Combination

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Scale = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]


def compute_noise_std(grid: TimeGrid, n: int, rate: NoiseRate) -> float:
    """Returns sigma_s sqrt(1 - e^{-2 (H_s - H_t)}): the noise of step n, from t to s."""
    t, s = grid.nodes[n], grid.nodes[n + 1]
    if s.sigma == 0.0:
        return 0.0
    return s.sigma * math.sqrt(-math.expm1(-2.0 * rate.rise(t, s)))


@dataclass(frozen=True)
class SDEDPMpp(LinearSolver):
    """Settings of all three orders.

    eta:     share of the noise; 0 is the ODE solver `dpmpp-1m`, `-2m` or `-3m`.
    s_noise: factor on the noise; other than 1 it changes the variance of the samples.
    form, norm: where the noise is added; all forms sample the same. "sbdm" is the reverse SDE of
             diffusion; the others are of flow and trigonometric schedules (`noise_rate`).
    coordinate: see `Interpolating`.
    """

    eta: Share = 1.0
    s_noise: Scale = 1.0
    form: Form = field(default=SBDM, kw_only=True)
    norm: Scale = field(default=1.0, kw_only=True)
    coordinate: CoordinateSetting = field(default=AUTO, kw_only=True)

    @abstractmethod
    def specs(self, grid: TimeGrid) -> list[StepSpec]:
        """Returns the steps of the ODE solver."""

    def combinations(self, grid: TimeGrid) -> list[Combination]:
        specs = place_steps(self.specs(grid), grid.nodes[0], self.coordinate)
        rate = self.make_rate(grid)
        path = MultistepPath(grid, rate)
        noise = [self.s_noise * compute_noise_std(grid, n, rate) for n in range(grid.steps)]
        return [{**path.step(n, spec), ("z", n): noise[n]} for n, spec in enumerate(specs)]

    def make_rate(self, grid: TimeGrid) -> NoiseRate:
        """Returns the noise that the steps make room for."""
        return make_rate(grid, self.form, self.norm, self.eta)

    def make_clock(self, grid: TimeGrid) -> Clock:
        return self.make_rate(grid).find_clock


def _describe(p: int, order: int, source: str) -> SolverInfo:
    return SolverInfo(name=f"sde-dpmpp-{p}", order=order, source=source, stochastic=True)


@register
@dataclass(frozen=True)
class SDEDPMpp1(SDEDPMpp):
    """Order 1; with eta = 1 the ancestral sampler `ddpm`."""

    info: ClassVar[SolverInfo] = _describe(1, 1, "arXiv:2211.01095, SDE-DPM-Solver++1")

    def specs(self, grid: TimeGrid) -> list[StepSpec]:
        return DPMpp1M().steps(grid)


@register
@dataclass(frozen=True)
class SDEDPMpp2(SDEDPMpp):
    """Order 2 in the mean and variance of the samples.

    kind: "midpoint" or "taylor" (diffusers and k-diffusion call it "heun").
    lower_order_final: see `LowerOrderFinal`.
    """

    info: ClassVar[SolverInfo] = _describe(2, 2, "arXiv:2211.01095, SDE-DPM-Solver++(2M)")
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

    info: ClassVar[SolverInfo] = _describe(
        3, 2, "arXiv:2211.01095, SDE-DPM-Solver++ with three terms"
    )
    kind: Kind = "midpoint"
    third_order: Literal["published", "exact"] = "published"
    lower_order_final: LowerOrderFinal = LowerOrderFinal.UNDER_15

    def specs(self, grid: TimeGrid) -> list[StepSpec]:
        return DPMpp3M(self.kind, self.third_order, self.lower_order_final).steps(grid)


@register
@dataclass(frozen=True)
class DDPM(LinearSolver):
    """DDPM.

    variance: "small" is the posterior's, right where x0 is known; "large" is that of data with unit
              variance, which is beta_t where alpha^2 + sigma^2 = 1. No noise at sigma_s = 0.
    """

    info: ClassVar[SolverInfo] = SolverInfo(
        name="ddpm",
        order=1,
        source="arXiv:2006.11239 eq. 6-7 and sec. 3.2",
        stochastic=True,
        same_as="sde-dpmpp-1",
    )
    variance: Literal["small", "large"] = "small"

    def combinations(self, grid: TimeGrid) -> list[Combination]:
        combos = SDEDPMpp1(eta=1.0).combinations(grid)
        if self.variance == "large":
            for n, combo in enumerate(combos):
                combo[("z", n)] = _compute_large_std(*grid.nodes[n : n + 2])
        return combos

    def make_clock(self, grid: TimeGrid) -> Clock | None:
        return ConstantRate(1.0).find_clock if self.variance == "small" else None


def _compute_large_std(t: Node, s: Node) -> float:
    """Returns the standard deviation of x_s given x_t for data of unit variance."""
    if s.sigma == 0.0:
        return 0.0
    return math.hypot(s.alpha, s.sigma) * math.sqrt(1.0 - _compute_signal(t) / _compute_signal(s))


def _compute_signal(node: Node) -> float:
    """Returns the share of the signal in the variance of x."""
    return node.alpha**2 / (node.alpha**2 + node.sigma**2)
