"""One step of an exponential integrator as a combination of states and predictions, in float64.

The step (arXiv:2312.07243; the exponential integrator of arXiv:2310.13268 with constant l, s = l-1,
b = 0) from node s to t with h = lam_t - lam_s, f = (sigma eps - l x) / alpha and z = (2 l - 1) h is

    x_t = (alpha_t / alpha_s) e^{-l h} x_s
          - alpha_t e^{(l-1) h} sum_{k < order} h^{k+1} phi_{k+1}(-z) R_k g^{(k)},
    g_j = e^{(1-l) (lam_j - lam_s)} f_j,

whose derivatives g^{(k)} in lam are estimated from the predictions of other nodes. l = 1 is data
prediction, l = 0 noise prediction.

A `StepSpec` says as data what a step is. DDIM, DPM-Solver++ multistep, UniPC, DEIS in lam and all
that a search proposes are values of this one type.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain, count, islice
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from ..models.reading import StrictModel
from ..models.schedule import Node, TimeGrid
from .interpolation import LAM, Coordinate, FiniteCoordinate, interpolate
from .noise_rate import ODE, NoiseRate
from .schedule_parts import Finite
from .table import Combination, add_terms


def phi(k: int, z: float) -> float:
    """Returns phi_k(z) = (phi_{k-1}(z) - 1/(k-1)!) / z, phi_0 = exp; phi_k(0) = 1/k!, k >= 1.

    The recursion loses about k log10(1/|z|) digits, so near zero the series sum_j z^j/(j+k)! is
    used instead. z = -inf gives the limit 0.
    """
    if z == -math.inf:
        return 0.0
    if abs(z) < 1.0:
        return math.fsum(z**j / math.factorial(j + k) for j in range(20))
    value = math.expm1(z) / z
    for i in range(1, k):
        value = (value - 1.0 / math.factorial(i)) / z
    return value


def find_derivative_weights(offsets: Sequence[float], k: int) -> list[float]:
    """Returns a_j with sum_j a_j (m_j - m_0) = k-th derivative of m at 0, exact up to degree n.

    offsets: n >= k distinct non-zero places of the m_j relative to that of m_0.
    They solve sum_j a_j offsets_j^i / i! = 1 if i == k else 0, i = 1..n.
    """
    n = len(offsets)
    rows = [[d**i / math.factorial(i) for d in offsets] for i in range(1, n + 1)]
    target = [1.0 if i == k else 0.0 for i in range(1, n + 1)]
    weights: list[float] = np.linalg.solve(np.array(rows), np.array(target)).tolist()
    return weights


Relax = Literal["none", "bh1", "bh2", "linear"]


class Corrector(StrictModel):
    """The step is redone at one order more once its end is evaluated (no extra call).

    relax: relaxation of its first derivative; UniPC's order-1 corrector needs its own B(h) here.
    """

    on: bool = False
    relax: Literal["none", "bh1", "bh2"] = "none"


class StepSpec(StrictModel):
    """One step of an exponential multistep method.

    pred:  what is expanded in a Taylor series in lam: "data" (x0), "noise" (eps), or "mixed",
           f = (sigma eps - mix_l x) / alpha with noise at mix_l = 0 and data at mix_l = 1.
    order: number of terms, at most the number of evaluations made so far.
    est:   points used for the first, second, ... derivative; empty means order - 1 for each.
    relax: factor on the first derivative: "bh1", "bh2" are UniPC's B(h) (bh2 with data is
           DPM-Solver++ midpoint), "linear" is 1 + c h.
    kmul:  further factors on the derivatives; [1, 0.5] is the published DPM-Solver++(3M).
    corr:  the corrector that follows.
    dA:    added to the weight of the state.
    dB:    added to the weights of the x0 predictions, newest first.
    coordinate: "lam"; or "t" or "lam+K", in which the polynomial through the last `order`
           predictions takes the place of the Taylor series, with its exact weights
           (`interpolation`).
    """

    pred: Literal["data", "noise", "mixed"] = "data"
    mix_l: Annotated[float, Field(ge=0.0, le=1.0)] = 1.0
    order: Annotated[int, Field(ge=1, le=4)] = 1
    est: tuple[int, ...] = ()
    relax: Relax = "none"
    c: Annotated[float, Field(ge=-1.0, le=1.0)] = 0.0
    kmul: tuple[Finite, ...] | None = None
    corr: Corrector = Corrector()
    dA: Finite = 0.0
    dB: tuple[Finite, ...] | None = None
    coordinate: Coordinate = LAM

    @property
    def ell(self) -> float:
        """The l of the mixed prediction: 1 for data, 0 for noise."""
        return {"data": 1.0, "noise": 0.0, "mixed": self.mix_l}[self.pred]

    @property
    def points(self) -> tuple[int, ...]:
        """Points used for each derivative, 1 .. order - 1."""
        return self.est or (self.order - 1,) * (self.order - 1)

    @model_validator(mode="after")
    def _lists_fit_order(self) -> Self:
        needed = self.order - 1
        if self.est and len(self.est) != needed:
            raise ValueError(f"est needs {needed} numbers at order {self.order}")
        for k, n in enumerate(self.est, start=1):
            if not k <= n <= needed:
                raise ValueError(f"est[{k - 1}]={n} must lie between {k} and {needed}")
        if self.kmul is not None and len(self.kmul) != needed:
            raise ValueError(f"kmul needs {needed} numbers at order {self.order}")
        return self

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> Self:
        if self.mix_l != 1.0 and self.pred != "mixed":
            raise ValueError("mix_l has an effect with pred mixed only")
        if self.c != 0.0 and self.relax != "linear":
            raise ValueError("c has an effect with relax linear only")
        if self.relax != "none" and self.order == 1:
            raise ValueError("relax has an effect from order 2 only")
        if self.corr.relax != "none" and not (self.corr.on and self.order == 1):
            raise ValueError("corr.relax has an effect on the corrector of an order 1 step only")
        if self.coordinate != LAM and self != self.place(self.coordinate):
            raise ValueError("est, relax, kmul and pred mixed have an effect in lam only")
        return self

    def place(self, coordinate: str) -> "StepSpec":
        """Returns the step in a coordinate; in another than lam every weight is exact."""
        if coordinate == LAM:
            return self
        return StepSpec.model_construct(
            pred="noise" if self.ell < 0.5 else "data",
            order=self.order,
            corr=Corrector(on=self.corr.on),
            dA=self.dA,
            dB=self.dB,
            coordinate=coordinate,
        )


def combine_step(
    nodes: Sequence[Node], n: int, end: int, spec: StepSpec, history: Iterable[int]
) -> Combination:
    """Returns the update of the module's docstring from node n to node `end`.

    history: nodes whose predictions the derivatives at n are estimated from, nearest first.
    """
    s, t = nodes[n], nodes[end]
    finite = (j for j in history if math.isfinite(nodes[j].lam))
    near = list(islice(finite, spec.order - 1)) if s.alpha > 0.0 else []  # none at lam = -inf
    order = len(near) + 1
    if order == 1 and (s.alpha == 0.0 or t.sigma == 0.0):  # h is infinite: the limit of data form
        return {("x", n): t.sigma / s.sigma, ("x0", n): t.alpha - s.alpha * t.sigma / s.sigma}
    ell, h = spec.ell, t.lam - s.lam
    z = (2.0 * ell - 1.0) * h
    combo: Combination = {("x", n): t.alpha / s.alpha * math.exp(-ell * h)}
    outer = -t.alpha * math.exp((ell - 1.0) * h) * h
    for k, weights in zip(count(), _estimate_derivatives(nodes, n, spec, near, h)):
        factor = outer * phi(k + 1, -z) * _scale_derivative(spec, k, h, z)
        for j, weight in weights.items():
            combo = add_terms(combo, _scale_prediction(nodes, n, j, ell), factor * weight)
    return combo


def _estimate_derivatives(
    nodes: Sequence[Node], n: int, spec: StepSpec, history: Sequence[int], h: float
) -> list[dict[int, float]]:
    """Returns h^k g^{(k)} at node n, k = 0 .. order - 1, as weights of the g_j of nodes j."""
    start, reach = nodes[n].lam, len(history)
    points = spec.points if spec.order - 1 == reach else (reach,) * reach
    out = [{n: 1.0}]
    for k, used in enumerate(points, start=1):
        near = history[:used]
        weights = find_derivative_weights([(nodes[j].lam - start) / h for j in near], k)
        out.append({n: -math.fsum(weights), **dict(zip(near, weights, strict=True))})
    return out


def _scale_derivative(spec: StepSpec, k: int, h: float, z: float) -> float:
    """Returns what multiplies the k-th derivative: the relaxation of the first one, and kmul."""
    relaxed = compute_relaxation(spec.relax, h, -z, spec.c) if k == 1 else 1.0
    return relaxed if spec.kmul is None or k == 0 else relaxed * spec.kmul[k - 1]


def compute_relaxation(kind: Relax, h: float, signed_h: float, c: float = 0.0) -> float:
    """Returns R(h) -> 1 as h -> 0: UniPC's choice of B(h) as a factor on the first derivative.

    With h' = h for noise and -h for data prediction, bh1 is (h'^2 / 2) / (e^{h'} - 1 - h') and bh2
    is (h' / 2)(e^{h'} - 1) / (e^{h'} - 1 - h') (arXiv:2302.04867, B_1 and B_2); linear is 1 + c h.
    """
    match kind:
        case "bh1":
            return 0.5 / phi(2, signed_h)
        case "bh2":
            return 0.5 * phi(1, signed_h) / phi(2, signed_h)
        case "linear":
            return 1.0 + c * h
        case _:
            return 1.0


def _scale_prediction(nodes: Sequence[Node], n: int, j: int, ell: float) -> Combination:
    """Returns g_j = e^{(1-l) (lam_j - lam_n)} ((1 - l) kappa_j eps_j - l x0_j)."""
    node, s = nodes[j], nodes[n]
    scale = math.exp((1.0 - ell) * (node.lam - s.lam))
    combo: Combination = {}
    if ell > 0.0:
        combo[("x0", j)] = -ell * scale
    if ell < 1.0:
        combo[("eps", j)] = (1.0 - ell) * node.kappa * scale
    return combo


@dataclass(frozen=True)
class MultistepPath:
    """A grid, and the noise that its steps make room for.

    nodes: those of the grid with lam + H for lam (`noise_rate`); over them an ODE step is the SDE
           step less its noise. sigma becomes sigma e^{-H}, which may be infinite at alpha = 0.
    """

    grid: TimeGrid
    rate: NoiseRate = ODE

    @cached_property
    def nodes(self) -> Sequence[Node]:
        if self.rate == ODE:
            return self.grid.nodes
        return [_stretch(node, self.rate.grow(node)) for node in self.grid.nodes]

    def step(self, n: int, spec: StepSpec, corrected: bool = False) -> Combination:
        """Returns the step from node n to the next in the coordinate of its specification.

        corrected: the prediction at its end is the first that it uses beside that of n.
        """
        history = chain([n + 1] * corrected, range(n - 1, -1, -1))
        used = list(islice(history, spec.order - 1))
        noise = spec.pred == "noise"
        blind = noise and self.grid.nodes[n].alpha == 0.0  # eps has no finite weight there
        if spec.coordinate == LAM or not used or blind:
            return combine_step(self.nodes, n, n + 1, spec, used)
        place = FiniteCoordinate.of(spec.coordinate)
        return interpolate(self.grid, n, used, place, self.rate, noise)


def _stretch(node: Node, growth: float) -> Node:
    """Returns the node with lam + H for lam, as `MultistepPath` has it."""
    sigma = node.sigma * math.exp(-min(growth, 600.0)) if node.sigma else 0.0  # not 0 above it
    return replace(node, sigma=sigma, lam=node.lam + growth)


def combine_steps(specs: Sequence[StepSpec], grid: TimeGrid) -> list[Combination]:
    """Returns x_{n+1} for every step n, in terms of x_n, x0_n and earlier predictions."""
    combos: list[Combination] = []
    path = MultistepPath(grid)
    shift: Combination = {}  # corrected minus uncorrected state at node n
    for n, spec in enumerate(specs):
        predicted = path.step(n, spec)
        weight = predicted.pop(("x", n)) + spec.dA
        combo = add_terms(predicted, add_terms({("x", n): 1.0}, shift), weight)
        combos.append(add_terms(combo, _list_free(spec, n)))
        shift = correct_step(path, n, _raise_order(spec), predicted) if spec.corr.on else {}
    return combos


def correct_step(
    path: MultistepPath, n: int, spec: StepSpec, predicted: Combination
) -> Combination:
    """Returns step n by the spec with the prediction at its end, minus step n as predicted."""
    corrected = path.step(n, spec, corrected=True)
    corrected.pop(("x", n))
    return add_terms(corrected, predicted, -1.0)


def _raise_order(spec: StepSpec) -> StepSpec:
    """Returns the corrector of a step: the step at one order more."""
    relax = spec.corr.relax if spec.order == 1 else "none"
    changes = {"order": spec.order + 1, "est": (), "kmul": None, "relax": relax}
    return spec.model_copy(update=changes)


def _list_free(spec: StepSpec, n: int) -> Combination:
    """Returns the additive coefficients of the predictions, newest first."""
    return {("x0", n - back): weight for back, weight in enumerate(spec.dB or ())}
