"""Euler's method on the probability-flow ODE of EDM and rectified-flow networks."""

from typing import ClassVar

from pydantic.dataclasses import dataclass

from .base import SolverInfo, register
from .ddim import DDIM


@register
@dataclass(frozen=True)
class Euler(DDIM):
    """x_s = x_t + (sigma_s - sigma_t) dx/dsigma, with dx/dsigma = eps (EDM) or eps - x0 (flow).

    In both coordinates this is the DDIM step, term by term.
    """

    info: ClassVar[SolverInfo] = SolverInfo(
        name="euler",
        order=1,
        calls_per_step=1,
        source="arXiv:2206.00364 alg. 1 without lines 6-8; arXiv:2209.03003 eq. 1",
        families=("edm", "flow"),
    )
