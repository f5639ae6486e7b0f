"""Where the nodes of a named grid lie: a formula, table or spacing over a range of the process."""

import math
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any

from ..models.errors import ScheduleError, SettingError, UnknownNameError
from ..models.schedule import NoiseSchedule, RectifiedFlow
from .ramps import AYS, FORMULAS, find_lam_ends, place_ays, stretch
from .spacing import SPACINGS, LabelRange

ROUNDING = 1e-9  # relative, of times that are one


@dataclass(frozen=True)
class GridRange:
    """The range over which a grid spreads its nodes; the settings that every grid takes.

    start: time of the first node, in the t of the process; None is t_max, and on rectified flow
           1 - 1e-3 of tau for grids in lam. Spacings of labels take the nearest one.
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
                raise SettingError(f"grid {name!r}: {key}={value!r} is not a number")
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
        if name in AYS or (name in FORMULAS and FORMULAS[name].coordinate == "lam"):
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
    return sorted([*FORMULAS, *AYS, *SPACINGS])


def place_times(
    name: str, schedule: NoiseSchedule, steps: int, zero: bool, settings: dict[str, Any]
) -> list[float]:
    """Returns the times of all nodes but that of a denoising evaluation."""
    limits = settings.keys() & vars(GridRange()).keys()
    span = GridRange(**{key: settings[key] for key in limits})
    rest = {key: settings[key] for key in settings.keys() - limits}
    if name not in list_grids():
        raise UnknownNameError("grid", name, list_grids())
    span.check(name, schedule)
    if name in SPACINGS:
        return _space(name, schedule, span, (steps, zero), rest)
    formula = FORMULAS.get(name)
    if formula and formula.flow and not isinstance(schedule, RectifiedFlow):
        raise ScheduleError(
            f"grid {name!r} lists times of rectified flow, and this process is {schedule.family};"
            " take beta, or list the times"
        )
    open_end = formula is not None and not formula.to_zero
    apart = zero and (open_end or bool(span.end))  # the step to zero, which no formula spans
    last = replace(span, end=schedule.t_zero) if zero and not apart else span
    times = _spread(name, schedule, steps + (not apart), last, rest)
    terminal = getattr(schedule, "terminal", None)
    if name == "uniform" and terminal is not None and (span.start, span.end) == (None, None):
        times = stretch(schedule, times, terminal)
    return [*times, schedule.t_zero] if apart else times


def _spread(
    name: str, schedule: NoiseSchedule, n: int, span: GridRange, settings: dict[str, Any]
) -> list[float]:
    """Returns n times of a formula or a table, the ends exactly as they are given."""
    start, end = span.start, span.end
    if name in AYS:
        times = place_ays(AYS[name], schedule, (start, end), n, **settings)
    elif FORMULAS[name].coordinate == "lam":
        low, high = find_lam_ends(schedule, start, end)
        lams = FORMULAS[name].place(low, high, n, **settings)
        times = [schedule.at_lam(lam).t for lam in lams]
    else:
        start = schedule.t_max if start is None else start
        end = schedule.t_min if end is None else end
        axis = _GridAxis(schedule, FORMULAS[name].coordinate == "sigma")
        ends = (axis.read(span.unshift(t)) for t in (start, end))
        values = FORMULAS[name].place(*ends, n, **settings)
        times = [span.shift_time(axis.find_time(value)) for value in values]
    if start is not None:
        times[0] = start
    if end is not None and n > 1:
        times[-1] = end
    return times


@dataclass(frozen=True)
class _GridAxis:
    """The values that a formula spreads: times, or sigma as `Formula` has it."""

    schedule: NoiseSchedule
    sigma: bool

    def read(self, t: float) -> float:
        """Returns the value at a time."""
        node = self.schedule.at(t)
        if not self.sigma:
            return t
        return node.sigma if isinstance(self.schedule, RectifiedFlow) else node.kappa

    def find_time(self, value: float) -> float:
        """Returns the time of a value."""
        if not self.sigma:
            return value
        if isinstance(self.schedule, RectifiedFlow):
            return self.schedule.unshift(value)
        return self.schedule.at_lam(-math.log(value)).t


def _space(
    name: str,
    schedule: NoiseSchedule,
    span: GridRange,
    size: tuple[int, bool],
    settings: dict[str, Any],
) -> list[float]:
    """Returns the times of a spacing; size: its steps, and whether they end at zero."""
    (steps, zero), end = size, span.end or None
    if not zero and end is None and span.shift is not None:
        end = schedule.t_min  # which no shift moves
    points = steps + (not zero)  # nodes above zero
    ends = (None if t is None else span.unshift(t) for t in (span.start, end))
    labels, place = LabelRange.of(schedule, *ends), SPACINGS[name].place
    if end is None:
        times = place(labels, steps, **settings)
        if not zero and times[-1] > schedule.t_min * (1.0 + ROUNDING):
            times.append(schedule.t_min)
        elif not zero:
            times = place(labels, points, **settings)
    elif SPACINGS[name].inclusive or points == 1:
        times = place(labels, points, **settings)
    else:
        times = [*place(labels.leave_last_out(), points - 1, **settings), labels.time(labels.low)]
    return [*map(span.shift_time, times), *[schedule.t_zero] * zero]
