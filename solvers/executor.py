"""The one executor: any `Schedule` as a solver whose every step is one linear combination.

A schedule is linear in the states and the x0 predictions, so before a run each step is worked out,
in float64, as x_s = a x + b x0 + sum_j c_j kept_j, where kept_j are predictions of earlier nodes.
Correctors leave no trace in that form: a corrected state is the uncorrected one plus a combination
of predictions, and its weights are merged into the next step.

The step (arXiv:2312.07243; the exponential integrator of arXiv:2310.13268 with constant l, s = l-1,
b = 0) from node s to t with h = lam_t - lam_s, f = (sigma eps - l x) / alpha and z = (2 l - 1) h is

    x_t = (alpha_t / alpha_s) e^{-l h} x_s
          - alpha_t e^{(l-1) h} sum_{k < order} h^{k+1} phi_{k+1}(-z) R_k g^{(k)},
    g_j = e^{(1-l) (lam_j - lam_s)} f_j,

whose derivatives g^{(k)} in lam are estimated from the predictions of other nodes. l = 1 is data
prediction, l = 0 noise prediction.
"""

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import NamedTuple

from torch import Tensor

from ..models.schedule import Node, TimeGrid
from .base import Query
from .phi import derivative_weights, phi
from .schedule_data import Relax, Schedule, StepSpec, evaluation_time

# What a state is written in. ("x", n): the state at node n, at which x0 was predicted;
# ("x0", j), ("eps", j): the two predictions of node j.
Term = tuple[str, int]
Combination = dict[Term, float]


@dataclass(frozen=True, slots=True)
class Row:
    """One step, ready to run: x_s = a x + b x0 + sum_j c_j kept_j.

    query:  where x0 is asked for; None if it is taken to be zero.
    x, x0:  a and b.
    kept:   c_j for each kept prediction, in the order they are kept.
    keep:   which of them to keep on.
    push:   (weight of x, weight of x0) of each prediction of this node that later steps use.
    """

    query: Node | None
    x: float
    x0: float
    kept: tuple[float, ...]
    keep: tuple[int, ...]
    push: tuple[tuple[float, float], ...]


class Memory(NamedTuple):
    """The number of the next step and the predictions it needs, newest first."""

    n: int = 0
    kept: tuple[Tensor, ...] = ()


class Executor:
    """Runs a schedule. Holds one `Row` of numbers per step and nothing else."""

    def __init__(self, schedule: Schedule) -> None:
        self.rows = rows_of(schedule)

    def init(self) -> Memory:
        return Memory()

    def step(
        self, x: Tensor, state: Memory, t: Node, s: Node
    ) -> Generator[Query, Tensor, tuple[Tensor, Memory]]:
        """x_s = a x + b x0 + sum_j c_j kept_j with the numbers of row `state.n`."""
        row = self.rows[state.n]
        kept = state.kept
        x_s = x * row.x
        if row.query is None:
            x0 = x.new_zeros(()).expand_as(x)
        else:
            x0 = yield x, row.query
            x_s.add_(x0, alpha=row.x0)
        for weight, tensor in zip(row.kept, kept, strict=True):
            x_s.add_(tensor, alpha=weight)
        pushed = [x0 if a == 0.0 else (x * a).add_(x0, alpha=b) for a, b in row.push]
        return x_s, Memory(state.n + 1, (*pushed, *[kept[i] for i in row.keep]))


def rows_of(schedule: Schedule) -> tuple[Row, ...]:
    """The rows of a schedule: each step's combination, and what it leaves for later ones."""
    grid = schedule.grid()
    combos = _combinations(schedule, grid)
    layouts = [_layout(combos, n) for n in range(len(combos) + 1)]
    return tuple(_row(schedule, grid, combos[n], layouts, n) for n in range(len(combos)))


def _layout(combos: Sequence[Combination], n: int) -> list[Term]:
    """Predictions made before step n that it or a later step uses, newest first."""
    used = {term for combo in combos[n:] for term in combo if term[0] != "x" and term[1] < n}
    return sorted(used, key=lambda term: (-term[1], term[0]))


def _row(
    schedule: Schedule, grid: TimeGrid, combo: Combination, layouts: list[list[Term]], n: int
) -> Row:
    held, left = layouts[n], layouts[n + 1]
    asked = n > 0 or schedule.afs is None
    moved = [term for term in left if term[1] < n]
    return Row(
        query=grid.schedule.at(evaluation_time(schedule, n)) if asked else None,
        x=combo.get(("x", n), 0.0),
        x0=combo.get(("x0", n), 0.0),
        kept=tuple(combo.get(term, 0.0) for term in held),
        keep=tuple(held.index(term) for term in moved),
        push=tuple(_own(grid.nodes[n], kind) for kind, j in left if j == n),
    )


def _own(node: Node, kind: str) -> tuple[float, float]:
    """A node's own prediction as weights of its state and its x0: eps = (x - alpha x0) / sigma."""
    return (0.0, 1.0) if kind == "x0" else (1.0 / node.sigma, -node.alpha / node.sigma)


def _combinations(schedule: Schedule, grid: TimeGrid) -> list[Combination]:
    """x_{n+1} for every step n, in terms of x_n, x0_n and earlier predictions."""
    combos: list[Combination] = []
    shift: Combination = {}  # corrected minus uncorrected state at node n
    for n, spec in enumerate(schedule.steps):
        predicted = _taylor(grid, n, spec, history=range(n - 1, -1, -1))
        weight = predicted.pop(("x", n)) + spec.dA
        combo = _plus(predicted, _plus({("x", n): 1.0}, shift, 1.0), weight)
        combo = _plus(combo, _free(spec, n), 1.0)
        combos.append(_expanded(combo, grid.nodes[n], n))
        shift = _correction(grid, n, spec, predicted) if spec.corr.on else {}
    return combos


def _correction(grid: TimeGrid, n: int, spec: StepSpec, predicted: Combination) -> Combination:
    """Step n redone at one order more with the evaluation at its end, minus step n itself."""
    relax = spec.corr.relax if spec.order == 1 else "none"
    higher = spec.model_copy(
        update={"order": spec.order + 1, "est": (), "kmul": None, "relax": relax}
    )
    corrected = _taylor(grid, n, higher, history=(n + 1, *range(n - 1, -1, -1)))
    corrected.pop(("x", n))
    return _plus(corrected, predicted, -1.0)


def _free(spec: StepSpec, n: int) -> Combination:
    """The additive coefficients of the predictions, newest first."""
    return {("x0", n - back): weight for back, weight in enumerate(spec.dB or ())}


def _expanded(combo: Combination, node: Node, n: int) -> Combination:
    """Writes eps of node n in terms of x_n and x0_n, which are at hand in step n."""
    weight = combo.pop(("eps", n), 0.0)
    if weight:
        a, b = _own(node, "eps")
        combo = _plus(combo, {("x", n): a, ("x0", n): b}, weight)
    return {term: value for term, value in combo.items() if value != 0.0}


def _taylor(grid: TimeGrid, n: int, spec: StepSpec, history: Sequence[int]) -> Combination:
    """The update of the module's docstring from node n to n + 1; history: nearest node first."""
    s, t = grid.nodes[n], grid.nodes[n + 1]
    finite = [j for j in history if math.isfinite(grid.nodes[j].lam)]
    history = finite if s.alpha > 0.0 else []  # no derivative can be taken at lam = -inf
    order = min(spec.order, len(history) + 1)
    if order == 1 and (s.alpha == 0.0 or t.sigma == 0.0):  # h is infinite: the limit of data form
        return {("x", n): t.sigma / s.sigma, ("x0", n): t.alpha - s.alpha * t.sigma / s.sigma}
    ell, h = spec.ell, t.lam - s.lam
    z = (2.0 * ell - 1.0) * h
    combo: Combination = {("x", n): t.alpha / s.alpha * math.exp(-ell * h)}
    outer = -t.alpha * math.exp((ell - 1.0) * h) * h
    for k, weights in zip(count(), _derivatives(grid, n, spec, history[: order - 1], h)):
        factor = outer * phi(k + 1, -z) * _factor(spec, k, h, z)
        for j, weight in weights.items():
            combo = _plus(combo, _scaled_prediction(grid, n, j, ell), factor * weight)
    return combo


def _derivatives(
    grid: TimeGrid, n: int, spec: StepSpec, history: Sequence[int], h: float
) -> list[dict[int, float]]:
    """h^k g^{(k)} at node n, k = 0 .. order - 1, as weights of the values g_j of the nodes j."""
    start, reach = grid.nodes[n].lam, len(history)
    points = spec.points if spec.order - 1 == reach else (reach,) * reach
    out = [{n: 1.0}]
    for k, used in enumerate(points, start=1):
        near = history[:used]
        weights = derivative_weights([(grid.nodes[j].lam - start) / h for j in near], k)
        out.append({n: -math.fsum(weights), **dict(zip(near, weights, strict=True))})
    return out


def _factor(spec: StepSpec, k: int, h: float, z: float) -> float:
    """What multiplies the k-th derivative: the relaxation of the first one, and kmul."""
    relaxed = relaxation(spec.relax, h, -z, spec.c) if k == 1 else 1.0
    return relaxed if spec.kmul is None or k == 0 else relaxed * spec.kmul[k - 1]


def relaxation(kind: Relax, h: float, signed_h: float, c: float = 0.0) -> float:
    """R(h) -> 1 as h -> 0: UniPC's choice of B(h) seen as a factor on the first derivative.

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


def _scaled_prediction(grid: TimeGrid, n: int, j: int, ell: float) -> Combination:
    """g_j = e^{(1-l) (lam_j - lam_n)} ((1 - l) kappa_j eps_j - l x0_j)."""
    node, s = grid.nodes[j], grid.nodes[n]
    scale = math.exp((1.0 - ell) * (node.lam - s.lam))
    combo: Combination = {}
    if ell > 0.0:
        combo[("x0", j)] = -ell * scale
    if ell < 1.0:
        combo[("eps", j)] = (1.0 - ell) * node.kappa * scale
    return combo


def _plus(a: Combination, b: Combination, weight: float) -> Combination:
    """a + weight b."""
    out = dict(a)
    for term, value in b.items():
        out[term] = out.get(term, 0.0) + weight * value
    return out
