"""SEEDS: exponential stages in lam with noise whose increments are exact (arXiv:2305.14267).

The stages stand at lam_t + r h, h = lam_s - lam_t, and eta says how much of the noise of the
reverse SDE is added. With q = 1 + eta, E(r) = e^{-q r h} - 1 and e_2(y) = (e^y - 1 - y) / y,

    x_r = (sigma_r / sigma_t) e^{-eta r h} x_t - alpha_r sum_j b_j x0_j + sigma_r N_r,
    N_r = e^{-eta (r - r') h} N_{r'} + sqrt(1 - e^{-2 eta (r - r') h}) z,

where r' is the stage before and N_0 = 0. The b_j of a stage sum to E(r), and beside x0_0 there is

    seeds-2 at s: x0_1, which weighs E(1) / (2 r) (phi_1) or e_2(-q h) / r (phi_2),
    seeds-3 at r_2 = 2/3: x0_1, which weighs 2 e_2(-q 2h/3); at s: x0_2, which weighs
                  3/2 e_2(-q h).

With eta = 0 they are exponential Runge-Kutta methods: `res-2s` and `res-3s:c2=1/3,c3=2/3`.
"""

import math
from abc import abstractmethod
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from ..models.schedule import Node, TimeGrid
from .ancestral import RuleSteps, take_one_stage
from .base import SolverInfo, register
from .coordinates import Straight
from .exponential import phi
from .noise_rate import ConstantRate
from .runge_kutta import StageRows
from .stochastic import Scale, Share
from .table import Combination


@dataclass(frozen=True)
class Seeds:
    """Settings of both.

    eta:     share of the noise of the reverse SDE; 0 is deterministic.
    s_noise: factor on the noise; other than 1 it changes the variance of the samples.
    """

    eta: Share = 1.0
    s_noise: Scale = 1.0

    def on(self, grid: TimeGrid) -> RuleSteps:
        return RuleSteps(Straight.of(grid), self.make_rows, ConstantRate(self.eta).find_clock)

    @abstractmethod
    def list_stages(self, h: float) -> list[tuple[float, tuple[float, ...]]]:
        """Returns r of each stage after the first, and the b_j of x0_1, x0_2, .. there."""

    def make_rows(self, line: Straight, t: Node, s: Node) -> StageRows:
        """Returns the rows of a step from t to s, where sigma > 0."""
        if t.alpha == 0.0:
            rho = 0.0 if self.eta else s.sigma
            return StageRows.of((t,), [take_one_stage(t, s, rho, self.s_noise)])
        h, nodes, states = s.lam - t.lam, [t], list[Combination]()
        noise, before = list[float](), 0.0
        for r, later in self.list_stages(h):
            node = s if r == 1.0 else line.schedule.at_lam(t.lam + r * h)
            fade = math.exp(-self.eta * (r - before) * h)
            noise = [*(fade * weight for weight in noise), math.sqrt(1.0 - fade * fade)]
            before = r
            first = math.expm1(-(1.0 + self.eta) * r * h) - math.fsum(later)
            state = {("x0", j): -node.alpha * b for j, b in enumerate((first, *later))}
            state[("x", 0)] = node.sigma / t.sigma * math.exp(-self.eta * r * h)
            scale = self.s_noise * node.sigma
            states.append(state | {("z", j): scale * weight for j, weight in enumerate(noise)})
            nodes.append(node)
        return StageRows.of(nodes[:-1], states)

    def compute_second(self, h: float) -> float:
        """Returns e_2(-q h)."""
        y = -(1.0 + self.eta) * h
        return y * phi(2, y)


def _describe(stages: int) -> SolverInfo:
    return SolverInfo(
        name=f"seeds-{stages}",
        order=stages,
        calls_per_step=stages,
        source=f"arXiv:2305.14267, {stages} stages, as ComfyUI has them",
        stochastic=True,
    )


@register
@dataclass(frozen=True)
class Seeds2(Seeds):
    """A run of N steps to sigma = 0 costs 2 N - 1 calls.

    r: where the second evaluation stands; at 1 it is `exp-heun-2-x0-sde` with phi_2.
    solver_type: "phi_1" or "phi_2", the weight of its prediction.
    """

    info: ClassVar[SolverInfo] = _describe(2)
    r: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5
    solver_type: Literal["phi_1", "phi_2"] = "phi_1"

    def list_stages(self, h: float) -> list[tuple[float, tuple[float, ...]]]:
        whole = math.expm1(-(1.0 + self.eta) * h)
        later = 0.5 * whole if self.solver_type == "phi_1" else self.compute_second(h)
        return [(self.r, ()), (1.0, (later / self.r,))]


@register
@dataclass(frozen=True)
class Seeds3(Seeds):
    """A run of N steps to sigma = 0 costs 3 N - 2 calls."""

    info: ClassVar[SolverInfo] = _describe(3)

    def list_stages(self, h: float) -> list[tuple[float, tuple[float, ...]]]:
        inner = 2.0 * self.compute_second(2.0 / 3.0 * h)
        return [(1 / 3, ()), (2 / 3, (inner,)), (1.0, (0.0, 1.5 * self.compute_second(h)))]
