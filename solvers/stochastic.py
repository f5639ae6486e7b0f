"""Stochastic exponential multistep methods: SDE-DPM-Solver++, DDPM and SA-Solver.

SDE-DPM-Solver++ of orders 1, 2 and 3 is DPM-Solver++ with as much noise as eta says. Every eta has
a reverse SDE with the marginals of the diffusion. Its exponential step is, with m = x0,
h = lam_s - lam_t and q = 1 + eta,

    x_s = (sigma_s / sigma_t) e^{-eta h} x_t + alpha_s q int_0^h e^{-q (h - u)} m(lam_t + u) du
          + sigma_s sqrt(1 - e^{-2 eta h}) z.

But for the noise it is the step of the ODE with q lam in place of lam, so everything known of
DPM-Solver++ carries over; with D, D1, D2 of `multistep` and E = e^{-q h} - 1, P = E / (q h) + 1:

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

SA-Solver is stochastic Adams, a predictor and a corrector, in data prediction. With tau constant in
a step, h = lam_s - lam_t and the Lagrange polynomials l_i of the nodes used,

    x_s = (sigma_s / sigma_t) e^{-tau^2 h} x_t + sum_i b_i x0_i + sigma_s sqrt(1 - e^{-2 tau^2 h}) z
    b_i = (1 + tau^2) sigma_s e^{-tau^2 lam_s} int e^{(1 + tau^2) lam} l_i(lam) dlam

(arXiv:2309.05019, eq. 14-18). The predictor uses the nodes up to t, the corrector s as well,
and the same z. So the corrected state is the predicted one plus a combination of predictions, which
is merged into the next step, and x0 is not asked for again. tau = 0 is exponential Adams, tau = 1
with order 1 is SDE-DPM-Solver++1.
"""

import math
from abc import abstractmethod
from dataclasses import field
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from ..models.schedule import Node, TimeGrid
from .base import SolverInfo, register
from .exponential import MultistepPath, Relax, StepSpec, correct_step
from .interpolation import AUTO, CoordinateSetting, choose_coordinate
from .linear import LinearSolver, LowerOrderFinal, place_steps, plan_orders
from .multistep import DPMpp1M, DPMpp2M, DPMpp3M, Kind
from .table import Combination, add_terms

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Scale = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]


def compute_noise_std(grid: TimeGrid, n: int, eta: float) -> float:
    """Returns sigma_s sqrt(1 - e^{-2 eta h}): the noise of step n, from t to s."""
    t, s = grid.nodes[n], grid.nodes[n + 1]
    if eta == 0.0 or s.sigma == 0.0:
        return 0.0
    return s.sigma * math.sqrt(-math.expm1(-2.0 * eta * (s.lam - t.lam)))


@dataclass(frozen=True)
class SDEDPMpp(LinearSolver):
    """Settings of all three orders.

    eta:     share of the noise of the reverse SDE; 0 is the ODE solver `dpmpp-1m`, `-2m` or `-3m`.
    s_noise: factor on the noise; other than 1 it changes the variance of the samples.
    coordinate: see `Interpolating`.
    """

    eta: Share = 1.0
    s_noise: Scale = 1.0
    coordinate: CoordinateSetting = field(default=AUTO, kw_only=True)

    @abstractmethod
    def specs(self, grid: TimeGrid) -> list[StepSpec]:
        """Returns the steps of the ODE solver."""

    def combinations(self, grid: TimeGrid) -> list[Combination]:
        specs = place_steps(self.specs(grid), grid.nodes[0], self.coordinate)
        path = MultistepPath(grid, self.eta)
        noise = [self.s_noise * compute_noise_std(grid, n, self.eta) for n in range(grid.steps)]
        return [{**path.step(n, spec), ("z", n): noise[n]} for n, spec in enumerate(specs)]


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


def _compute_large_std(t: Node, s: Node) -> float:
    """Returns the standard deviation of x_s given x_t for data of unit variance."""
    if s.sigma == 0.0:
        return 0.0
    return math.hypot(s.alpha, s.sigma) * math.sqrt(1.0 - _compute_signal(t) / _compute_signal(s))


def _compute_signal(node: Node) -> float:
    """Returns the share of the signal in the variance of x."""
    return node.alpha**2 / (node.alpha**2 + node.sigma**2)


@register
@dataclass(frozen=True)
class SASolver(LinearSolver):
    """Order 2 in the mean and variance of the samples; the last step is plain and adds no noise.

    predictor_order: nodes of the predictor. The paper has 3 without guidance and 2 with.
    corrector_order: nodes of the corrector, the new one among them; 0 for none. The paper has 4
                     without guidance and 2 with.
    tau:       how much noise, in the steps that start at kappa = sigma / alpha within kappa_min and
               kappa_max; elsewhere none.
    kappa_min, kappa_max: the defaults are t = 0.2 and 0.8 on the linear DDPM schedule.
    few_steps: replaces the integral that weighs the first derivative in steps of two nodes by
               h^2 / 2, like UniPC's bh1; the authors' code and diffusers do, the paper does not. It
               overshoots in large steps: on Gaussian data it gave the worse variance at all N.
    lower_order_final: see `LowerOrderFinal`; coordinate: see `Interpolating`.
    """

    info: ClassVar[SolverInfo] = SolverInfo(
        name="sa-solver", order=2, source="arXiv:2309.05019 alg. 1", stochastic=True
    )
    predictor_order: Literal[1, 2, 3, 4] = 2
    corrector_order: Literal[0, 2, 3, 4] = 2
    tau: Scale = 1.0
    kappa_min: Scale = 0.72
    kappa_max: Annotated[float, Field(ge=0.0)] = 25.0
    few_steps: bool = False
    lower_order_final: LowerOrderFinal = LowerOrderFinal.ALWAYS
    coordinate: CoordinateSetting = field(default=AUTO, kw_only=True)

    def combinations(self, grid: TimeGrid) -> list[Combination]:
        predictors = plan_orders(grid, self.predictor_order, self.lower_order_final)
        correctors = plan_orders(grid, max(1, self.corrector_order - 1), self.lower_order_final)
        combos: list[Combination] = []
        shift: Combination = {}  # corrected minus predicted state at node n
        noisy, plain = MultistepPath(grid, self.tau**2), MultistepPath(grid)
        for n in range(grid.steps):
            eta = self._choose_eta(grid, n)
            path = noisy if eta else plain
            predicted = path.step(n, self._make_spec(grid, n, predictors[n]))
            weight = predicted.pop(("x", n))
            combo = add_terms(predicted, add_terms({("x", n): 1.0}, shift), weight)
            combos.append({**combo, ("z", n): compute_noise_std(grid, n, eta)})
            shift = {}
            if self.corrector_order > 0 and n + 1 < grid.steps:
                spec = self._make_spec(grid, n, correctors[n] + 1, ahead=1)
                shift = correct_step(path, n, spec, predicted)
        return combos

    def _choose_eta(self, grid: TimeGrid, n: int) -> float:
        inside = self.kappa_min <= grid.nodes[n].kappa <= self.kappa_max
        return self.tau**2 if inside and n + 1 < grid.steps else 0.0

    def _make_spec(self, grid: TimeGrid, n: int, order: int, ahead: int = 0) -> StepSpec:
        """Returns step n by `order` predictions; `ahead` of them, 0 or 1, are at its end."""
        coordinate = choose_coordinate(self.coordinate, grid.nodes[0], n + 1 + ahead - order)
        relax: Relax = "bh1" if order == 2 and self.few_steps else "none"
        return StepSpec(order=order, relax=relax).place(coordinate)
