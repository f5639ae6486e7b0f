"""Ancestral samplers: a deterministic step to a cleaner node than asked for, and noise from there.

A step from t to s goes to a node d below s and adds the noise that s has above it:

    x_s = (alpha_s / alpha_d) x_d + sqrt(sigma_s^2 - rho^2) z,   rho = alpha_s sigma_d / alpha_d.

How far below is a choice of eta in [0, 1], in one of two coordinates (`form`): kappa, with
kappa = sigma / alpha, as k-diffusion has it, or tau of rectified flow, as ComfyUI and LTX do,

    kappa:  kappa_d = kappa_s sqrt(1 - eta^2 (1 - (kappa_s / kappa_t)^2))
    tau:    tau_d = tau_s (1 - eta (1 - tau_s / tau_t)).

eta = 0 is d = s, without noise. In kappa, eta = 1 is the posterior of DDPM.

euler-ancestral: x_d by Euler's step, which is DDIM's, so

    x_s = alpha_s x0 + rho eps + sqrt(sigma_s^2 - rho^2) z.

dpm-2-ancestral: x_d by a midpoint step, whose second evaluation stands at the geometric mean of
the coordinates of t and d. dpmpp-2s-ancestral: DDIM to the middle of t and d in lam, and DDIM from
t to d with the prediction there. Both draw once a step.

dpmpp-sde: an ancestral step of order 1 to the middle m of t and s in lam, and one from t to s with
the prediction at m. Both draw noise, z and z': of one Brownian path in kappa (noise="path"),

    z' = sqrt(w) z + sqrt(1 - w) z'',   w = (kappa_t - kappa_m) / (kappa_t - kappa_s),

or independent of each other, which loses variance and an order (noise="independent").

res-multistep-ancestral: x_d by the exponential multistep step of order 2, with h = lam_d - lam_t,
c = (lam_{t-1} - lam_{d-1}) / h, d-1 being d of the step before, and phi_k = phi_k(-h),

    y_d = e^{-h} y_t + h ((phi_1 - phi_2 / c) x0_t + (phi_2 / c) x0_{t-1}),   y = x / alpha.

Where alpha_t = 0, kappa is infinite, and the steps in kappa are those of order 1.
"""

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass as plain
from itertools import pairwise
from types import MappingProxyType
from typing import ClassVar, Literal

from pydantic.dataclasses import dataclass

from ..models.schedule import Node, TimeGrid
from .base import Clock, SolverInfo, Span, register
from .coordinates import Straight
from .distilled import OneCall, find_rest, keep_noise
from .exponential import phi
from .linear import LinearSolver
from .noise_rate import ConstantRate
from .runge_kutta import StageRows, StageSteps
from .stochastic import Scale, Share
from .table import Combination, Term, add_terms

Form = Literal["auto", "kappa", "tau"]
FIRST: Mapping[Term, float] = MappingProxyType({("z", 0): 1.0})  # noise of a step


@dataclass(frozen=True)
class Ancestral:
    """Settings that all of them have.

    eta:     share of the noise; 0 is deterministic.
    s_noise: factor on the noise; other than 1 it changes the variance of the samples.
    form:    "kappa" or "tau", the coordinate in which the noise is split off; "auto" is tau on
             rectified flow and kappa elsewhere.
    """

    eta: Share = 1.0
    s_noise: Scale = 1.0
    form: Form = "auto"

    def make_clock(self, grid: TimeGrid) -> Clock:
        """As `LinearSolver` has it."""
        return find_clock(self.eta, choose_line(grid, self.form))


def find_lower(t: Node, s: Node, eta: float, line: Straight) -> float:
    """Returns kappa_d of the step from t to s, in the coordinate of `line`."""
    if line.flow:
        tau_t, tau_s = line.tau(t), line.tau(s)
        tau = tau_s * (1.0 - eta * (1.0 - tau_s / tau_t))
        return tau / (1.0 - tau)
    return s.kappa * math.sqrt(1.0 + eta**2 * math.expm1(2.0 * (t.lam - s.lam)))


def find_clock(eta: float, line: Straight) -> Clock:
    """Returns the clock of the SDE that short steps come to: its noise is eta^2, eta for tau."""
    return ConstantRate(eta if line.flow else eta**2).find_clock


def choose_line(grid: TimeGrid, form: Form) -> Straight:
    """Returns the straight coordinate of the grid that a form names."""
    auto = Straight.of(grid)
    flow = auto.flow if form == "auto" else form == "tau"
    return Straight(auto.schedule, auto.end, auto.denoise, flow)


def add_noise(
    state: Combination, s: Node, kappa: float, s_noise: float, z: Mapping[Term, float] = FIRST
) -> Combination:
    """Returns x_s from x_d / alpha_d, kappa_d and the noise z."""
    noise = find_rest(s, s.alpha * kappa)
    return add_terms({term: s.alpha * weight for term, weight in state.items()}, z, s_noise * noise)


@register
@dataclass(frozen=True)
class EulerAncestral(Ancestral, OneCall):
    """One evaluation a step; with eta = 1 in kappa it is `ddpm`."""

    info: ClassVar[SolverInfo] = SolverInfo(
        name="euler-ancestral",
        order=1,
        source="arXiv:2010.02502 eq. 16, as k-diffusion's sample_euler_ancestral",
        stochastic=True,
    )

    def combine(self, grid: TimeGrid, t: Node, s: Node) -> tuple[float, float, float]:
        kappa = find_lower(t, s, self.eta, choose_line(grid, self.form))
        return keep_noise(t, s, s.alpha * kappa)


@register
@dataclass(frozen=True)
class RESMultistepAncestral(Ancestral, LinearSolver):
    """One evaluation a step, of order 2 in its deterministic part."""

    info: ClassVar[SolverInfo] = SolverInfo(
        name="res-multistep-ancestral",
        order=2,
        source="arXiv:2308.02157 multistep, as ComfyUI's of 2026",
        stochastic=True,
    )

    def combinations(self, grid: TimeGrid) -> list[Combination]:
        line, combos = choose_line(grid, self.form), list[Combination]()
        lower = [find_lower(t, s, self.eta, line) for t, s in pairwise(grid.nodes)]
        for n, (t, s) in enumerate(pairwise(grid.nodes)):
            x, x0, z = keep_noise(t, s, s.alpha * lower[n])
            combo: Combination = {("x", n): x, ("x0", n): x0, ("z", n): self.s_noise * z}
            if n and lower[n] and grid.nodes[n - 1].alpha > 0.0:
                h = -math.log(lower[n]) - t.lam
                c = (grid.nodes[n - 1].lam + math.log(lower[n - 1])) / h
                weight = s.alpha * h * phi(2, -h) / c
                combo = add_terms(combo, {("x0", n - 1): 1.0, ("x0", n): -1.0}, weight)
            combos.append(combo)
        return combos


Rule = Callable[[Straight, Node, Node], StageRows]


@plain(frozen=True, slots=True)
class RuleSteps(StageSteps):
    """Steps whose rows a rule makes of the coordinate and both ends; the last is DDIM's to zero.

    clock: of their noise, if it follows one. One draw spans the step; of several, each spans from
           one evaluation to the next.
    """

    rule: Rule
    clock: Clock | None = None

    def make_rows(self, t: Node, s: Node) -> StageRows:
        if s.sigma == 0.0:
            return StageRows.of((t,), [take_one_stage(t, s, 0.0)])
        return self.rule(self.line, t, s)

    def list_spans(self, n: int, t: Node, s: Node) -> Sequence[Span] | None:
        """As `Clocked` has it."""
        rows = self._find_rows(t, s)
        nodes = [*rows.nodes, s] if max(map(len, rows.noise)) > 1 else [t, s]
        return None if self.clock is None else list(pairwise(map(self.clock, nodes)))


def take_one_stage(t: Node, s: Node, rho: float, s_noise: float = 1.0) -> Combination:
    """Returns the step of order 1 that keeps rho eps and draws the rest of the noise."""
    x, x0, z = keep_noise(t, s, rho)
    return {("x", 0): x, ("x0", 0): x0, ("z", 0): s_noise * z}


def move_by_ddim(t: Node, kappa: float, x0: Combination) -> Combination:
    """Returns x / alpha at kappa on the straight line from x_t and a prediction."""
    return add_terms({("x", 0): kappa / t.sigma}, x0, 1.0 - t.alpha * kappa / t.sigma)


@dataclass(frozen=True)
class TwoStageAncestral(Ancestral):
    """A base of those with two evaluations a step, and one in the step to sigma = 0."""

    @abstractmethod
    def make_rows(self, line: Straight, t: Node, s: Node) -> StageRows:
        """Returns the rows of a step from t to s, where sigma > 0."""

    def on(self, grid: TimeGrid) -> RuleSteps:
        return RuleSteps(choose_line(grid, self.form), self.make_rows, self.make_clock(grid))


@register
@dataclass(frozen=True)
class DPM2Ancestral(TwoStageAncestral):
    """A run of N steps to sigma = 0 costs 2 N - 1 calls and N - 1 draws."""

    info: ClassVar[SolverInfo] = SolverInfo(
        name="dpm-2-ancestral",
        order=2,
        calls_per_step=2,
        source="arXiv:2206.00927, as k-diffusion's sample_dpm_2_ancestral",
        stochastic=True,
    )

    def make_rows(self, line: Straight, t: Node, s: Node) -> StageRows:
        kappa = find_lower(t, s, self.eta, line)
        if t.alpha == 0.0 and not line.flow:
            return StageRows.of((t,), [take_one_stage(t, s, s.alpha * kappa, self.s_noise)])
        start, end = line.tau(t), kappa / (1.0 + kappa) if line.flow else kappa
        middle = math.sqrt(start * end)
        node = line.node_at(middle) if middle > line.tau(s) else s  # which it is with eta = 1
        ratio = line.tau(node) / start
        y_t: Combination = {("x", 0): 1.0 / line.scale(t)}
        y = add_terms({("x", 0): ratio / line.scale(t)}, {("x0", 0): 1.0 - ratio})
        slope = add_terms(y, {("x0", 1): -1.0})
        below = add_terms(y_t, slope, (end - start) / line.tau(node))
        scale = 1.0 + kappa if line.flow else 1.0
        of_alpha = {term: scale * weight for term, weight in below.items()}
        inner = {term: line.scale(node) * weight for term, weight in y.items()}
        return StageRows.of((t, node), [inner, add_noise(of_alpha, s, kappa, self.s_noise)])


@register
@dataclass(frozen=True)
class DPMpp2SAncestral(TwoStageAncestral):
    """A run of N steps to sigma = 0 costs 2 N - 1 calls and N - 1 draws."""

    info: ClassVar[SolverInfo] = SolverInfo(
        name="dpmpp-2s-ancestral",
        order=2,
        calls_per_step=2,
        source="arXiv:2211.01095 alg. 1, as k-diffusion's sample_dpmpp_2s_ancestral",
        stochastic=True,
    )

    def make_rows(self, line: Straight, t: Node, s: Node) -> StageRows:
        kappa = find_lower(t, s, self.eta, line)
        if t.alpha == 0.0:
            return StageRows.of((t,), [take_one_stage(t, s, s.alpha * kappa, self.s_noise)])
        middle = 0.5 * (t.lam - math.log(kappa))
        node = line.schedule.at_lam(middle) if middle < s.lam else s  # which it is with eta = 1
        moved = move_by_ddim(t, node.kappa, {("x0", 0): 1.0})
        inner = {term: node.alpha * weight for term, weight in moved.items()}
        below = move_by_ddim(t, kappa, {("x0", 1): 1.0})
        return StageRows.of((t, node), [inner, add_noise(below, s, kappa, self.s_noise)])


@register
@dataclass(frozen=True)
class DPMppSDE:
    """A run of N steps to sigma = 0 costs 2 N - 1 calls and 2 N - 2 draws.

    eta, s_noise: as `euler-ancestral` has them.
    noise: "path" draws both noises of a step from one Brownian path, "independent" each by itself.
    """

    info: ClassVar[SolverInfo] = SolverInfo(
        name="dpmpp-sde",
        order=2,
        calls_per_step=2,
        source="arXiv:2211.01095 app., as k-diffusion's sample_dpmpp_sde",
        stochastic=True,
    )
    eta: Share = 1.0
    s_noise: Scale = 1.0
    noise: Literal["path", "independent"] = "path"

    def on(self, grid: TimeGrid) -> RuleSteps:
        line = choose_line(grid, "kappa")
        clock = find_clock(self.eta, line) if self.noise == "path" else None
        return RuleSteps(line, self.make_rows, clock)

    def make_rows(self, line: Straight, t: Node, s: Node) -> StageRows:
        """Returns the rows of a step from t to s, where sigma > 0."""
        kappa = find_lower(t, s, self.eta, line)
        if t.alpha == 0.0:
            return StageRows.of((t,), [take_one_stage(t, s, s.alpha * kappa, self.s_noise)])
        node = line.schedule.at_lam(0.5 * (t.lam + s.lam))
        lower = find_lower(t, node, self.eta, line)
        first = move_by_ddim(t, lower, {("x0", 0): 1.0})
        second = move_by_ddim(t, kappa, {("x0", 1): 1.0})
        shared = (t.kappa - node.kappa) / (t.kappa - s.kappa) if self.noise == "path" else 0.0
        fresh = {("z", 0): math.sqrt(shared), ("z", 1): math.sqrt(1.0 - shared)}
        states = [
            add_noise(first, node, lower, self.s_noise),
            add_noise(second, s, kappa, self.s_noise, fresh),
        ]
        return StageRows.of((t, node), states)
