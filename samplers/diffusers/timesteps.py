"""From what pipelines call times to grids: labels of the network, and sigmas."""

import math
from collections.abc import Sequence
from itertools import pairwise
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from ...models.errors import ScheduleError, SettingError
from ...models.schedule import (
    EDM,
    Cosine,
    Node,
    NoiseSchedule,
    RectifiedFlow,
    TimeGrid,
    Trigonometric,
    VPDiscrete,
    VPLinear,
)
from ..ramps import find_lam_ends
from ..recipes import find_listed

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
        raise ScheduleError(
            f"{name} hold only the end of a run; list the times at which steps begin"
        )
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


def refuse_final(schedule: RectifiedFlow, sigmas: Sequence[float]) -> None:
    """Raises SettingError for the final times of a recipe, as `sigmas` are shifted once more."""
    taus = [tau for tau in sigmas if tau > 0.0]
    if schedule.shift == 1.0 or (name := find_listed(taus)) is None:
        return
    scale = 1.0 if schedule.time_scale is None else schedule.time_scale
    shifted = " ".join(f"{schedule.at(tau).sigma:.4g}" for tau in taus)
    raise SettingError(
        f"these sigmas are the final times of {name}, and the shift of this config would make them"
        f" {shifted}; take recipe={name!r}, or pass"
        f" timesteps={[round(scale * tau, 4) for tau in taus]}"
    )


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
        case RectifiedFlow(time_scale=scale, noise_at=end) if scale:
            return schedule.unshift(label / scale if end else 1.0 - label / scale)
        case VPDiscrete(num_train_timesteps=n):
            return (label + 1.0) / n
        case VPLinear() | Cosine() | Trigonometric() if scale := schedule.time_scale:
            return label / scale
        case EDM(time_label="sigma", time_scale=scale):
            return label / scale
        case EDM(time_scale=scale):
            return math.exp(min(4.0 * label / scale, 700.0))
    raise ScheduleError(f"labels of {schedule.family} schedules cannot be read back")


class Labels:
    """The times that a network gets in a run, one per evaluation, on the device and on the host.

    tensor: float32 (n,), what pipelines loop over.
    values: the same on the host.
    """

    def __init__(
        self, values: Sequence[float] = (), device: str | torch.device | None = None
    ) -> None:
        self.tensor = torch.tensor(values, dtype=torch.float32, device=device)
        self.values = list(values)
        self.largest = max(map(abs, self.values), default=0.0)
        self.rounding = ROUNDING * self.largest

    def find(self, label: float, reach: float | None = None) -> list[int]:
        """Returns the evaluations with this label, or with one at most reach from it."""
        reach = self.rounding if reach is None else reach
        return [n for n, value in enumerate(self.values) if abs(value - label) <= reach]

    def find_begin(self, timestep: Any, stages: Sequence[int]) -> int:
        """Returns the evaluation that a run begins with whose first timestep is this.

        Of several with one label it is the first call of a step. For a timestep on an accelerator
        that is no entry of `tensor` the host waits.

        stages: which call of its step each evaluation is.

        Raises:
            SettingError: if no evaluation has that label, or several different ones may be meant.
        """
        if (entry := self._find_entry(timestep)) is not None:
            return entry
        if (label := _read_label(timestep, wait=True)) is None:
            return 0
        close = self.find(label) or self.find(label, self._find_reach(timestep))
        if not close:
            raise SettingError(
                f"timestep {label:g} is not among the labels of this run, which go from"
                f" {self.values[0]:g} to {self.values[-1]:g}; pass the entries of"
                " scheduler.timesteps"
            )
        first, last = self.values[close[0]], self.values[close[-1]]
        if close[0] > 0 and len(self.find(first)) < len(close):
            raise SettingError(
                f"timestep {label:g} is rounded and may be {first:g} or {last:g}; pass the entries"
                " of scheduler.timesteps as they are"
            )
        return close[0] and min(close, key=lambda n: (stages[n] > 0, n))

    def check(self, timestep: Any, n: int) -> None:
        """Raises SettingError if a timestep is not that of evaluation n.

        One on an accelerator that is no entry of `tensor` passes: the host would have to wait.
        """
        entry, reach = self._find_entry(timestep), self.rounding
        if entry == n:
            return
        if entry is None:
            label, reach = _read_label(timestep, wait=False), self._find_reach(timestep)
        else:
            label = self.values[entry]
        if label is not None and not abs(label - self.values[n]) <= reach:
            raise SettingError(
                f"timestep {label:g} is not that of evaluation {n + 1}, {self.values[n]:g}; pass"
                " the entries of scheduler.timesteps in their order, and call set_timesteps before"
                " another run; a second state is stepped by copy.deepcopy(scheduler)"
            )

    def check_tokens(self, timesteps: Tensor, n: int) -> None:
        """Raises SettingError unless the times (B, T) of all tokens are that of evaluation n.

        Where they are no view of an entry of `tensor`, the host waits for them.
        """
        if self._find_entry(timesteps) == n:
            return
        for label in set(timesteps.flatten().tolist()):
            if not abs(label - self.values[n]) <= self.rounding:
                raise SettingError(
                    f"per_token_timesteps gives some tokens the time {label:g} in a step at"
                    f" {self.values[n]:g}, and a step of ours has one time; leave out the images"
                    " that condition some of the frames, or keep FlowMatchEulerDiscreteScheduler"
                )

    def _find_entry(self, timestep: Any) -> int | None:
        """Returns the entry of `tensor` that this is a view of, which its address tells."""
        if not isinstance(timestep, Tensor) or timestep.device != self.tensor.device:
            return None
        if timestep.dtype is not torch.float32 or not _is_one_value(timestep):
            return None
        start = self.tensor.data_ptr()  # 0 where a device has no addresses
        entry, rest = divmod(timestep.data_ptr() - start, 4)
        return entry if start and rest == 0 and 0 <= entry < len(self.values) else None

    def _find_reach(self, timestep: Any) -> float:
        """Returns how far its type may have moved a timestep from the label it stands for."""
        if isinstance(timestep, Tensor) and timestep.is_floating_point():
            return max(ROUNDING, torch.finfo(timestep.dtype).eps) * self.largest
        if isinstance(timestep, Tensor | Integral):
            return 1.0 - self.rounding  # a whole number, rounded or cut off
        return self.rounding


def _is_one_value(tensor: Tensor) -> bool:
    """Tells by its shape whether a tensor holds one value, be it expanded."""
    return tensor.ndim == 0 or all(
        size == 1 or stride == 0 for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
    )


def _read_label(timestep: Any, wait: bool) -> float | None:
    """Returns a label as a number; None for none, or if the host would have to wait for it."""
    if timestep is None or (isinstance(timestep, Tensor) and not (wait or timestep.is_cpu)):
        return None
    try:
        each = timestep.flatten().tolist() if isinstance(timestep, Tensor) else [timestep]
        (label,) = {float(value) for value in each}
    except (TypeError, ValueError) as error:
        shown = f"a tensor of {tuple(timestep.shape)}" if isinstance(timestep, Tensor) else timestep
        raise SettingError(f"timestep must be one label of the network, not {shown}") from error
    return label
