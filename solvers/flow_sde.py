"""Steps with noise of rectified flow whose probability is known, for reinforcement learning.

With tau falling from t to s, D = tau_t - tau_s and eps = x_t + (1 - tau_t) u, a step is

    x_s = (1 - tau_s) x0 + rho eps + omega z.

flow-sde: Euler-Maruyama steps of an SDE with the marginals of the flow, whose noise is g,

    rho = tau_s - g^2 D / (2 tau_t),   omega = g sqrt(D);

g = a sqrt(tau_t / (1 - tau_t)) of Flow-GRPO (arXiv:2505.05470), with 1 - tau_s for 1 - tau_t
at tau_t = 1, or g = a throughout, of DanceGRPO (arXiv:2505.07818). It adds noise in the last step
too, where it stays, and its noise level is wrong in few steps: rho^2 + omega^2 is not tau_s^2.

flow-cps: rho = tau_s cos(a pi / 2), omega = tau_s sin(a pi / 2). It keeps the noise level and ends
without noise, but is no SDE: on N(.4, .25) the variance tends to .18 in many steps for a = .7
(Flow-CPS, arXiv:2509.05952).
"""

import math
from typing import Annotated, ClassVar, Literal, NamedTuple

from pydantic import Field
from pydantic.dataclasses import dataclass

from ..models.schedule import Node, TimeGrid
from .base import Clock, SolverInfo, register
from .distilled import OneCall, keep_noise
from .stochastic import Share

Level = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]


class StepLaw(NamedTuple):
    """The Gaussian of a step: x_s has the mean alpha_s x0 + rho eps and the deviation omega."""

    rho: float
    omega: float


def find_flow_sde(t: Node, s: Node, level: float, kind: Literal["sde", "dance"]) -> StepLaw:
    """Returns the law of a step of `flow-sde`."""
    fall, clean = t.sigma - s.sigma, t.alpha or s.alpha
    g = level if kind == "dance" else level * math.sqrt(t.sigma / clean)
    return StepLaw(s.sigma - g * g * fall / (2.0 * t.sigma), g * math.sqrt(fall))


def find_flow_cps(s: Node, level: float) -> StepLaw:
    """Returns the law of a step of `flow-cps`."""
    angle = 0.5 * math.pi * level
    return StepLaw(s.sigma * math.cos(angle), s.sigma * math.sin(angle))


def find_posterior(t: Node, s: Node, eta: float) -> StepLaw:
    """Returns the law of a step of DDIM with eta; 1 is the posterior of DDPM (`ddpm`)."""
    omega = eta * s.sigma * math.sqrt(-math.expm1(2.0 * (t.lam - s.lam)))
    return StepLaw(math.sqrt(max(0.0, s.sigma**2 - omega**2)), omega)


def find_flow_time(node: Node) -> float:
    """Returns ln (1 - tau): the noise of an Euler step is g dW(1 - tau)."""
    return math.log(node.alpha) if node.alpha else -math.inf


@register
@dataclass(frozen=True)
class FlowSDE(OneCall):
    """Euler-Maruyama steps.

    level: a; 0 is Euler's method.
    kind:  "sde" is Flow-GRPO's g, "dance" is DanceGRPO's, for which a level of 0.3 is usual.
    """

    info: ClassVar[SolverInfo] = SolverInfo(
        name="flow-sde",
        order=1,
        source="arXiv:2505.05470; arXiv:2505.07818",
        stochastic=True,
        families=("flow",),
    )
    level: Level = 0.7
    kind: Literal["sde", "dance"] = "sde"

    def combine(self, grid: TimeGrid, t: Node, s: Node) -> tuple[float, float, float]:
        return keep_noise(t, s, *find_flow_sde(t, s, self.level, self.kind))

    def make_clock(self, grid: TimeGrid) -> Clock:
        return find_flow_time


@register
@dataclass(frozen=True)
class FlowCPS(OneCall):
    """Steps that keep the noise level.

    level: a; 0 is Euler's method, 1 draws all of the noise anew, as `renoise` does.
    """

    info: ClassVar[SolverInfo] = SolverInfo(
        name="flow-cps",
        order=1,
        source="arXiv:2509.05952",
        stochastic=True,
        families=("flow",),
    )
    level: Share = 0.7

    def combine(self, grid: TimeGrid, t: Node, s: Node) -> tuple[float, float, float]:
        return keep_noise(t, s, *find_flow_cps(s, self.level))
