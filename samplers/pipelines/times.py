"""From what pipelines call times to grids: labels of the network, and sigmas."""

import math
from collections.abc import Sequence

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
from ..grid import lam_ends

ROUNDING = 1e-6  # of float32 labels, relative


def node_at(schedule: NoiseSchedule, label: float) -> Node:
    """The node of which the network is told `label`: the inverse of `schedule.label`.

    Raises:
        ScheduleError: if no node of the schedule has that label.
    """
    t = _time_of(schedule, label)
    if t > schedule.t_max:  # by rounding only, else `at` refuses it
        t = schedule.t_max if t < schedule.t_max * (1.0 + ROUNDING) else t
    return schedule.at(t)


def grid_at_labels(schedule: NoiseSchedule, labels: Sequence[float]) -> TimeGrid:
    """Steps that begin at these falling labels, and end at sigma = 0."""
    nodes = [node_at(schedule, float(label)) for label in labels]
    return TimeGrid.of(schedule, [*(node.t for node in nodes), schedule.t_zero])


def grid_at_sigmas(schedule: NoiseSchedule, sigmas: Sequence[float]) -> TimeGrid:
    """Steps that begin at these falling sigmas, and end at sigma = 0; a zero at the end is dropped.

    On rectified flow they are times before the shift, as diffusers reads them (the shift is applied
    once, by the schedule); elsewhere sigma / alpha.
    """
    values = [float(value) for value in sigmas]
    noisy = values[:-1] if values and values[-1] == 0.0 else values
    if isinstance(schedule, RectifiedFlow):
        if schedule.terminal is not None:
            raise SettingError(
                "this network stretches its own times to end at"
                f" {schedule.terminal:g} (shift_terminal), so it takes no sigmas; pass timesteps="
            )
        return TimeGrid.of(schedule, [*noisy, schedule.t_zero])
    return TimeGrid.of(schedule, [*(_at_kappa(schedule, k).t for k in noisy), schedule.t_zero])


def is_ramp(sigmas: Sequence[float]) -> bool:
    """Whether sigmas are 1, 1 - 1/n, .., 1/n, which flow pipelines pass where nobody asked."""
    n = len(sigmas)
    return n > 0 and all(abs(float(v) - (1.0 - i / n)) < 1e-6 for i, v in enumerate(sigmas))


def _at_kappa(schedule: NoiseSchedule, kappa: float) -> Node:
    if not kappa > 0.0:
        raise ScheduleError(f"sigma={kappa:g} must be positive; only the last may be 0")
    low, high = lam_ends(schedule)
    lam = -math.log(kappa)
    if not low - 0.01 < lam < high + 0.01:
        raise ScheduleError(
            f"sigma={kappa:g} lies outside the network's schedule, which runs from"
            f" {math.exp(-low):.4g} to {math.exp(-high):.4g}"
        )
    return schedule.at_lam(min(max(lam, low), high))


def _time_of(schedule: NoiseSchedule, label: float) -> float:
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
            return math.exp(4.0 * label)
    raise ScheduleError(f"labels of {schedule.family} schedules cannot be read back")
