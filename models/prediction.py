"""Prediction types of networks, and the only code that converts between them.

Every prediction determines x0 and eps linearly: x0 = a x_t + b out, eps = c x_t + d out. The four
coefficients are closed forms of alpha and sigma, so a conversion never goes through a quantity that
has to be divided by something that vanishes at an end (x0 from eps needs alpha > 0, eps from x0
needs sigma > 0, all others hold at both ends). No alpha^2 + sigma^2 = 1 is assumed.
"""

import math
from enum import StrEnum

from torch import Tensor

from .errors import ModelError, UnknownNameError
from .schedule import Node, NoiseSchedule

Linear = tuple[float, float]  # (weight of x_t, weight of the network's output)

EDM_SIGMA_DATA = 0.5
BOUNDARY = 0.002  # kappa at which a consistency model answers its input


class Prediction(StrEnum):
    """The quantity a network returns at x_t = alpha x0 + sigma eps.

    eps:  the noise.
    x0:   the clean sample.
    v:    alpha eps - sigma x0 (arXiv:2202.00512, app. D).
    flow: eps - x0, the velocity of the straight path (arXiv:2209.03003).
    flow-to-data: x0 - eps, the same velocity for a time that runs from noise at 0 to data at 1
          (arXiv:2210.02747); the schedule's `noise_at` says which time the network gets.
    edm:  the raw output F of an EDM-preconditioned network (arXiv:2206.00364, eq. 7): with
          y = x_t / alpha and kappa = sigma / alpha, the network reads c_in y and
          x0 = c_skip y + c_out F.
    consistency: the same of a consistency model, with the scalings that make x0 = y at kappa = .002
          (arXiv:2303.01469, app. C).
    """

    EPS = "eps"
    X0 = "x0"
    V = "v"
    FLOW = "flow"
    FLOW_TO_DATA = "flow-to-data"
    EDM = "edm"
    CONSISTENCY = "consistency"

    @classmethod
    def named(cls, name: str) -> "Prediction":
        """Returns the prediction by our name or by diffusers' `prediction_type`."""
        ours = DIFFUSERS_NAMES.get(str(name), name)  # whatever else is given is none of them
        if ours not in list(cls):
            raise UnknownNameError("prediction", name, [*cls, *DIFFUSERS_NAMES])
        return cls(ours)

    @property
    def preconditioned(self) -> bool:
        """True if the network reads a scaled state, and x0 is a mean of that and its output."""
        return self in (Prediction.EDM, Prediction.CONSISTENCY)

    def input_scale(self, node: Node, sigma_data: float = EDM_SIGMA_DATA) -> float:
        """Returns the factor of x_t before the network reads it; 1 if not preconditioned (c_in)."""
        if not self.preconditioned:
            return 1.0
        return 1.0 / math.hypot(node.sigma, node.alpha * sigma_data)


DIFFUSERS_NAMES = {
    "epsilon": "eps",
    "sample": "x0",
    "v_prediction": "v",
    "flow_prediction": "flow",
}


def x0_from(kind: Prediction, node: Node, sigma_data: float = EDM_SIGMA_DATA) -> Linear:
    """Returns (a, b) with x0 = a x_t + b out; raises ModelError for eps at alpha = 0."""
    a, s = node.alpha, node.sigma
    if kind.preconditioned:
        above = s if kind is Prediction.EDM else max(0.0, s - a * BOUNDARY)
        root = math.hypot(s, a * sigma_data)
        return a * sigma_data**2 / (above**2 + (a * sigma_data) ** 2), above * sigma_data / root
    if kind is Prediction.EPS and a == 0.0:
        raise ModelError(
            f"eps at t={node.t:g} does not determine x0, because alpha is 0 there;"
            " start the grid at an earlier time or use a v or flow network"
        )
    p, q = _define(kind, node, sigma_data)
    det = a * q - s * p
    return (0.0, 1.0) if kind is Prediction.X0 else (q / det, -s / det)


def eps_from(kind: Prediction, node: Node, sigma_data: float = EDM_SIGMA_DATA) -> Linear:
    """Returns (c, d) with eps = c x_t + d out; raises ModelError for x0 at sigma = 0."""
    a, s = node.alpha, node.sigma
    if kind is Prediction.EDM:
        total = s * s + a * a * sigma_data**2
        return s / total, -a * sigma_data / math.sqrt(total)
    if kind is Prediction.CONSISTENCY and s > 0.0:
        skip, out = x0_from(kind, node, sigma_data)
        return (1.0 - a * skip) / s, -a * out / s
    if kind in (Prediction.X0, Prediction.CONSISTENCY) and s == 0.0:
        raise ModelError(
            f"{kind} at t={node.t:g} does not determine eps, because sigma is 0 there;"
            " ask at a time with sigma > 0"
        )
    p, q = _define(kind, node, sigma_data)
    det = a * q - s * p
    return (0.0, 1.0) if kind is Prediction.EPS else (-p / det, a / det)


def _define(kind: Prediction, node: Node, sigma_data: float) -> Linear:
    """Returns (p, q) with out = p x0 + q eps."""
    match kind:
        case Prediction.X0:
            return 1.0, 0.0
        case Prediction.EPS:
            return 0.0, 1.0
        case Prediction.V:
            return -node.sigma, node.alpha
        case Prediction.FLOW:
            return -1.0, 1.0
        case Prediction.FLOW_TO_DATA:
            return 1.0, -1.0
        case Prediction.EDM:
            root = sigma_data * math.hypot(node.sigma, node.alpha * sigma_data)
            return node.sigma / root, -node.alpha * sigma_data**2 / root
    raise ModelError(f"a prediction cannot be converted to the output of a {kind} model")


def check_terminal(kind: Prediction, schedule: NoiseSchedule) -> None:
    """Raises ModelError if outputs say nothing of x0 at the first timestep of a zero-SNR schedule.

    There eps is the state itself up to rounding, which x0 = (x_t - sigma eps) / alpha enlarges by
    1 / alpha = 4096 or more; networks of such schedules predict v or x0 (arXiv:2305.08891, sec. 3).
    """
    if kind is Prediction.EPS and getattr(schedule, "zero_snr", False):
        raise ModelError(
            "a zero-terminal-SNR schedule (rescale_betas_zero_snr) cannot be sampled with a network"
            " that predicts eps, which says nothing of x0 at its first timestep: set"
            " prediction_type='v_prediction' if the network was trained so, else"
            " rescale_betas_zero_snr=False"
        )


def usual_size(kind: Prediction, node: Node, data: float = 1.0) -> float:
    """Returns the root mean square of a network's outputs where x0 has that of `data`."""
    if kind.preconditioned:
        return 1.0
    p, q = _define(kind, node, data)
    return math.hypot(p * data, q)


def velocity_from(
    kind: Prediction, node: Node, slope: tuple[float, float], sigma_data: float = EDM_SIGMA_DATA
) -> Linear:
    """Returns the weights of dx/dt = alpha' x0 + sigma' eps, with slope = (alpha', sigma')."""
    signs = {Prediction.FLOW: 1.0, Prediction.FLOW_TO_DATA: -1.0}
    if kind in signs and slope[0] == -slope[1]:  # d sigma (eps - x0): holds at both ends
        return 0.0, signs[kind] * slope[1]
    (a, b), (c, d) = x0_from(kind, node, sigma_data), eps_from(kind, node, sigma_data)
    return slope[0] * a + slope[1] * c, slope[0] * b + slope[1] * d


def combine(weights: Linear, x_t: Tensor, out: Tensor) -> Tensor:
    """Returns a x_t + b out for (a, b) = weights; a term of weight 0 is not touched."""
    a, b = weights
    if a == 0.0:
        return out if b == 1.0 else out * b
    if b == 0.0:
        return x_t if a == 1.0 else x_t * a
    return (x_t * a).add_(out, alpha=b)


def convert(
    out: Tensor,
    x_t: Tensor,
    node: Node,
    source: Prediction,
    target: Prediction,
    sigma_data: float = EDM_SIGMA_DATA,
) -> Tensor:
    """Converts a network output to another prediction; shapes (B, *) in and out.

    v = alpha eps - sigma x0, flow = eps - x0 = -(flow-to-data), and for edm
    F = (sigma x0 - alpha sigma_data^2 eps) / (sigma_data sqrt(sigma^2 + alpha^2 sigma_data^2)).
    """
    if source is target:
        return out
    if target is Prediction.X0:
        weights = x0_from(source, node, sigma_data)
    elif target is Prediction.EPS:
        weights = eps_from(source, node, sigma_data)
    else:
        (a, b), (c, d) = x0_from(source, node, sigma_data), eps_from(source, node, sigma_data)
        p, q = _define(target, node, sigma_data)
        weights = p * a + q * c, p * b + q * d
    return combine(weights, x_t, out)
