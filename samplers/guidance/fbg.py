"""Feedback guidance: a scale by how well the condition explains the steps (arXiv:2506.06085)."""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from ...models.errors import SettingError
from ...models.node import check_normal
from ...models.schedule import Node, TimeGrid
from .base import Guide, Moment, Setup, register
from .settings import Both, Scaled
from .space import shape_per_row, widen_rows

Fraction = Annotated[float, Field(gt=0, lt=1)]
MOST = 3.0  # that ln p is let grow to, as published
USUAL = 3.0  # the scale that the offset alone leads to at t0, as published
BALANCE = 10.0  # the difference of the distances that makes up for the offset at t1, as published


@register
@dataclass(frozen=True)
class FeedbackGuidance(Scaled):
    """CFG of the scale w = p / (p - 1 + prior), per image; p follows the run, from 1 on.

    A step from t to s adds offset - temperature (|y_s - m_c|^2 - |y_s - m_u|^2) / (2 v) to ln p,
    with y = x / alpha, r = (kappa_s / kappa_t)^2, m = r y_t + (1 - r) x0 of each branch and
    v = kappa_s^2 (1 - r); it is what an ancestral step says of the condition, and with other
    solvers a heuristic. ln p lies between ln((1 - prior) scale / (scale - 1)), where w is the
    scale, and 3. With offset and temperature of 0 it is CFG of scale 1 / prior.

    scale:  the most that w can be, above 1; 1 is off. Published are 10 and, with prior 0.5, 2.
    prior:  pi of the paper, in (0, 1): the share of the condition in what the network was fitted
            to.
    t0, t1: in (0, 1), shares of the steps that are left: where the offset alone leads to w = 3, and
            where a difference of the distances of -10 makes up for it.
    offset, temperature: None takes them from t0 and t1 for the number of steps and the grid.

    w changes from step to step, which a multistep solver takes for a change of the prediction.
    """

    name: ClassVar[str] = "fbg"
    source: ClassVar[str] = "arXiv:2506.06085"

    prior: Fraction = 0.95
    t0: Fraction = 0.5
    t1: Fraction = 0.4
    offset: Annotated[float | None, Field(allow_inf_nan=False)] = None
    temperature: Annotated[float | None, Field(ge=0, allow_inf_nan=False)] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scale < 1.0:
            raise SettingError(
                f"fbg: its scale is the most that guidance may be, at least 1, not {self.scale:g};"
                " 10 is usual, and 1 is off"
            )

    def check(self, setup: Setup) -> None:
        check_normal(setup.network.schedule, "fbg takes the noise for normal", "take cfg")
        if setup.adaptive and not self.off:
            raise SettingError(
                "fbg judges each step by where the run goes, and an adaptive solver also tries"
                " steps that it does not take; take a solver with fixed steps"
            )

    def guide(self, setup: Setup) -> Guide:
        return FeedbackGuide(self, setup.grid)

    def choose_offset(self, steps: int) -> float:
        """Returns what every step adds to ln p, of a run of so many."""
        if self.offset is not None:
            return self.offset
        return math.log((1.0 - self.prior) * USUAL / (USUAL - 1.0)) / ((1.0 - self.t0) * steps)

    def choose_temperature(self, grid: TimeGrid) -> float:
        """Returns the weight of the distances on a grid."""
        if self.temperature is not None:
            return self.temperature
        variances = [compute_variance(t, s) for t, s in pairwise(grid.nodes)]
        left, place = variances[::-1], self.t1 * grid.steps
        n = int(place)
        after = left[min(n + 1, grid.steps - 1)]
        variance = left[n] + (place - n) * (after - left[n])
        return abs(2.0 * variance / BALANCE * self.choose_offset(grid.steps))


class FeedbackGuide(Both):
    """Remembers ln p, and the state and the answers at the start of the last step."""

    def __init__(self, policy: FeedbackGuidance, grid: TimeGrid) -> None:
        self.prior = policy.prior
        self.low = math.log((1.0 - policy.prior) * policy.scale / (policy.scale - 1.0))
        self.offset = policy.choose_offset(grid.steps)
        self.temperature = policy.choose_temperature(grid)
        self.log_p: Tensor | None = None
        self.last: tuple[Node, Tensor, Tensor, Tensor] | None = None

    def blend(self, uncond: Tensor, cond: Tensor, x: Tensor, moment: Moment) -> Tensor:
        if moment.stage == 0:  # further evaluations of a step take the scale of its first
            self._update(x, moment.node)
            self.last = (moment.node, x, uncond, cond)
        assert self.log_p is not None
        p = self.log_p.exp()
        return torch.lerp(uncond, cond, shape_per_row(p / (p - (1.0 - self.prior)), cond))

    def _update(self, x: Tensor, node: Node) -> None:
        """Moves ln p by the step that led to the state x (B, *) at a node."""
        if self.log_p is None or self.last is None:
            log_p = widen_rows(x).new_zeros(len(x))
        else:
            started, *before = self.last
            distance = compare_distances(started, node, (*before, x))
            weight = self.temperature / (2.0 * compute_variance(started, node))
            log_p = self.log_p + self.offset - weight * distance
        self.log_p = log_p.clamp(self.low, max(self.low, MOST))


def compute_variance(t: Node, s: Node) -> float:
    """Returns the variance of y_s of an ancestral step from t to s; 0 at sigma_s = 0."""
    return s.kappa**2 * (1.0 - (s.kappa / t.kappa) ** 2)


def compare_distances(t: Node, s: Node, tensors: tuple[Tensor, ...]) -> Tensor:
    """Returns |y_s - m_c|^2 - |y_s - m_u|^2 (B,) of tensors x_t, u, c, x_s (B, *).

    It is written as a product of the difference and the sum, which does not cancel.
    """
    x_t, u, c, x_s = map(widen_rows, tensors)
    rest = 1.0 - (s.kappa / t.kappa) ** 2
    held = s.kappa**2 * t.alpha / t.sigma**2  # r / alpha_t, without a division by 0
    y = x_s / s.alpha - held * x_t
    return rest * ((u - c) * (2.0 * y - rest * (c + u))).sum(1)
