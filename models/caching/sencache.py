"""SenCache: the change since the last full call, times how sensitive the network is to it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass as plain
from typing import ClassVar

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from ..devices import send
from ..errors import SettingError
from .base import CacheInfo, CallPosition, Gated, Keep, check_threshold, register
from .calls import CallState
from .gate import Gate, GateMemory
from .predictors import PredictorSetting, choose_predictor

Slopes = tuple[float, float, float]  # J_x and J_t of a call, and its time


@register
@dataclass(frozen=True)
class SenCache(Gated):
    """Skips while input and time have moved too little to matter, since the last full call a.

    error_i = J_x rms(x_i - x_a) + J_t |t_i - t_a|,
    with input x and time t, and as measured at call a how much the answer v of the network changes,

    J_x = |v(x', t) - v(x, t)| / |x' - x| along a step,   J_t = rms(v(x, t') - v(x, t)) / |t' - t|.

    slopes:    J_x, J_t and t of each call of a run; `fewstep calibrate` measures them for one
               network, solver, grid and number of steps.
    threshold: 0 is off. Published for Wan 2.1: .07 with max_consecutive=10, and .005 early; the
               released gate divides by the root of the number of elements of one image, as here.
    early:     the threshold in the first fifth of the calls; None is the same.
    warmup, final, max_consecutive, reduce, together: see `Gated`; the released gate looks at the
               first image of a batch alone.
    predictor: of the last block's output, a line by default; published is reuse.
    """

    info: ClassVar[CacheInfo] = CacheInfo(
        name="sencache",
        decides="change of input and time, times calibrated sensitivities",
        keeps="the last block's output",
        runs_on="transformers and UNets",
        source="SenCache",
    )

    threshold: float = 0.07
    early: float | None = None
    warmup: int = 1
    max_consecutive: int = 10
    slopes: tuple[Slopes, ...] | None = None
    predictor: PredictorSetting | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.early is not None:
            check_threshold(self.early)
        for sizes in self.slopes or ():
            if not (all(map(math.isfinite, sizes)) and min(sizes[:2]) >= 0.0):
                raise SettingError(
                    f"slopes must be J_x and J_t of at least 0 and a time, for each call, not"
                    f" {list(sizes)}"
                )

    def fit_to(self, root: nn.Module) -> "SenCache":
        """Raises SettingError if there are no slopes: none are published for a checkpoint."""
        if self.slopes is None and not self.off:
            raise SettingError(
                f"sencache has no slopes for this {type(root).__name__}; measure them with fewstep"
                " calibrate: they depend on the checkpoint, the solver and the steps"
            )
        return self

    @property
    def needs_calls(self) -> bool:
        return not self.off

    def check(self, calls: int) -> None:
        super().check(calls)
        if not self.off and self.slopes is not None and len(self.slopes) != calls:
            raise SettingError(
                f"slopes are of a run of {len(self.slopes)} calls, and this one has {calls}; take"
                f" {len(self.slopes)}, or measure others with fewstep calibrate"
            )

    def accepts(self, errors: Sequence[float], now: CallPosition) -> bool:
        first = now.calls is not None and now.index < 0.2 * now.calls
        return errors[-1] < (self.early if first and self.early is not None else self.threshold)

    @property
    def keep(self) -> Keep:
        return Keep("state", choose_predictor(self.predictor, 1, first=self.warmup))

    @property
    def gate(self) -> Gate | None:
        return SenseGate("input", reduce=self.reduce, slopes=self.slopes or ())


@plain(frozen=True)
class SenseGate(Gate):
    """Compares the input with that of the last full call; slopes: see `SenCache`."""

    slopes: tuple[Slopes, ...] = ()

    def begin(self, by_row: bool, calls: int | None) -> GateMemory:
        return SenseMemory(self, by_row, calls)


class SenseMemory(GateMemory):
    """The input of the last full call, of each row."""

    def measure(self, x: Tensor, call: CallState) -> Tensor:
        """Returns (2, B): the error times the root of the size of a row, and that root."""
        assert isinstance(self.gate, SenseGate)
        slopes, index = self.gate.slopes, call.place.index
        moved = torch.linalg.vector_norm(
            (self.expected.forecast(index).float() - x).flatten(1), dim=1
        )
        root, now = math.sqrt(x[0].numel()), slopes[index][2]
        last = [slopes[each] for each in call.track.last]
        by_time = [root * time * abs(now - then) for _, time, then in last]
        weights = send(torch.tensor([[each[0] for each in last], by_time]), x.device)
        errors = weights[0] * moved + weights[1]
        return torch.stack([errors, torch.full_like(errors, root)])
