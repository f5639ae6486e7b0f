"""Explicit Runge-Kutta methods as weights of x and the predictions: Heun, DPM2, RF-Solver, RK4.

On dy/dtau = (y - x0) / tau in the straight coordinate, a method with the tableau (c, a, b) steps
from node t to node s, with h = tau_s - tau_t, through

    k_i = dy/dtau at tau_t + c_i h, y_t + h sum_{j < i} a_ij k_j,      y_s = y_t + h sum_i b_i k_i.

Every stage is linear in x_t and the predictions before it, so it is run as one row of weights of
those; no slope is ever formed. The rows of a step are worked out once, in float64.

Heun's method is Euler's on the step to sigma = 0, and has EDM's churn:

    d  = (y_t - x0(y_t, t)) / tau_t,   y' = y_t + (tau_s - tau_t) d
    d' = (y' - x0(y', s)) / tau_s,     y_s = y_t + (tau_s - tau_t) (d + d') / 2

With churn, noise is first added at t (arXiv:2206.00364, alg. 2): with kappa = sigma / alpha,
gamma = min(s_churn / N, sqrt 2 - 1) where s_min <= kappa_t <= s_max and 0 elsewhere, the step
starts from the node t^ with kappa^ = (1 + gamma) kappa_t and

    x^ = (alpha^ / alpha_t) x_t + alpha^ sqrt(kappa^^2 - kappa_t^2) s_noise z.

DPM-Solver-2 in the form of k-diffusion is a midpoint in log tau, and Euler on the step to
sigma = 0. With m at tau_m = sqrt(tau_t tau_s),

    d  = (y_t - x0(y_t, t)) / tau_t,   y' = y_t + (tau_m - tau_t) d,
    d' = (y' - x0(y', m)) / tau_m,     y_s = y_t + (tau_s - tau_t) d'

(k-diffusion's sample_dpm_2, after arXiv:2206.00927 and arXiv:2206.00364). Every process
but rectified flow has tau = kappa, so that m halves the step in lam; DPM-Solver-2 itself would
weigh d too, which changes nothing at second order.

RF-Solver makes two evaluations a step, with h = tau_s - tau_t and d(y, tau) = dy/dtau,

    d  = d(y_t, tau_t),   d' = d(y_t + theta h d, tau_t + theta h),
    y_s = y_t + h [(1 - 1 / (2 theta)) d + d' / (2 theta)].

The paper writes a Taylor step, y_t + h d + (h^2 / 2) (d' - d) / (h / 2) (arXiv:2411.04746, n = 2);
that is theta = 1/2, y_t + h d', the explicit midpoint method.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Generator, Sequence
from dataclasses import dataclass as plain
from dataclasses import field
from typing import Annotated, ClassVar, NamedTuple

from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from ..models.schedule import Node, TimeGrid
from .base import Query, SolverInfo, Step, register
from .coordinates import Stages, Straight, check_noisy
from .table import Combination
from .tableaux import EULER, HEUN, RALSTON_3, RK4, Row, Tableau, make_midpoint


class StageRows(NamedTuple):
    """The nodes at which x0 is asked for, and what comes after each answer.

    State i + 1 is rows[i] times (x, x0_0, .., x0_i) plus noise[i] times (z_0, z_1, ..), of which
    those that no earlier state needed are drawn then; the last state is the end of the step.
    """

    nodes: tuple[Node, ...]
    rows: tuple[Row, ...]
    noise: tuple[Row, ...]

    @classmethod
    def of(cls, nodes: Sequence[Node], states: Sequence[Combination]) -> "StageRows":
        """Returns the rows of states in terms of ("x", 0), where the step starts, x0 and z."""
        rows, noise = [], []
        for i, state in enumerate(states):
            x0s = (state.get(("x0", j), 0.0) for j in range(i + 1))
            rows.append((state.get(("x", 0), 0.0), *x0s))
            drawn = [j for (kind, j), weight in state.items() if kind == "z" and weight]
            noise.append(tuple(state.get(("z", j), 0.0) for j in range(max(drawn, default=-1) + 1)))
        return cls(tuple(nodes), tuple(rows), tuple(noise))


@plain(frozen=True, slots=True)
class StageSteps(ABC):
    """Steps between any two nodes, in either direction, that remember nothing.

    known: the rows of the steps so far, by the times of their ends.
    """

    line: Straight
    known: dict[tuple[float, float], StageRows] = field(
        default_factory=dict, init=False, compare=False, repr=False
    )

    @abstractmethod
    def make_rows(self, t: Node, s: Node) -> StageRows:
        """Returns the rows of the step from t, where sigma > 0, to s."""

    def init(self) -> None:
        return None

    def step(self, x: Tensor, state: None, t: Node, s: Node) -> Step[None]:
        """Makes one evaluation per row."""
        return (yield from self.run_stages(x, t, s)), None

    def run_stages(self, x: Tensor, t: Node, s: Node) -> Stages:
        """Asks for x0 at each node in turn and returns the state at s."""
        x0s: list[Tensor] = []
        zs: list[Tensor] = []
        state = x
        for node, (first, *rest), noise in zip(*self._find_rows(t, s), strict=True):
            x0s.append((yield state, node))
            state = x * first
            for weight, x0 in zip(rest, x0s, strict=True):
                state.add_(x0, alpha=weight)
            if noise:
                while len(zs) < len(noise):
                    zs.append((yield x, None))
                for weight, z in zip(noise, zs, strict=False):
                    if weight:
                        state.add_(z, alpha=weight)
        return state

    def _find_rows(self, t: Node, s: Node) -> StageRows:
        ends = t.t, s.t
        if ends not in self.known:
            check_noisy(t)
            self.known[ends] = self.make_rows(t, s)
        return self.known[ends]


@plain(frozen=True, slots=True)
class RungeKuttaSteps(StageSteps):
    """Steps of one tableau, Euler's where it would evaluate the network at sigma = 0."""

    tableau: Tableau

    def choose_tableau(self, t: Node, s: Node) -> Tableau:
        """Returns the method of the step from t to s."""
        probes_data = s.sigma == 0.0 and self.tableau.probes_end
        return EULER if probes_data or self.line.denoises(s) else self.tableau

    def make_rows(self, t: Node, s: Node) -> StageRows:
        tableau, line = self.choose_tableau(t, s), self.line
        nodes = [line.node_between(t, s, share) for share in tableau.c]
        h, weights = line.tau(s) - line.tau(t), [*tableau.a, tableau.b]
        reach = [h / line.tau(node) for node in nodes]
        rows = []
        for i, node in enumerate([*nodes[1:], s]):
            scale, shares = line.scale(node), _list_shares(weights[: i + 1], reach)
            of_x = (1.0 + math.fsum(shares)) * scale / line.scale(t)
            rows.append((of_x, *(-share * scale for share in shares)))
        return StageRows(tuple(nodes), tuple(rows), ((),) * len(rows))


def _list_shares(weights: Sequence[Row], reach: Sequence[float]) -> list[float]:
    """Returns g with y_i = y + sum_j g_j (y - x0_j), from the last slope back to the first."""
    *inner, outer = weights
    shares = [0.0] * len(outer)
    for j in reversed(range(len(outer))):
        later = sum(shares[i] * inner[i - 1][j] for i in range(j + 1, len(outer)))
        shares[j] = reach[j] * (outer[j] + later)
    return shares


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
        """Takes the tableau's step, from the raised noise where there is churn."""
        if self.gamma and not self.line.denoises(s):
            x, t = yield from self._add_churn(x, t)
        return (yield from self.run_stages(x, t, s)), None

    def _add_churn(self, x: Tensor, t: Node) -> Generator[Query, Tensor, tuple[Tensor, Node]]:
        """Returns x and t with the noise raised by 1 + gamma, or as they are."""
        check_noisy(t)
        schedule = self.line.schedule
        lam = max(t.lam - math.log1p(self.gamma), schedule.at(schedule.t_max).lam)
        if lam >= t.lam or not self.churn.s_min <= t.sigma / t.alpha <= self.churn.s_max:
            return x, t
        hat = schedule.at_lam(lam)
        ratio = hat.alpha / t.alpha
        added = ratio * t.sigma * math.sqrt(math.expm1(2.0 * (t.lam - hat.lam)))
        return (x * ratio).add_((yield x, None), alpha=added * self.churn.s_noise), hat


@register
@dataclass(frozen=True)
class DPM2:
    """A run of N steps to sigma = 0 costs 2 N - 1 calls."""

    info: ClassVar[SolverInfo] = SolverInfo(
        name="dpm2", order=2, calls_per_step=2, source="arXiv:2206.00927, as in k-diffusion"
    )

    def on(self, grid: TimeGrid) -> "DPM2Steps":
        return DPM2Steps(Straight.of(grid), EULER)


@plain(frozen=True, slots=True)
class DPM2Steps(RungeKuttaSteps):
    """The rule as a Runge-Kutta step whose second stage stands at (tau_m - tau_t) / h."""

    def choose_tableau(self, t: Node, s: Node) -> Tableau:
        if not (root := math.sqrt(self.line.tau(s))):
            return EULER
        # (tau_m - tau_t) / (tau_s - tau_t) with the common factor taken out
        return make_midpoint(1.0 / (1.0 + root / math.sqrt(self.line.tau(t))), 1.0)


@register
@dataclass(frozen=True)
class RFSolver:
    """Second order for every theta; 2 N calls, also to sigma = 0, which theta < 1 never probes.

    On data of one Gaussian the midpoint's error of order 2 happens to vanish, and it measures 3.

    theta: in (0, 1], where the second evaluation stands: 1/2 is RF-Solver, 2/3 Ralston's method,
           1 Heun's, whose step to sigma = 0 is Euler's.
    """

    info: ClassVar[SolverInfo] = SolverInfo(
        name="rf-solver", order=2, calls_per_step=2, source="arXiv:2411.04746, n = 2"
    )
    theta: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5

    def on(self, grid: TimeGrid) -> RungeKuttaSteps:
        return RungeKuttaSteps(Straight.of(grid), make_midpoint(self.theta, 0.5 / self.theta))


@register
@dataclass(frozen=True)
class RFSolver3:
    """The third-order Taylor step, as Ralston's method of three evaluations, 3 N calls.

    With d' at h / 2, d'' stands at 3 h / 4, reached with d' alone, and
    y_s = y_t + h (2 d + 3 d' + 4 d'') / 9.
    """

    info: ClassVar[SolverInfo] = SolverInfo(
        name="rf-solver-3", order=3, calls_per_step=3, source="arXiv:2411.04746, n = 3"
    )

    def on(self, grid: TimeGrid) -> RungeKuttaSteps:
        return RungeKuttaSteps(Straight.of(grid), RALSTON_3)


@register
@dataclass(frozen=True)
class ClassicalRK4:
    """The classical method of order 4: one step per interval of the grid, 4 evaluations each."""

    info: ClassVar[SolverInfo] = SolverInfo(
        name="ode-rk4", order=4, calls_per_step=4, source="arXiv:2011.13456 sec. 4.3"
    )

    def on(self, grid: TimeGrid) -> RungeKuttaSteps:
        return RungeKuttaSteps(Straight.flow_of(grid), RK4)
