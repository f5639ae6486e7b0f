"""One step of an exponential integrator as a combination of states and predictions.

The step (arXiv:2312.07243; the exponential integrator of arXiv:2310.13268 with constant l, s = l-1,
b = 0) from node s to t with h = lam_t - lam_s, f = (sigma eps - l x) / alpha and z = (2 l - 1) h is

    x_t = (alpha_t / alpha_s) e^{-l h} x_s
          - alpha_t e^{(l-1) h} sum_{k < order} h^{k+1} phi_{k+1}(-z) R_k g^{(k)},
    g_j = e^{(1-l) (lam_j - lam_s)} f_j,

whose derivatives g^{(k)} in lam are estimated from the predictions of other nodes. l = 1 is data
prediction, l = 0 noise prediction.
"""

import math
from collections.abc import Iterable, Sequence
from itertools import count, islice

from ..models.schedule import Node
from .phi import derivative_weights, phi
from .step_schedule import Relax, StepSpec
from .table import Combination, plus


def taylor(
    nodes: Sequence[Node], n: int, end: int, spec: StepSpec, history: Iterable[int]
) -> Combination:
    """The update of the module's docstring from node n to node `end`.

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
    for k, weights in zip(count(), _derivatives(nodes, n, spec, near, h)):
        factor = outer * phi(k + 1, -z) * _factor(spec, k, h, z)
        for j, weight in weights.items():
            combo = plus(combo, _scaled_prediction(nodes, n, j, ell), factor * weight)
    return combo


def _derivatives(
    nodes: Sequence[Node], n: int, spec: StepSpec, history: Sequence[int], h: float
) -> list[dict[int, float]]:
    """h^k g^{(k)} at node n, k = 0 .. order - 1, as weights of the values g_j of the nodes j."""
    start, reach = nodes[n].lam, len(history)
    points = spec.points if spec.order - 1 == reach else (reach,) * reach
    out = [{n: 1.0}]
    for k, used in enumerate(points, start=1):
        near = history[:used]
        weights = derivative_weights([(nodes[j].lam - start) / h for j in near], k)
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


def _scaled_prediction(nodes: Sequence[Node], n: int, j: int, ell: float) -> Combination:
    """g_j = e^{(1-l) (lam_j - lam_n)} ((1 - l) kappa_j eps_j - l x0_j)."""
    node, s = nodes[j], nodes[n]
    scale = math.exp((1.0 - ell) * (node.lam - s.lam))
    combo: Combination = {}
    if ell > 0.0:
        combo[("x0", j)] = -ell * scale
    if ell < 1.0:
        combo[("eps", j)] = (1.0 - ell) * node.kappa * scale
    return combo
