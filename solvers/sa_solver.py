"""SA-Solver: stochastic Adams, a predictor and a corrector, in data prediction.

With tau constant in a step, h = lam_s - lam_t and the Lagrange polynomials l_i of the nodes used,

    x_s = (sigma_s / sigma_t) e^{-tau^2 h} x_t + sum_i b_i x0_i + sigma_s sqrt(1 - e^{-2 tau^2 h}) z
    b_i = (1 + tau^2) sigma_s e^{-tau^2 lam_s} int e^{(1 + tau^2) lam} l_i(lam) dlam

(arXiv:2309.05019, eq. 14-18). The predictor uses the nodes up to t, the corrector s as well,
and the same z. So the corrected state is the predicted one plus a combination of predictions, which
is merged into the next step, and x0 is not asked for again. tau = 0 is exponential Adams, tau = 1
with order 1 is SDE-DPM-Solver++1.
"""

from collections.abc import Sequence
from itertools import chain
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from ..models.schedule import Node, TimeGrid
from .base import SolverInfo, register
from .multistep import LinearSolver, LowerOrderFinal, orders
from .sde_dpmpp import Scale, noise_std, stretched
from .step_schedule import StepSpec
from .table import Combination, plus
from .taylor import taylor


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
    lower_order_final: see `LowerOrderFinal`.
    """

    info: ClassVar[SolverInfo] = SolverInfo(
        name="sa-solver",
        order=2,
        calls_per_step=1,
        source="arXiv:2309.05019 alg. 1",
        stochastic=True,
    )
    predictor_order: Literal[1, 2, 3, 4] = 2
    corrector_order: Literal[0, 2, 3, 4] = 2
    tau: Scale = 1.0
    kappa_min: Scale = 0.72
    kappa_max: Annotated[float, Field(ge=0.0)] = 25.0
    few_steps: bool = False
    lower_order_final: LowerOrderFinal = LowerOrderFinal.ALWAYS

    def combinations(self, grid: TimeGrid) -> list[Combination]:
        predictors = orders(grid, self.predictor_order, self.lower_order_final)
        correctors = orders(grid, max(1, self.corrector_order - 1), self.lower_order_final)
        combos: list[Combination] = []
        shift: Combination = {}  # corrected minus predicted state at node n
        noisy = stretched(grid.nodes, self.tau**2)
        for n in range(grid.steps):
            eta = self._eta(grid, n)
            nodes, past = noisy if eta else grid.nodes, range(n - 1, -1, -1)
            predicted = taylor(nodes, n, n + 1, self._spec(predictors[n]), past)
            weight = predicted.pop(("x", n))
            combo = plus(predicted, plus({("x", n): 1.0}, shift), weight)
            combos.append({**combo, ("z", n): noise_std(grid, n, eta)})
            on = self.corrector_order > 0 and n + 1 < grid.steps
            shift = self._correction(nodes, n, correctors[n] + 1, predicted) if on else {}
        return combos

    def _eta(self, grid: TimeGrid, n: int) -> float:
        inside = self.kappa_min <= grid.nodes[n].kappa <= self.kappa_max
        return self.tau**2 if inside and n + 1 < grid.steps else 0.0

    def _spec(self, order: int) -> StepSpec:
        return StepSpec(order=order, relax="bh1" if order == 2 and self.few_steps else "none")

    def _correction(
        self, nodes: Sequence[Node], n: int, order: int, predicted: Combination
    ) -> Combination:
        """Step n with the prediction at its end, minus step n itself."""
        history = chain([n + 1], range(n - 1, -1, -1))
        corrected = taylor(nodes, n, n + 1, self._spec(order), history)
        corrected.pop(("x", n))
        return plus(corrected, predicted, -1.0)
