"""Methods of slopes after Heun's: three slopes a step, and Heun's rule on an SDE.

heunpp2: with d_i the slopes (y - x0) / tau at t, at s and at the node after s, reached by Euler
steps, and tau_0 the first node of the run, a step is

    y_s = y_t + (tau_s - tau_t) (w_1 d_1 + w_2 d_2 + w_3 d_3),
    w_2 = tau_s / (3 tau_0),   w_3 = tau_{s+1} / (3 tau_0),   w_1 = 1 - w_2 - w_3,

with two slopes, w_2 = tau_s / (2 tau_0), in the step before the last, which is Euler's
(ComfyUI's sample_heunpp2).

stochastic-heun: on rectified flow with the noise g, the SDE with the marginals of the flow has, in
tau falling from 1, the drift

    f(x) = u + g^2 / (2 tau) eps,     u = eps - x0,

and with dt = tau_s - tau_t < 0 and one z for both stages a step is

    y = x_t + f_t(x_t) dt + g_t sqrt(-dt) z,
    x_s = x_t + (f_t(x_t) + f_s(y)) dt / 2 + g_t sqrt(-dt) z.

The step to tau = 0 is to x0. The noise may depend on tau: with t = 1 - tau, "1/t" is
g^2 = 2 / (t + 0.01), and "tan" is g^2 = pi sin(a) / (cos(a) + 0.01), a = pi tau / 2, both as
samplers of protein structures have them (arXiv:2503.00710), which step by the ODE where t is
below 0.02 or above 0.95; g is a factor on either. Across these edges the order is 1.
"""

import math
from dataclasses import dataclass as plain
from typing import ClassVar, Literal

from pydantic.dataclasses import dataclass

from ..models.schedule import Node, TimeGrid
from .ancestral import RuleSteps
from .base import SolverInfo, check_family, register
from .coordinates import Straight
from .flow_sde import find_flow_time
from .runge_kutta import StageRows, StageSteps
from .stochastic import Scale
from .table import Combination, add_terms


@register
@dataclass(frozen=True)
class HeunPP2:
    """A run of N steps to sigma = 0 costs 3 N - 3 calls, for N >= 2."""

    info: ClassVar[SolverInfo] = SolverInfo(
        name="heunpp2",
        order=1,
        calls_per_step=3,
        source="arXiv:2206.00364 alg. 1, as ComfyUI's sample_heunpp2",
    )

    def on(self, grid: TimeGrid) -> "HeunPP2Steps":
        return HeunPP2Steps(Straight.of(grid), grid)


@plain(frozen=True, slots=True)
class HeunPP2Steps(StageSteps):
    """Steps over the nodes of a grid; between others they are those before the last."""

    grid: TimeGrid

    def make_rows(self, t: Node, s: Node) -> StageRows:
        line, state = self.line, {("x", 0): 1.0 / self.line.scale(t)}
        nodes, slopes, states = [t], list[Combination](), list[Combination]()
        for node in [] if self.line.denoises(s) else self._list_later(t, s):
            slopes.append(_find_slope(line, nodes[-1], state, len(states)))
            state = add_terms(state, slopes[-1], line.tau(node) - line.tau(nodes[-1]))
            states.append({term: line.scale(node) * v for term, v in state.items()})
            nodes.append(node)
        slopes.append(_find_slope(line, nodes[-1], state, len(states)))
        whole: Combination = {("x", 0): 1.0 / line.scale(t)}
        for weight, slope in zip(self._weigh(nodes), slopes, strict=True):
            whole = add_terms(whole, slope, weight * (line.tau(s) - line.tau(t)))
        return StageRows.of(
            nodes, [*states, {term: line.scale(s) * v for term, v in whole.items()}]
        )

    def _list_later(self, t: Node, s: Node) -> list[Node]:
        """Returns the nodes after t at which the step asks: s and the one after, above zero."""
        nodes = self.grid.nodes
        n = nodes.index(t) if t in nodes else len(nodes)
        later = list(nodes[n + 1 : n + 3]) if nodes[n + 1 : n + 2] == (s,) else [s]
        return [node for node in later if node.sigma > 0.0]

    def _weigh(self, nodes: list[Node]) -> list[float]:
        """Returns the weights of the slopes at these nodes."""
        first = self.line.tau(self.grid.nodes[0])
        later = [self.line.tau(node) / (len(nodes) * first) for node in nodes[1:]]
        return [1.0 - math.fsum(later), *later]


def _find_slope(line: Straight, node: Node, y: Combination, n: int) -> Combination:
    """Returns dy/dtau at a state, with the prediction numbered n."""
    tau = line.tau(node)
    return add_terms({term: weight / tau for term, weight in y.items()}, {("x0", n): -1.0 / tau})


@register
@dataclass(frozen=True)
class StochasticHeun:
    """A run of N steps to tau = 0 costs 2 N - 1 calls and N - 1 draws.

    g:     the noise, or a factor on it; 0 is `heun`.
    noise: "constant", "1/t" or "tan": how it depends on tau.
    """

    info: ClassVar[SolverInfo] = SolverInfo(
        name="stochastic-heun",
        order=2,
        calls_per_step=2,
        source="arXiv:2503.00710, with Heun's rule",
        stochastic=True,
        families=("flow",),
    )
    g: Scale = 0.7
    noise: Literal["constant", "1/t", "tan"] = "constant"

    def on(self, grid: TimeGrid) -> RuleSteps:
        check_family(self.info, grid.schedule)
        return RuleSteps(Straight.of(grid), self.make_rows, find_flow_time)

    def make_rows(self, line: Straight, t: Node, s: Node) -> StageRows:
        """Returns the rows of a step from t to s, where sigma > 0."""
        dt = s.sigma - t.sigma
        start: Combination = {("x", 0): 1.0, ("z", 0): self._find_noise(t.sigma) * math.sqrt(-dt)}
        drift = self._find_drift(t, {("x", 0): 1.0}, 0)
        inner = add_terms(start, drift, dt)
        whole = add_terms(
            add_terms(start, drift, 0.5 * dt), self._find_drift(s, inner, 1), 0.5 * dt
        )
        return StageRows.of((t, s), [inner, whole])

    def _find_drift(self, node: Node, x: Combination, n: int) -> Combination:
        """Returns f at a state, with the prediction numbered n."""
        tau, more = node.sigma, 0.5 * self._find_noise(node.sigma) ** 2 / node.sigma
        of_x = {term: weight * (1.0 + more) / tau for term, weight in x.items()}
        return add_terms(of_x, {("x0", n): -(1.0 + more * (1.0 - tau)) / tau})

    def _find_noise(self, tau: float) -> float:
        """Returns g at tau."""
        if self.noise == "constant":
            return self.g
        if not 0.02 <= 1.0 - tau <= 0.95:
            return 0.0
        if self.noise == "1/t":
            return self.g * math.sqrt(2.0 / (1.0 - tau + 0.01))
        angle = 0.5 * math.pi * tau
        return self.g * math.sqrt(math.pi * math.sin(angle) / (math.cos(angle) + 0.01))
