"""What a network is asked at random times, and what it should answer.

The library says how an answer is read: x0 = a x_t + b out (`models.prediction.x0_from`). Solved for
the answer at x_t = alpha x0 + sigma eps,

    out = p x0 + q eps,  p = (1 - a alpha) / b,  q = -a sigma / b,

which is the noise for eps, eps - x0 for flow, and for edm (x0 - c_skip x_t) / c_out, whose plain
squared error is the EDM loss with its weight 1 / c_out^2 (arXiv:2206.00364, eq. 8). So one squared
error trains every kind of network, and it trains exactly what the samplers will read.
"""

import math
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor

from fewstep.models.errors import SettingError
from fewstep.models.prediction import x0_from
from fewstep.models.schedule import Node, NoiseSchedule

from .recipe import Recipe, Times

NODES = 1 << 18  # of a continuous law: to 4.6 standard deviations, where EDM's sigma is 77


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

    def drawn(self, n: int) -> "Asked":
        """n of a table's nodes at random."""
        rows = torch.randint(len(self.alpha), (n,), device=self.alpha.device)
        return Asked(*(column[rows].view(-1, 1, 1, 1) for column in vars(self).values()))

    def to(self, device: torch.device) -> "Asked":
        return Asked(*(column.to(device) for column in vars(self).values()))


def nodes(recipe: Recipe) -> Asked:
    """The law of times as a table of equally likely nodes: its quantiles at the middles of K parts.

    Every number is computed by the library in float64 and then stored in float32.

    Raises:
        SettingError: if the law does not fit the schedule.
    """
    schedule, kind = recipe.process, recipe.predicts
    sigma_data = getattr(schedule, "sigma_data", 0.5)

    def row(t: float) -> tuple[float, ...]:
        node = schedule.at(t)
        p, q = _answer(node, x0_from(kind, node, sigma_data))
        scale = kind.input_scale(node, sigma_data)
        return node.alpha, node.sigma, scale, schedule.label(node), p, q

    table = torch.tensor([row(t) for t in times(recipe.times, schedule)], dtype=torch.float64)
    return Asked(*table.float().unbind(1))


def _answer(node: Node, weights: tuple[float, float]) -> tuple[float, float]:
    a, b = weights
    return (1.0 - a * node.alpha) / b, -a * node.sigma / b


def times(law: Times, schedule: NoiseSchedule) -> list[float]:
    """Equally likely times of a law on a schedule."""
    if law.law == "steps":
        n = getattr(schedule, "num_train_timesteps", 0)
        if not n:
            raise SettingError(
                f"the law of times 'steps' is for the family vp, not {schedule.family};"
                " write uniform, logit-normal or log-normal"
            )
        return [(i + 1) / n for i in range(n)]
    shares = [(i + 0.5) / NODES for i in range(NODES)]
    if law.law == "uniform":
        return [schedule.t_min + share * (schedule.t_max - schedule.t_min) for share in shares]
    normal = NormalDist(law.mean, law.std)
    if law.law == "log-normal":
        _check(schedule.t_max > 1.0, law, schedule)
        return [math.exp(normal.inv_cdf(share)) for share in shares]
    _check(schedule.t_max <= 1.0, law, schedule)
    return [1.0 / (1.0 + math.exp(-normal.inv_cdf(share))) for share in shares]


def _check(fits: bool, law: Times, schedule: NoiseSchedule) -> None:
    if not fits:
        raise SettingError(
            f"the law of times {law.law!r} does not fit the family {schedule.family}, whose times"
            f" go up to {schedule.t_max:g}: logit-normal is for times up to 1, log-normal for edm"
        )
