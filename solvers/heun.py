"""Heun's method in the straight coordinate, Euler on the step to sigma = 0; EDM's churn.

    d  = (y_t - x0(y_t, t)) / tau_t,   y' = y_t + (tau_s - tau_t) d
    d' = (y' - x0(y', s)) / tau_s,     y_s = y_t + (tau_s - tau_t) (d + d') / 2

With churn, noise is first added at t (arXiv:2206.00364, alg. 2): with kappa = sigma / alpha,
gamma = min(s_churn / N, sqrt 2 - 1) where s_min <= kappa_t <= s_max and 0 elsewhere, the step
starts from the node t^ with kappa^ = (1 + gamma) kappa_t and

    x^ = (alpha^ / alpha_t) x_t + alpha^ sqrt(kappa^^2 - kappa_t^2) s_noise z.
"""

import math
from collections.abc import Generator
from dataclasses import dataclass as plain
from typing import Annotated, ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from ..models.schedule import Node, TimeGrid
from .base import Query, SolverInfo, Step, register
from .coordinates import Straight, check_noisy
from .runge_kutta import HEUN, RungeKuttaSteps

Level = Annotated[float, Field(ge=0.0)]


@register
@dataclass(frozen=True)
class Heun:
    """A run of N steps to sigma = 0 costs 2 N - 1 calls, with churn or without.

    s_churn: how much noise is added in all; 0 is Heun's method, which adds none.
    s_min, s_max: range of sigma / alpha in which it is added.
    s_noise: its standard deviation; a little over 1 makes up for detail lost.

    Churn never goes above the noise that the schedule starts from, and leaves out the evaluation
    that ends a run with "denoise".
    """

    info: ClassVar[SolverInfo] = SolverInfo(
        name="heun", order=2, calls_per_step=2, source="arXiv:2206.00364 alg. 1, 2"
    )
    s_churn: Level = 0.0
    s_min: Level = 0.0
    s_max: Level = math.inf
    s_noise: Level = 1.0

    def on(self, grid: TimeGrid) -> "HeunSteps":
        gamma = min(self.s_churn / (grid.steps - grid.denoise), math.sqrt(2.0) - 1.0)
        return HeunSteps(Straight.of(grid), HEUN, self, gamma)


@plain(frozen=True, slots=True)
class HeunSteps(RungeKuttaSteps):
    """Heun's steps; gamma: by how much the noise is raised where churn applies."""

    churn: Heun
    gamma: float

    def step(self, x: Tensor, state: None, t: Node, s: Node) -> Step[None]:
        """The tableau's step, from the raised noise where there is churn."""
        if self.gamma and not self.line.denoises(s):
            x, t = yield from self._churned(x, t)
        return (yield from self.run_stages(x, t, s)), None

    def _churned(self, x: Tensor, t: Node) -> Generator[Query, Tensor, tuple[Tensor, Node]]:
        """x and t with the noise raised by 1 + gamma, or as they are."""
        check_noisy(t)
        schedule = self.line.schedule
        lam = max(t.lam - math.log1p(self.gamma), schedule.at(schedule.t_max).lam)
        if lam >= t.lam or not self.churn.s_min <= t.sigma / t.alpha <= self.churn.s_max:
            return x, t
        hat = schedule.at_lam(lam)
        ratio = hat.alpha / t.alpha
        added = ratio * t.sigma * math.sqrt(math.expm1(2.0 * (t.lam - hat.lam)))
        return (x * ratio).add_((yield x, None), alpha=added * self.churn.s_noise), hat
