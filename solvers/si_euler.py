"""Euler-Maruyama steps of stochastic interpolants, whose noise is free to choose.

With t falling by D = t - s in the time of the path, the score -eps / sigma and a rate eps_t of
`noise_rate`, a step is

    x_s = x_t - D (alpha' x0 + sigma' eps + eps_t eps / sigma) + sqrt(2 eps_t D) z,

the derivatives at t (arXiv:2303.08797; the SDE sampler of SiT, arXiv:2401.08740). The step to
sigma = 0 is to x0.
"""

import math
from typing import ClassVar

from pydantic.dataclasses import dataclass

from ..models.errors import ScheduleError
from ..models.schedule import Node, TimeGrid
from .base import Clock, SolverInfo, register
from .distilled import OneCall
from .noise_rate import FAMILIES, SBDM, ConstantRate, Form, FormRate
from .stochastic import Scale


@register
@dataclass(frozen=True)
class SIEuler(OneCall):
    """One evaluation a step.

    form, norm: the noise; "sigma" with norm 1 is the best of SiT's on straight paths in few steps.
    """

    info: ClassVar[SolverInfo] = SolverInfo(
        name="si-euler",
        order=1,
        source="arXiv:2303.08797; arXiv:2401.08740",
        stochastic=True,
        families=FAMILIES,
    )
    form: Form = "sigma"
    norm: Scale = 1.0

    def combine(self, grid: TimeGrid, t: Node, s: Node) -> tuple[float, float, float]:
        path = FormRate(self.form, self.norm, 1.0, grid.schedule)
        if s.sigma == 0.0:
            return 0.0, s.alpha, 0.0
        fall, eps = path.find_time(t) - path.find_time(s), path.find_eps(t)
        if math.isinf(eps):
            raise ScheduleError(
                f"form={self.form} has infinite noise at t={t.t:g}, where alpha is 0; begin below"
                " it, as with grid=uniform:start=0.999, or take form=sigma"
            )
        d_alpha, d_sigma = path.find_slope(t)
        of_eps = fall * (d_sigma + eps / t.sigma)  # of eps = (x - alpha x0) / sigma
        x = 1.0 - of_eps / t.sigma
        x0 = of_eps * t.alpha / t.sigma - fall * d_alpha
        return x, x0, math.sqrt(2.0 * eps * fall)

    def make_clock(self, grid: TimeGrid) -> Clock:
        if self.form == SBDM:
            return ConstantRate(self.norm).find_clock
        return FormRate(self.form, self.norm, 1.0, grid.schedule).find_clock
