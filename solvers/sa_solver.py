"""SA-Solver: stochastic Adams, a predictor and a corrector, in data prediction.

With tau constant in a step, h = lam_s - lam_t and the Lagrange polynomials l_i of the nodes used,

    x_s = (sigma_s / sigma_t) e^{-tau^2 h} x_t + sum_i b_i x0_i + sigma_s sqrt(1 - e^{-2 tau^2 h}) z
    b_i = (1 + tau^2) sigma_s e^{-tau^2 lam_s} int e^{(1 + tau^2) lam} l_i(lam) dlam

(arXiv:2309.05019, eq. 14-18). The predictor uses the nodes up to t, the corrector s as well,
and the same z. So the corrected state is the predicted one plus a combination of predictions, which
is merged into the next step, and x0 is not asked for again. tau = 0 is exponential Adams, tau = 1
with order 1 is SDE-DPM-Solver++1.

The PECE form evaluates once more at each corrected state, and its prediction is the one kept.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field
from typing import Annotated, ClassVar, Literal, NamedTuple

from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from ..models.schedule import Node, TimeGrid
from .base import Clock, SolverInfo, Span, Step, register
from .exponential import MultistepPath, Relax, StepSpec, correct_step
from .interpolation import AUTO, CoordinateSetting, choose_coordinate
from .linear import LinearSolver, LowerOrderFinal, plan_orders
from .noise_rate import ConstantRate
from .stochastic import Scale, compute_noise_std
from .table import Combination, Term, add_terms, find_layouts
from .table_steps import TableMemory


@dataclass(frozen=True)
class SASettings:
    """Settings of both, and the steps that they mean.

    predictor_order: nodes of the predictor. The paper has 3 without guidance and 2 with.
    corrector_order: nodes of the corrector, the new one among them; 0 for none. The paper has 4
                     without guidance and 2 with.
    tau:       how much noise, in the steps that start at kappa = sigma / alpha within kappa_min and
               kappa_max; elsewhere none.
    kappa_min, kappa_max: the defaults are t = 0.2 and 0.8 on the linear DDPM schedule.
    tau_at:    "end" looks at the kappa where a step ends, as ComfyUI does.
    few_steps: replaces the integral that weighs the first derivative in steps of two nodes by
               h^2 / 2, like UniPC's bh1; the authors' code and diffusers do, the paper does not. It
               overshoots in large steps: on Gaussian data it gave the worse variance at all N.
    lower_order_final: see `LowerOrderFinal`; coordinate: see `Interpolating`.
    """

    predictor_order: Literal[1, 2, 3, 4] = 2
    corrector_order: Literal[0, 2, 3, 4] = 2
    tau: Scale = 1.0
    kappa_min: Scale = 0.72
    kappa_max: Annotated[float, Field(ge=0.0)] = 25.0
    few_steps: bool = False
    lower_order_final: LowerOrderFinal = LowerOrderFinal.ALWAYS
    tau_at: Literal["start", "end"] = field(default="start", kw_only=True)
    coordinate: CoordinateSetting = field(default=AUTO, kw_only=True)

    def plan_steps(self, grid: TimeGrid) -> Iterator["SAStep"]:
        """Yields every step; the first and the last one have what order there is."""
        predictors = plan_orders(grid, self.predictor_order, self.lower_order_final)
        correctors = plan_orders(grid, max(1, self.corrector_order - 1), self.lower_order_final)
        noisy, plain = MultistepPath(grid, ConstantRate(self.tau**2)), MultistepPath(grid)
        for n in range(grid.steps):
            eta, corrector = self._choose_eta(grid, n), None
            if self.lower_order_final is LowerOrderFinal.BEFORE_ZERO:
                correctors[n] = max(0, min(correctors[n], grid.steps - 2 - n))
            if self.corrector_order > 0 and n + 1 < grid.steps:
                corrector = self._make_spec(grid, n, correctors[n] + 1, ahead=1)
            predictor = self._make_spec(grid, n, predictors[n])
            z = compute_noise_std(grid, n, ConstantRate(eta))
            yield SAStep(noisy if eta else plain, predictor, corrector, z)

    def _choose_eta(self, grid: TimeGrid, n: int) -> float:
        place = grid.nodes[n + (self.tau_at == "end")].kappa
        inside = self.kappa_min <= place <= self.kappa_max
        return self.tau**2 if inside and n + 1 < grid.steps else 0.0

    def _make_spec(self, grid: TimeGrid, n: int, order: int, ahead: int = 0) -> StepSpec:
        """Returns step n by `order` predictions; `ahead` of them, 0 or 1, are at its end."""
        coordinate = choose_coordinate(self.coordinate, grid.nodes[0], n + 1 + ahead - order)
        relax: Relax = "bh1" if order == 2 and self.few_steps else "none"
        return StepSpec(order=order, relax=relax).place(coordinate)


class SAStep(NamedTuple):
    """The path that a step follows, its predictor and corrector, and the size of its noise."""

    path: MultistepPath
    predictor: StepSpec
    corrector: StepSpec | None
    z: float


@register
@dataclass(frozen=True)
class SASolver(SASettings, LinearSolver):
    """Order 2 in the mean and variance of the samples; the last step is plain and adds no noise."""

    info: ClassVar[SolverInfo] = SolverInfo(
        name="sa-solver", order=2, source="arXiv:2309.05019 alg. 1", stochastic=True
    )

    def combinations(self, grid: TimeGrid) -> list[Combination]:
        combos: list[Combination] = []
        shift: Combination = {}  # corrected minus predicted state at node n
        for n, step in enumerate(self.plan_steps(grid)):
            predicted = step.path.step(n, step.predictor)
            weight = predicted.pop(("x", n))
            combo = add_terms(predicted, add_terms({("x", n): 1.0}, shift), weight)
            combos.append({**combo, ("z", n): step.z})
            shift = {}
            if step.corrector is not None:
                shift = correct_step(step.path, n, step.corrector, predicted)
        return combos

    def make_clock(self, grid: TimeGrid) -> Clock:
        return ConstantRate(self.tau**2).find_clock


@register
@dataclass(frozen=True)
class SASolverPECE(SASettings):
    """SA-Solver that asks again at each corrected state, and keeps the prediction there.

    A run of N steps costs 2 N - 1 calls.
    """

    info: ClassVar[SolverInfo] = SolverInfo(
        name="sa-solver-pece",
        order=2,
        calls_per_step=2,
        source="arXiv:2309.05019 alg. 1, evaluated twice as ComfyUI does",
        stochastic=True,
    )

    def on(self, grid: TimeGrid) -> "PECESteps":
        rows = []
        for n, step in enumerate(self.plan_steps(grid)):
            predicted = step.path.step(n, step.predictor)
            corrected = step.path.step(n, step.corrector, True) if step.corrector else predicted
            if step.corrector and step.corrector.order == 1:  # by the new prediction alone
                corrected[("x0", n + 1)] = corrected.pop(("x0", n))
            rows.append(PECERow(predicted, corrected if n + 1 < grid.steps else {}, step.z))
        return PECESteps(rows, ConstantRate(self.tau**2).find_clock)


class PECERow(NamedTuple):
    """The predicted and the corrected state, empty in the last step, and the size of the noise."""

    predicted: Combination
    corrected: Combination
    z: float


class PECESteps:
    """Steps that predict, ask, correct; what they ask first is the prediction that is kept."""

    def __init__(self, rows: Sequence[PECERow], clock: Clock) -> None:
        self.rows, self.clock = rows, clock
        layouts = find_layouts([{**row.predicted, **row.corrected} for row in rows])
        self.kept = [[term for term in layout if term[0] == "x0"] for layout in layouts]

    def init(self) -> TableMemory:
        return TableMemory()

    def list_spans(self, n: int, t: Node, s: Node) -> Sequence[Span]:
        """As `Clocked` has it."""
        return [(self.clock(t), self.clock(s))]

    def step(self, x: Tensor, state: TableMemory, t: Node, s: Node) -> Step[TableMemory]:
        n, row = state.n, self.rows[state.n]
        known = {("x", n): x, ("x0", n): (yield x, t)}
        known |= dict(zip(self.kept[n], state.past, strict=True))
        z = (yield x, None) if row.z else None
        x_s = _mix(row.predicted, known, row.z, z)
        if row.corrected:
            known["x0", n + 1] = yield x_s, s
            x_s = _mix(row.corrected, known, row.z, z)
        return x_s, TableMemory(n + 1, tuple(known[term] for term in self.kept[n + 1]))


def _mix(combo: Combination, known: Mapping[Term, Tensor], size: float, z: Tensor | None) -> Tensor:
    """Returns the sum of the terms and the noise."""
    (first, weight), *rest = combo.items()
    x = known[first] * weight
    for term, weight in rest:
        if weight:
            x.add_(known[term], alpha=weight)
    return x if z is None else x.add_(z, alpha=size)
