"""The training target of a network at random times, and its loss.

The library says how an answer is read: x0 = a x_t + b out (`models.prediction.x0_from`). Solved for
the answer at x_t = alpha x0 + sigma eps,

    out = p x0 + q eps,  p = (1 - a alpha) / b,  q = -a sigma / b,

which is the noise for eps, eps - x0 for flow, and for edm (x0 - c_skip x_t) / c_out, whose plain
squared error is the EDM loss with its weight 1 / c_out^2 (arXiv:2206.00364, eq. 8). So one squared
error trains every kind of network, and it trains exactly what the samplers will read.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor

from fewstep.models.errors import SettingError
from fewstep.models.prediction import x0_from
from fewstep.models.schedule import Node, NoiseSchedule

from .recipe import Recipe, Times

NODES = 1 << 18  # of all laws together: a normal one reaches 4.6 standard deviations


@dataclass(frozen=True)
class Asked:
    """One column per field, (K,) in a table of nodes, (B, 1, 1, 1) in a batch.

    alpha, sigma: x_t = alpha x0 + sigma eps.
    scale:        what the network reads is scale x_t.
    label:        what it is told as its time.
    p, q:         the right answer is p x0 + q eps.
    """

    alpha: Tensor
    sigma: Tensor
    scale: Tensor
    label: Tensor
    p: Tensor
    q: Tensor

    def draw(self, n: int) -> "Asked":
        """Returns n of a table's nodes at random."""
        rows = torch.randint(len(self.alpha), (n,), device=self.alpha.device)
        return Asked(*(column[rows].view(-1, 1, 1, 1) for column in vars(self).values()))

    def to(self, device: torch.device) -> "Asked":
        return Asked(*(column.to(device) for column in vars(self).values()))


def make_nodes(recipe: Recipe) -> Asked:
    """Returns the laws of times as a table of equally likely nodes: quantiles in even parts.

    Every number is computed by the library in float64 and then stored in float32.

    Raises:
        SettingError: if a law does not fit the schedule.
    """
    schedule, kind = recipe.process, recipe.predicts
    sigma_data = getattr(schedule, "sigma_data", 0.5)

    def row(t: float) -> tuple[float, ...]:
        node = schedule.at(t)
        p, q = _answer(node, x0_from(kind, node, sigma_data))
        scale = kind.input_scale(node, sigma_data)
        return node.alpha, node.sigma, scale, schedule.label(node), p, q

    table = torch.tensor([row(t) for t in make_times(recipe.times, schedule)], dtype=torch.float64)
    return Asked(*table.float().unbind(1))


def _answer(node: Node, weights: tuple[float, float]) -> tuple[float, float]:
    a, b = weights
    return (1.0 - a * node.alpha) / b, -a * node.sigma / b


def make_times(laws: Iterable[Times], schedule: NoiseSchedule) -> list[float]:
    """Returns equally likely times: of each law as many quantiles as its share says."""
    laws = list(laws)
    total = sum(law.share for law in laws)
    times = [t for law in laws for t in _quantiles(law, schedule, round(NODES * law.share / total))]
    return [min(max(t, schedule.t_min), schedule.t_max) for t in times]


def _quantiles(law: Times, schedule: NoiseSchedule, n: int) -> list[float]:
    """Returns the quantiles of a law at the middles of n even parts."""
    shares, (low, high) = [(i + 0.5) / n for i in range(n)], law.at
    match law.law:
        case "steps":
            steps = getattr(schedule, "num_train_timesteps", 0)
            _check(steps > 0, law, "a schedule of the family vp")
            return [math.ceil(share * steps) / steps for share in shares]
        case "uniform":
            _check(low < high, law, "rising ends")
            return [low + share * (high - low) for share in shares]
        case "log-uniform":
            _check(0.0 < low < high, law, "rising ends above 0")
            return [low * (high / low) ** share for share in shares]
    _check(high > 0.0, law, "a deviation above 0")
    normal = [NormalDist(low, high).inv_cdf(share) for share in shares]
    if law.law == "log-normal":
        _check(schedule.t_max > 1.0, law, "times above 1, as edm has them")
        return [math.exp(value) for value in normal]
    _check(schedule.t_max <= 1.0, law, "a schedule of times up to 1")
    return [1.0 / (1.0 + math.exp(-value)) for value in normal]


def _check(fits: bool, law: Times, needs: str) -> None:
    if not fits:
        raise SettingError(f"the law of times {law.law!r} at {law.at} needs {needs}")
