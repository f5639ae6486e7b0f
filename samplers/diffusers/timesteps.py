"""From what pipelines call times to grids: labels of the network, and sigmas."""

import math
from collections.abc import Sequence
from itertools import pairwise

from ...models.errors import ScheduleError, SettingError
from ...models.schedule import (
    EDM,
    Cosine,
    Node,
    NoiseSchedule,
    RectifiedFlow,
    TimeGrid,
    VPDiscrete,
    VPLinear,
)
from ..grid import find_lam_ends

ROUNDING = 1e-6  # of float32 labels, relative


def find_node(schedule: NoiseSchedule, label: float) -> Node:
    """Returns the node of which the network is told `label`: the inverse of `schedule.label`.

    Raises:
        ScheduleError: if no node of the schedule has that label.
    """
    t = _find_time(schedule, label)
    if not schedule.t_zero <= t < schedule.t_max * (1.0 + ROUNDING):
        clean = schedule.t_zero if schedule.family == "flow" else schedule.t_min
        first, last = (schedule.label(schedule.at(end)) for end in (schedule.t_max, clean))
        raise ScheduleError(
            f"timestep {label:g} lies outside the {schedule.family} schedule, whose labels fall"
            f" from {first:g} to {last:g}"
        )
    return schedule.at(min(t, schedule.t_max))


def make_grid_at_labels(schedule: NoiseSchedule, labels: Sequence[float]) -> TimeGrid:
    """Returns the grid whose steps begin at these falling labels, and which ends at sigma = 0."""
    values = [float(label) for label in labels]
    _check_falling("timesteps", values)
    times = [find_node(schedule, label).t for label in values]
    return _make_grid(schedule, "timesteps", times)


def make_grid_at_sigmas(schedule: NoiseSchedule, sigmas: Sequence[float]) -> TimeGrid:
    """Returns the grid whose steps begin at these falling sigmas, and which ends at sigma = 0.

    On rectified flow they are times before the shift, as diffusers reads them (the shift is applied
    once, by the schedule); elsewhere sigma / alpha.
    """
    values = [float(value) for value in sigmas]
    _check_falling("sigmas", values)
    if isinstance(schedule, RectifiedFlow):
        _check_unshifted(schedule, values)
        return _make_grid(schedule, "sigmas", values)
    noisy = values[:-1] if values and values[-1] == 0.0 else values
    return _make_grid(schedule, "sigmas", [_find_kappa(schedule, value).t for value in noisy])


def _make_grid(schedule: NoiseSchedule, name: str, times: Sequence[float]) -> TimeGrid:
    """Returns the grid of these times and the end, which may be the last of them already."""
    begin = [t for t in times if t != schedule.t_zero]
    if not begin:
        raise ScheduleError(f"{name} list nothing but the end of a run; list where steps begin")
    return TimeGrid.of(schedule, [*begin, schedule.t_zero])


def _check_falling(name: str, values: Sequence[float]) -> None:
    for value, following in pairwise(values):
        if not value > following:
            raise ScheduleError(
                f"{name} must fall, and {value:g} is followed by {following:g}; list them from"
                " noise to data, each one once"
            )


def _check_unshifted(schedule: RectifiedFlow, values: Sequence[float]) -> None:
    if schedule.terminal is not None:
        raise SettingError(
            "this network stretches its own times to end at"
            f" {schedule.terminal:g} (shift_terminal), so it takes no sigmas; pass timesteps="
        )
    for value in values:
        if not 0.0 <= value <= 1.0:
            raise ScheduleError(
                f"sigma={value:g} lies outside the network's schedule, which runs from 1 to 0"
                " before the shift"
            )


def is_ramp(sigmas: Sequence[float]) -> bool:
    """Returns whether sigmas are 1, 1 - 1/n, .., 1/n, which flow pipelines pass unasked."""
    n = len(sigmas)
    return n > 0 and all(abs(float(v) - (1.0 - i / n)) < 1e-6 for i, v in enumerate(sigmas))


def _find_kappa(schedule: NoiseSchedule, kappa: float) -> Node:
    if not kappa > 0.0:
        raise ScheduleError(f"sigma={kappa:g} must be positive; only the last may be 0")
    low, high = find_lam_ends(schedule)
    lam = -math.log(kappa)
    if not low - 0.01 < lam < high + 0.01:
        raise ScheduleError(
            f"sigma={kappa:g} lies outside the network's schedule, which runs from"
            f" {math.exp(-low):.4g} to {math.exp(-high):.4g}"
        )
    return schedule.at_lam(min(max(lam, low), high))


def _find_time(schedule: NoiseSchedule, label: float) -> float:
    match schedule:
        case RectifiedFlow(shift=k, time_scale=scale, noise_at=end) if scale:
            tau = label / scale if end else 1.0 - label / scale
            return tau / (k - (k - 1.0) * tau)
        case VPDiscrete(num_train_timesteps=n):
            return (label + 1.0) / n
        case VPLinear(time_scale=scale) | Cosine(time_scale=scale) if scale:
            return label / scale
        case EDM(time_label="sigma"):
            return label
        case EDM():
            return math.exp(min(4.0 * label, 700.0))
    raise ScheduleError(f"labels of {schedule.family} schedules cannot be read back")
