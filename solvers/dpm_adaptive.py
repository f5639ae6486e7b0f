"""DPM-Solver-12 and -23 with their own step sizes (arXiv:2206.00927, app. C.4), on x0.

A trial step of length h in lam, from node t to the node e at lam_e = lam_t + h, is made twice, at
two orders that share their evaluations (data prediction, arXiv:2211.01095). With r1, r2 in (0, 1),
nodes 1 and 2 at lam_t + r1 h and lam_t + r2 h, and b_v = alpha_v (1 - e^{-(lam_v - lam_t)}):

    order 1:  x_e = (sigma_e / sigma_t) x + b_e x0
    order 2:  x_e = order 1's + b_e / (2 r1) (x0_1 - x0),        with x_1 by order 1
    order 3:  x_e = order 1's + alpha_e p(h) / r2 (x0_2 - x0),   p(h) = 1 - (1 - e^{-h}) / h
         and  x_2 = order 1's + alpha_2 p(r2 h) (r2 / r1) (x0_1 - x0).

-12 takes r1 = 1/2, -23 takes r1 = 1/3, r2 = 2/3. The error of a trial is

    E = max over the images of rms((z_high - z_low) / max(atol, rtol max(|z_low|, |z_low'|))),

where z = x / sqrt(alpha^2 + sigma^2) and z_low' is of the step before. On variance-preserving
processes, for which the rule was made, z is x. Elsewhere x itself would not do: from sigma = 80 the
tolerance of x' would be 4, and the run over after one step. A trial with E <= 1 is accepted with
x_high, and the next is of length min(theta h E^{-1/order}, what is left). A rejected trial keeps
its x0, so trying again costs one evaluation less than in the authors' code, which asks once more.
"""

import math
from collections.abc import Generator
from dataclasses import dataclass as plain
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from ..models.schedule import Node, NoiseSchedule, TimeGrid
from .adaptive import MaxCalls, Positive, check_calls, measure_error
from .base import Query, SolverInfo, register
from .exponential import phi

Trial = tuple[Tensor, Tensor]  # x_e at the lower and at the higher order
PURE_NOISE = math.log(1e-3 / 0.999)  # from alpha = 0 one step of order 1 goes to this lam


@register
@dataclass(frozen=True)
class DPMAdaptive12:
    """Order 1 inside order 2: two evaluations a trial.

    The error is the largest of the batch, as published, so the steps, and with them the images,
    depend on which images are sampled together.

    atol:      absolute tolerance of z; 0.0078 is 2 / 256, one grey level.
    rtol:      relative tolerance of z.
    h_init:    length of the first trial in lam.
    theta:     safety factor of the next length, below 1.
    max_calls: of one run; more raise SettingError.
    """

    info: ClassVar[SolverInfo] = SolverInfo(
        name="dpm-adaptive-12",
        order=2,
        calls_per_step=2,
        source="arXiv:2206.00927 app. C.4; arXiv:2211.01095",
        adaptive=True,
    )
    atol: Positive = 0.0078
    rtol: Positive = 0.05
    h_init: Positive = 0.05
    theta: Annotated[float, Field(gt=0, lt=1)] = 0.9
    max_calls: MaxCalls = 10_000

    def on(self, grid: TimeGrid) -> "PairSteps":
        return PairSteps(self, grid.schedule)


@register
@dataclass(frozen=True)
class DPMAdaptive23(DPMAdaptive12):
    """Order 2 inside order 3: three evaluations a trial, otherwise as dpm-adaptive-12."""

    info: ClassVar[SolverInfo] = SolverInfo(
        name="dpm-adaptive-23",
        order=3,
        calls_per_step=3,
        source="arXiv:2206.00927 app. C.4; arXiv:2211.01095",
        adaptive=True,
    )


@plain(frozen=True, slots=True)
class PairSteps:
    """As many accepted trials per step as it takes; the state is the number of calls so far."""

    settings: DPMAdaptive12
    schedule: NoiseSchedule

    def init(self) -> int:
        return 0

    def step(
        self, x: Tensor, state: int, t: Node, s: Node
    ) -> Generator[Query, Tensor, tuple[Tensor, int]]:
        """Steps from t to s; to sigma = 0, and away from alpha = 0, by one step of order 1."""
        x0, state = (yield x, t), state + 1
        if s.sigma == 0.0:
            return x0 * s.alpha, state
        if t.alpha == 0.0:
            near = s if s.lam <= PURE_NOISE else self.schedule.at_lam(PURE_NOISE)
            x, t = _take_first(x, x0, t, near), near
            if t is s:
                return x, state
            x0, state = (yield x, t), state + 1
        return (yield from self._run_trials(x, x0, state, t, s))

    def _run_trials(
        self, x: Tensor, x0: Tensor, calls: int, t: Node, s: Node
    ) -> Generator[Query, Tensor, tuple[Tensor, int]]:
        """Makes trials from t, where x0 is known, until one that ends at s is accepted."""
        settings, order, h, before = (
            self.settings,
            self.settings.info.order,
            self.settings.h_init,
            (x, t),
        )
        trial = self._try_second if order == 2 else self._try_third
        while True:
            end = s if h > s.lam - t.lam - 1e-9 else self.schedule.at_lam(t.lam + h)
            low, high = yield from trial(x, x0, t, end)
            calls += order - 1
            unit = _measure_size(end)
            last = before[0] * (unit / _measure_size(before[1]))
            error = measure_error(high - low, settings.atol * unit, settings.rtol, low, last)
            h = settings.theta * (end.lam - t.lam) * max(error, 1e-12) ** (-1 / order)
            if error <= 1.0:
                x, t, before = high, end, (low, end)
                if t is s:
                    return x, calls
                x0, calls = (yield x, t), calls + 1
            check_calls(settings.info.name, calls, t, most=settings.max_calls)

    def _try_second(
        self, x: Tensor, x0: Tensor, t: Node, e: Node
    ) -> Generator[Query, Tensor, Trial]:
        """Makes the trial of orders 1 and 2 from t to e."""
        mid = self._find_inner(t, e, 0.5)
        bend = (yield _take_first(x, x0, t, mid), mid) - x0
        low = _take_first(x, x0, t, e)
        return low, torch.add(low, bend, alpha=_weigh_x0(t, e))

    def _try_third(
        self, x: Tensor, x0: Tensor, t: Node, e: Node
    ) -> Generator[Query, Tensor, Trial]:
        """Makes the trial of orders 2 and 3 from t to e."""
        one, two = self._find_inner(t, e, 1 / 3), self._find_inner(t, e, 2 / 3)
        bend = (yield _take_first(x, x0, t, one), one) - x0
        x_2 = _take_first(x, x0, t, two).add_(bend, alpha=2.0 * two.alpha * _weigh_bend(t, two))
        bend_2 = (yield x_2, two) - x0
        first = _take_first(x, x0, t, e)
        low = torch.add(first, bend, alpha=1.5 * _weigh_x0(t, e))
        return low, first.add_(bend_2, alpha=1.5 * e.alpha * _weigh_bend(t, e))

    def _find_inner(self, t: Node, e: Node, share: float) -> Node:
        return self.schedule.at_lam(t.lam + share * (e.lam - t.lam))


def _measure_size(node: Node) -> float:
    return math.hypot(node.alpha, node.sigma)


def _take_first(x: Tensor, x0: Tensor, t: Node, v: Node) -> Tensor:
    """Returns the step of order 1 from t to v."""
    return (x * (v.sigma / t.sigma)).add_(x0, alpha=_weigh_x0(t, v))


def _weigh_x0(t: Node, v: Node) -> float:
    """Returns b_v = alpha_v (1 - e^{-(lam_v - lam_t)}); at alpha_t = 0 its limit alpha_v."""
    return -v.alpha * math.expm1(t.lam - v.lam)


def _weigh_bend(t: Node, v: Node) -> float:
    """Returns p(h) = 1 - (1 - e^{-h}) / h = h phi_2(-h) of h = lam_v - lam_t."""
    h = v.lam - t.lam
    return h * phi(2, -h)
