"""Named time grids: where N steps put their N + 1 nodes.

`final` says how a run ends. "zero": the last node is sigma = 0 exactly. "sigma_min": the last node
is the schedule's t_min, and some noise stays. "denoise": as "sigma_min", and then the evaluation
x <- x0(x, t_min), one call more.

Grids in t (uniform, quadratic, beta, the AYS tables) spread N + 1 nodes and let the last be zero;
grids in lam cannot reach zero, so they spread N nodes down to t_min and add it. The spacings of
training timesteps (leading, lcm, linspace, trailing) say where N steps begin, and the end is added.

All formulas take `start`, `end` and, on rectified flow, `shift`; see `Range`.
"""

import math
from dataclasses import dataclass, replace
from enum import StrEnum
from numbers import Integral, Real
from typing import Any

from ..models.errors import FewstepError, SettingError, UnknownNameError
from ..models.registry import parse_spec
from ..models.schedule import NoiseSchedule, RectifiedFlow, TimeGrid
from ..solvers.artefact import MAX_STEPS
from .ramps import AYS, IN_LAM, IN_TIME, find_lam_ends, place_ays, stretch
from .spacing import SPACINGS


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


@dataclass(frozen=True)
class Range:
    """The range over which a formula spreads its nodes; the settings that every formula takes.

    start: time of the first node, in the t of the process; None is t_max, and on rectified flow
           1 - 1e-3 of tau for grids in lam. The run starts there from the same noise.
    end:   time of the last node at which the network is evaluated. A run that ends at zero goes
           there in one step. None is t_zero or t_min, as the grid and the end rule have it.
    shift: on rectified flow, moves the times between both ends to
           shift t / (1 + (shift - 1) t) of even ones: more steps on noise. None is no shift.
    """

    start: float | None = None
    end: float | None = None
    shift: float | None = None

    @property
    def given(self) -> list[str]:
        """The settings that are given."""
        return [name for name, value in vars(self).items() if value is not None]

    def check(self, name: str, schedule: NoiseSchedule) -> None:
        """Raises SettingError if grid `name` cannot be spread so on this schedule."""
        for key in self.given:
            value = getattr(self, key)
            if isinstance(value, bool) or not isinstance(value, Real):
                raise SettingError(f"grid {name!r}: {key}={value!r} is no number")
        start, low = schedule.t_max if self.start is None else self.start, schedule.t_zero
        end = low if self.end is None else self.end
        if not low < start <= schedule.t_max:
            raise SettingError(
                f"grid {name!r}: start={start:g} lies outside the times of this process; take one"
                f" above {low:g} (data) and up to {schedule.t_max:g} (noise)"
            )
        if not low <= end < start:
            raise SettingError(
                f"grid {name!r}: end={end:g} must lie below the start, {start:g}, and not below"
                f" {low:g} (data)"
            )
        self._check_shift(name, schedule)

    def _check_shift(self, name: str, schedule: NoiseSchedule) -> None:
        if self.shift is None:
            return
        if not isinstance(schedule, RectifiedFlow):
            raise SettingError(
                f"grid {name!r}: a {schedule.family} process has no shift; drop it, or take"
                f" start below {schedule.t_max:g}"
            )
        if name in IN_LAM:
            raise SettingError(
                f"grid {name!r} is placed in lam, where a shift moves nothing between two ends;"
                f" write uniform:shift={self.shift:g}"
            )
        if not self.shift > 0.0:
            raise SettingError(
                f"grid {name!r}: shift={self.shift:g} must be positive; 1 is no shift"
            )

    def shift_time(self, t: float) -> float:
        """Returns a time after the shift."""
        return _shift(t, 1.0 if self.shift is None else self.shift)

    def unshift(self, t: float) -> float:
        """Returns the time that is shifted to t."""
        return _shift(t, 1.0 if self.shift is None else 1.0 / self.shift)


def _shift(t: float, k: float) -> float:
    return t if k == 1.0 else k * t / (1.0 + (k - 1.0) * t)


def list_grids() -> list[str]:
    """Returns all named grids, sorted."""
    return sorted([*IN_TIME, *AYS, *IN_LAM, *SPACINGS])


PLAIN = {"edm": "karras", "flow": "beta"}  # by family, where none below applies; else quadratic
FEW = {  # by kind of process, up to so many evaluations: docs/choosing.md has the figures
    "flow": ((8, "beta"), (17, "beta:shift=1.5")),
    "vp": ((20, "uniform"),),
    "edm": (
        (8, "karras:start=40,end=0.1"),
        (10, "karras:end=0.1"),
        (14, "karras:end=0.05"),
        (20, "karras:end=0.02"),
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
    settings: start, end and shift, see `Range`, and those of the formula, such as rho of karras.

    Raises:
        UnknownNameError: for a grid that does not exist.
        SettingError: for fewer than one step, or a setting that the grid does not take.
        ScheduleError: if the nodes do not fall.
    """
    check_steps(steps, "a grid needs", " step")
    name, settings = parse_spec(name, settings)
    for key, value in settings.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise SettingError(f"grid {name!r}: {key}={value} is no finite number")
    try:
        times = _place_times(name, schedule, steps, final is Final.ZERO, settings)
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


def _place_times(
    name: str, schedule: NoiseSchedule, steps: int, zero: bool, settings: dict[str, Any]
) -> list[float]:
    """Returns the times of all nodes but that of a denoising evaluation."""
    limits = settings.keys() & vars(Range()).keys()
    span = Range(**{key: settings[key] for key in limits})
    rest = {key: settings[key] for key in settings.keys() - limits}
    if name in SPACINGS or name in AYS:
        _refuse_range(name, span)
        end = schedule.t_zero if zero else schedule.t_min
        if name in AYS:
            return place_ays(AYS[name], schedule, steps + 1, end, **rest)
        return [*SPACINGS[name](schedule, steps, **rest), end]
    if name not in IN_TIME and name not in IN_LAM:
        raise UnknownNameError("grid", name, list_grids())
    span.check(name, schedule)
    apart = zero and (name in IN_LAM or bool(span.end))  # the step to zero, which no formula spans
    last = replace(span, end=schedule.t_zero) if zero and not apart else span
    times = _spread(name, schedule, steps + (not apart), last, rest)
    terminal = getattr(schedule, "terminal", None)
    if name == "uniform" and terminal is not None and (span.start, span.end) == (None, None):
        times = stretch(schedule, times, terminal)
    return [*times, schedule.t_zero] if apart else times


def _refuse_range(name: str, span: Range) -> None:
    """Raises SettingError for a range of a grid whose times are listed."""
    if span.given:
        raise SettingError(
            f"grid {name!r} has times of its own and takes no {span.given[0]}; take uniform,"
            " quadratic, beta, logsnr or karras"
        )


def _spread(
    name: str, schedule: NoiseSchedule, n: int, span: Range, settings: dict[str, Any]
) -> list[float]:
    """Returns n times of a formula, the ends exactly as they are given."""
    if name in IN_LAM:
        low, high = find_lam_ends(schedule, span.start, span.end)
        times = [schedule.at_lam(lam).t for lam in IN_LAM[name](low, high, n, **settings)]
        start, end = span.start, span.end
    else:
        start = schedule.t_max if span.start is None else span.start
        end = schedule.t_min if span.end is None else span.end
        times = IN_TIME[name](span.unshift(start), span.unshift(end), n, **settings)
        times = [span.shift_time(t) for t in times]
    if start is not None:
        times[0] = start
    if end is not None and n > 1:
        times[-1] = end
    return times
