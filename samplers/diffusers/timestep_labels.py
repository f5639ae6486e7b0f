"""The labels of a run's evaluations, by which a pipeline says which of them it makes."""

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from ...models.errors import SettingError

ROUNDING = 1e-6  # of float32 labels, relative to the largest


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
        return [n for n, own in enumerate(self.values) if abs(own - label) <= reach]

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
                " another run"
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
        held = f"a tensor of {tuple(timestep.shape)}" if isinstance(timestep, Tensor) else timestep
        raise SettingError(f"timestep must be one label of the network, not {held}") from error
    return label
