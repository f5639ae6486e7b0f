"""RF-Solver: two evaluations a step, in Runge-Kutta form.

On dy/dtau = d(y, tau) in the straight coordinate (the network's own velocity on rectified flow),
with h = tau_s - tau_t,

    d  = d(y_t, tau_t),   d' = d(y_t + theta h d, tau_t + theta h),
    y_s = y_t + h [(1 - 1 / (2 theta)) d + d' / (2 theta)].

The paper writes a Taylor step, y_t + h d + (h^2 / 2) (d' - d) / (h / 2) (arXiv:2411.04746, n = 2);
that is theta = 1/2, y_t + h d', the explicit midpoint method.
"""

from typing import Annotated, ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass

from ..models.schedule import TimeGrid
from .base import SolverInfo, register
from .coordinates import Straight
from .runge_kutta import RALSTON_3, RungeKuttaSteps, midpoint


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
        return RungeKuttaSteps(Straight.of(grid), midpoint(self.theta, 0.5 / self.theta))


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
        return RungeKuttaSteps(Straight.of(grid), RALSTON_3)
