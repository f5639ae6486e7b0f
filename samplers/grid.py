"""Named time grids: where N steps put their N + 1 nodes.

`final` says how a run ends. "zero": the last node is sigma = 0 exactly. "sigma_min": the last node
is the schedule's t_min, and some noise stays. "denoise": as "sigma_min", and then the evaluation
x <- x0(x, t_min), one call more.

Formulas whose last node may be zero (uniform, quadratic, beta, sway, the AYS tables) spread N + 1
nodes; grids in lam cannot reach zero, so they spread N nodes down to t_min and add it. The spacings
of training timesteps (leading, normal, simple, trailing) say where N steps begin, and the end is
added.

All of them take `start`, `end` and, on rectified flow, `shift`; see `GridRange`.
"""

import math
import warnings
from enum import StrEnum
from numbers import Integral
from typing import Any

from ..models.errors import FewstepError, SettingError, UnknownNameError
from ..models.registry import parse_spec
from ..models.schedule import NoiseSchedule, TimeGrid
from ..solvers.artefact import MAX_STEPS
from .placement import place_times


class Final(StrEnum):
    """How a run ends; see the module."""

    ZERO = "zero"
    SIGMA_MIN = "sigma_min"
    DENOISE = "denoise"

    @classmethod
    def named(cls, name: str) -> "Final":
        if name not in list(cls):
            raise UnknownNameError("end rule", name, cls)
        return cls(name)


FAR_ENOUGH = 8.0  # sigma / alpha where noise alone may stand for the state
PLAIN = {"edm": "karras", "flow": "beta"}  # by family, where none below applies; else quadratic
FEW = {  # by kind of process, up to so many evaluations: docs/choosing.md has the figures
    "flow": ((8, "beta:alpha=0.8,beta=0.8,shift=1.2"), (17, "beta:shift=1.5")),
    "vp": (
        (6, "beta:alpha=0.8,beta=0.8"),
        (8, "beta:alpha=0.7,beta=0.7"),
        (50, "beta:alpha=0.8,beta=0.8"),
    ),
    "edm": (
        (8, "logsnr:start=40,end=0.1"),
        (10, "logsnr:end=0.1"),
        (17, "logsnr:end=0.05"),
        (50, "logsnr:end=0.02"),
    ),
}


def choose_default_grid(schedule: NoiseSchedule, nfe: int | None = None) -> str:
    """Returns the default grid of a process and a number of evaluations; None is many.

    Processes that were not measured have the grid of many: flows with a shift or an end of their
    own, and VP that was trained from pure noise.
    """
    plain = PLAIN.get(schedule.family, "quadratic")
    moved = getattr(schedule, "shift", 1.0) != 1.0 or getattr(schedule, "terminal", None)
    if nfe is None or moved or getattr(schedule, "zero_snr", False):
        return plain
    rows = FEW.get(schedule.family.partition("-")[0], ())
    return next((grid for most, grid in rows if nfe <= most), plain)


def time_grid(
    name: str,
    schedule: NoiseSchedule,
    steps: int,
    final: Final = Final.ZERO,
    **settings: Any,
) -> TimeGrid:
    """Returns the named grid of `steps` steps on a schedule; with "denoise" one more step is added.

    name:     also `name:key=value,...`.
    settings: those of `GridRange`, and those of the formula, such as rho of karras.

    Raises:
        UnknownNameError: for a grid that does not exist.
        SettingError: for fewer than one step, or a setting that the grid does not take.
        ScheduleError: if the nodes do not fall.
    """
    check_steps(steps, "a grid needs", " step")
    name, settings = parse_spec(name, settings)
    for key, value in settings.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise SettingError(f"grid {name!r}: {key}={value} is not a finite number")
    try:
        times = place_times(name, schedule, steps, final is Final.ZERO, settings)
    except FewstepError:
        raise
    except (TypeError, ValueError, ArithmeticError) as error:
        raise SettingError(f"grid {name!r}: {error}") from error
    if final is Final.DENOISE:
        times = [*times, schedule.t_zero]
    return TimeGrid.of(schedule, times, denoise=final is Final.DENOISE)


def check_steps(number: int, begin: str, unit: str = "") -> None:
    """Raises SettingError for a number of steps, or of evaluations, that no run has.

    begin, unit: around the number in the message: "nfe must be", or "a grid needs" and " step".
    """
    if isinstance(number, bool) or not isinstance(number, Integral):
        raise SettingError(f"{begin} a whole number{unit and f' of{unit}s'}, not {number!r}")
    if number < 1:
        raise SettingError(f"{begin} at least 1{unit}, not {number}")
    if number > MAX_STEPS:
        raise SettingError(
            f"{begin} at most {MAX_STEPS:,}{unit and f'{unit}s'}, not {number}: float32 states"
            " round away more than further steps gain"
        )


def warn_of_steps(grid: TimeGrid, asked: int, spec: str) -> TimeGrid:
    """Returns the grid that `spec` made for so many steps; warns if it comes to others."""
    if (steps := grid.steps - grid.denoise) != asked:
        warnings.warn(f"grid {spec!r} comes to {steps} steps, not {asked}", stacklevel=2)
    return grid


def warn_of_late_start(grid: TimeGrid) -> None:
    """Warns of a start from noise alone where the network expects part of a picture."""
    first = grid.nodes[0]
    if first.t < grid.schedule.t_max and first.sigma < FAR_ENOUGH * first.alpha:
        warnings.warn(
            f"the run starts from noise alone at t={first.t:g}, where sigma/alpha is only"
            f" {first.kappa:.3g} and the network expects part of a picture; take a start or a"
            f" grid where it is {FAR_ENOUGH:g} or more",
            stacklevel=2,
        )
