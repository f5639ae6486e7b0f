"""Embedded Runge-Kutta methods that choose their steps (ode-*; arXiv:2011.13456, sec. 4.3).

On every process the ODE is stepped in tau = sigma / (alpha + sigma), which falls from at most 1 to
0, for y = x / (alpha + sigma), the state that rectified flow would have at the same lam:

    dy/dtau = (y - x0) / tau = eps - x0.

Nothing is infinite at either end, x0 that does not change is integrated exactly, y is of the size
of the data all along, so that one absolute tolerance fits, and all processes give the same y. With
a tableau (c, a, b), a step from node t to node e of length h = tau_e - tau_t < 0 is

    k_i = dy/dtau at tau_t + c_i h, y + h sum_j a_ij k_j,      y_e = y + h sum_i b_i k_i,

and an embedded method of one order less gives the error d = h sum_i e_i k_i. A trial is accepted if

    E = max over the images of rms(d / max(atol, rtol max(|y|, |y_e|))) <= 1,

and the next is longer by 0.9 E^{-0.85 / q} E'^{0.2 / q}, between 0.2 and 10, where q is the order
and E' is the error accepted before (Hairer, Norsett, Wanner, Solving Ordinary Differential
Equations I, sec. II.4, and II as to E'); after a rejection, by 0.9 E^{-0.85 / q}, at least 0.2. The
step to sigma = 0 is x_s = alpha_s x0.
"""

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass as plain
from functools import partial
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from ..models.errors import NonFiniteError, SettingError
from ..models.schedule import Node, TimeGrid
from .base import Query, SolverInfo, register
from .coordinates import Straight
from .odeint import OdeintSteps
from .tableaux import BOGACKI_SHAMPINE, DORMAND_PRINCE, PRINCE_DORMAND, TSITOURAS, Tableau

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
MaxCalls = Annotated[int, Field(ge=1)]
ODEINT = {"ode-bosh3": "bosh3", "ode-dopri5": "dopri5", "ode-dopri8": "dopri8"}  # in torchdiffeq


def measure_error(wrong: Tensor, atol: float, rtol: float, a: Tensor, b: Tensor) -> float:
    """Returns the largest rms(wrong / max(atol, rtol max(|a|, |b|))) of an image.

    It waits for the device.

    Raises:
        NonFiniteError: if it is no number, so that no step length could be chosen.
    """
    allowed = torch.maximum(a.abs(), b.abs()).mul_(rtol).clamp_(min=atol)
    wide = torch.promote_types(wrong.dtype, torch.float32)
    error = float((wrong / allowed).flatten(1).to(wide).square().mean(1).max().sqrt())
    if not math.isfinite(error):
        raise NonFiniteError(
            "the error estimate of an adaptive step is not finite; the network returned NaN or"
            " infinity, or its numbers overflow; try --dtype fp32"
        )
    return error


def check_calls(name: str, calls: int, node: Node, *, most: int) -> None:
    """Raises SettingError if a run has made more calls than it may."""
    if calls >= most:
        raise SettingError(
            f"{name} has made {calls} calls and is only at sigma/alpha = {node.kappa:.4g}; raise"
            f" its tolerances (atol, rtol), or max_calls above {most}"
        )


@dataclass(frozen=True)
class Embedded:
    """Runge-Kutta pairs that choose their own steps.

    The error is the largest of the batch, so the steps, and within the tolerances the images,
    depend on which images are sampled together.

    rtol:      relative tolerance of y.
    atol:      absolute tolerance of y.
    h_init:    length of the first trial in tau.
    max_calls: of one run; more raise SettingError.
    backend:   "own", or "torchdiffeq" for `torchdiffeq.odeint` in the same coordinate, with the
               tolerances as they are meant there: rms over the batch, atol + rtol max(|y|, |y_e|).
    """

    info: ClassVar[SolverInfo]
    tableau: ClassVar[Tableau]
    rtol: Positive = 1e-5
    atol: Positive = 1e-5
    h_init: Positive = 0.05
    max_calls: MaxCalls = 10_000
    backend: Literal["own", "torchdiffeq"] = "own"

    def on(self, grid: TimeGrid) -> "EmbeddedSteps | OdeintSteps":
        line = Straight.flow_of(grid)
        return EmbeddedSteps(line, self) if self.backend == "own" else self._hand_over(line)

    def _hand_over(self, line: Straight) -> OdeintSteps:
        """Returns the steps that torchdiffeq makes; raises SettingError for a method it lacks."""
        name = self.info.name
        if name not in ODEINT:
            raise SettingError(
                f"torchdiffeq has no {name}; backend=torchdiffeq goes with {', '.join(ODEINT)}"
            )
        check = partial(check_calls, name, most=self.max_calls)
        options = {"first_step": self.h_init}
        return OdeintSteps(line, ODEINT[name], self.rtol, self.atol, options, check)


def _describe(name: str, order: int, calls: int, doi: str) -> SolverInfo:
    source = f"arXiv:2011.13456 sec. 4.3; doi:{doi}"
    return SolverInfo(
        name=f"ode-{name}", order=order, calls_per_step=calls, source=source, adaptive=True
    )


@register
@dataclass(frozen=True)
class Dopri5(Embedded):
    """Dormand and Prince, order 5 with 4 inside: 6 evaluations a trial, and one to begin."""

    tableau: ClassVar[Tableau] = DORMAND_PRINCE
    info: ClassVar[SolverInfo] = _describe("dopri5", 5, 6, "10.1016/0771-050X(80)90013-3")


@register
@dataclass(frozen=True)
class Tsit5(Embedded):
    """Tsitouras, order 5 with 4 inside: as ode-dopri5, with smaller error terms."""

    tableau: ClassVar[Tableau] = TSITOURAS
    info: ClassVar[SolverInfo] = _describe("tsit5", 5, 6, "10.1016/j.camwa.2011.06.002")


@register
@dataclass(frozen=True)
class Bosh3(Embedded):
    """Bogacki and Shampine, order 3 with 2 inside: 3 evaluations a trial, and one to begin."""

    tableau: ClassVar[Tableau] = BOGACKI_SHAMPINE
    info: ClassVar[SolverInfo] = _describe("bosh3", 3, 3, "10.1016/0893-9659(89)90079-7")


@plain(frozen=True, slots=True)
class EmbeddedSteps:
    """As many accepted trials per step as it takes; the state is the number of calls so far.

    Slopes are formed here, not merged into weights of x0: the error is a small difference of them.
    """

    line: Straight
    settings: Embedded

    def init(self) -> int:
        return 0

    def step(
        self, x: Tensor, state: int, t: Node, s: Node
    ) -> Generator[Query, Tensor, tuple[Tensor, int]]:
        """Steps from t to s; by x0 alone if s is clean data."""
        if s.sigma == 0.0:
            return (yield x, t) * s.alpha, state + 1
        y = x / self.line.scale(t)
        k = yield from self._measure_slope(y, t)
        y, state = yield from self._run_trials(y, k, state + 1, t, s)
        return y * self.line.scale(s), state

    def _run_trials(
        self, y: Tensor, k: Tensor, calls: int, t: Node, s: Node
    ) -> Generator[Query, Tensor, tuple[Tensor, int]]:
        """Makes trials from t, where the slope is k, until one that ends at s is accepted."""
        settings, tau = self.settings, self.line.tau
        pace = Pace(settings.info.order, settings.h_init)
        while t is not s:
            e = s if pace.h > (tau(t) - tau(s)) * (1 - 1e-9) else self.line.node_at(tau(t) - pace.h)
            h = tau(e) - tau(t)
            y_e, slopes = yield from self._try_step(y, k, t, e)
            calls += len(slopes) - 1
            wrong = _add_slopes(torch.zeros_like(y), settings.tableau.e, slopes, h)
            if pace.accepts(measure_error(wrong, settings.atol, settings.rtol, y, y_e), -h):
                y, k, t = y_e, slopes[-1], e
            if t is not s:
                check_calls(settings.info.name, calls, t, most=settings.max_calls)
        return y, calls

    def _try_step(
        self, y: Tensor, k: Tensor, t: Node, e: Node
    ) -> Generator[Query, Tensor, tuple[Tensor, list[Tensor]]]:
        """Returns (y_e, all slopes) from y and its slope k at t; the last stage is the step."""
        tableau, slopes, h, y_i = self.settings.tableau, [k], self.line.tau(e) - self.line.tau(t), y
        for share, row in zip(tableau.c[1:], tableau.a, strict=True):
            y_i = _add_slopes(y, row, slopes, h)
            slopes.append(
                (yield from self._measure_slope(y_i, self.line.node_between(t, e, share)))
            )
        return y_i, slopes

    def _measure_slope(self, y: Tensor, node: Node) -> Generator[Query, Tensor, Tensor]:
        """Returns dy/dtau = (y - x0) / tau at the node."""
        scale = self.line.scale(node)
        x0 = yield (y if scale == 1.0 else y * scale), node
        return torch.sub(y, x0).mul_(scale / node.sigma)


class Pace:
    """The length of the next trial of a method of order q, by its errors."""

    def __init__(self, q: int, h: float) -> None:
        self.q, self.h = q, h
        self.before, self.rejected = 1e-4, False

    def accepts(self, error: float, h: float) -> bool:
        """Returns whether a trial of length h is good enough; sets the next length."""
        error = max(error, 1e-10)
        factor = 0.9 * error ** (-0.85 / self.q)
        if error > 1.0:
            self.h, self.rejected = h * max(factor, 0.2), True
            return False
        factor *= self.before ** (0.2 / self.q)
        self.h = h * min(max(factor, 0.2), 1.0 if self.rejected else 10.0)
        self.before, self.rejected = max(error, 1e-4), False
        return True


def _add_slopes(y: Tensor, weights: Sequence[float], slopes: Sequence[Tensor], h: float) -> Tensor:
    """Returns y + h sum_i weights_i slopes_i, a new tensor."""
    (first, k), *rest = [(w, k) for w, k in zip(weights, slopes, strict=True) if w]
    out = torch.add(y, k, alpha=h * first)
    for w, k in rest:
        out.add_(k, alpha=h * w)
    return out


@register
@dataclass(frozen=True)
class Dopri8(Embedded):
    """Order 8 with 7 inside: 13 evaluations a trial, and one to begin; for tight tolerances."""

    tableau: ClassVar[Tableau] = PRINCE_DORMAND
    info: ClassVar[SolverInfo] = _describe("dopri8", 8, 13, "10.1016/0771-050X(81)90010-3")
