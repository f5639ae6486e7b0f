"""RF-Solver: two evaluations a step, in Runge-Kutta form.

On dy/dtau = d(y, tau) in the straight coordinate (the network's own velocity on rectified flow),
with h = tau_s - tau_t,

    d  = d(y_t, tau_t),   d' = d(y_t + theta h d, tau_t + theta h),
    y_s = y_t + h [(1 - 1 / (2 theta)) d + d' / (2 theta)].

The paper writes a Taylor step, y_t + h d + (h^2 / 2) (d' - d) / (h / 2) (arXiv:2411.04746, n = 2);
that is theta = 1/2, y_t + h d', the explicit midpoint method.
"""

from dataclasses import dataclass as plain
from typing import Annotated, ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from ..models.schedule import Node, TimeGrid
from .base import SolverInfo, Step, register
from .coordinates import EULER, Straight, Tableau, runge_kutta


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

    def on(self, grid: TimeGrid) -> "RungeKuttaSteps":
        second = 0.5 / self.theta
        return RungeKuttaSteps(Straight.of(grid), ((self.theta,), (1.0 - second, second)))


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

    def on(self, grid: TimeGrid) -> "RungeKuttaSteps":
        return RungeKuttaSteps(Straight.of(grid), ((1 / 2,), (0.0, 3 / 4), (2 / 9, 1 / 3, 4 / 9)))


@plain(frozen=True, slots=True)
class RungeKuttaSteps:
    """Steps of one tableau, Euler's where it would evaluate the network at sigma = 0."""

    line: Straight
    tableau: Tableau

    def init(self) -> None:
        return None

    def step(self, x: Tensor, state: None, t: Node, s: Node) -> Step[None]:
        probes_end = s.sigma == 0.0 and any(sum(row) == 1.0 for row in self.tableau[:-1])
        euler = probes_end or self.line.denoises(s)
        tableau = EULER if euler else self.tableau
        return (yield from runge_kutta(self.line, x, t, s, tableau)), None
