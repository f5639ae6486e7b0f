"""DiCache: the change of what the first blocks make, call by call (arXiv:2508.17356)."""

from collections.abc import Iterable, Sequence
from typing import ClassVar

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor

from .base import Accumulated, CacheInfo, Keep, check_whole, register
from .calls import CallState
from .gate import Gate, GateMemory, make_memory, sum_errors
from .memory import Memory
from .predictors import PredictorSetting, choose_predictor


@register
@dataclass(frozen=True)
class DiCache(Accumulated):
    """Runs `lead` blocks as a probe, and skips the others until its changes add up.

    error_i = mean |h_i - h_{i-1}| / mean |h_{i-1}|                 of the output h of the probe,
    error_i = | that - mean |e_i - e_{i-1}| / mean |e_{i-1}| |      with delta, e entering block 0.

    The probe is part of the call: if the call turns out full, it goes on from there.

    threshold: of the sum since the last full call. Published: .4 for FLUX after a fifth of the
               calls, .08 with delta; .1 for HunyuanVideo.
    warmup, final, max_consecutive, reduce, together: see `Gated`; published is reduce=mean.
    lead:      blocks of the probe; published: 1 to 5.
    delta:     judge by how the probe changes otherwise than its input does.
    predictor: of the residual of the blocks after the probe, a line by default; published: anchors.
    """

    info: ClassVar[CacheInfo] = CacheInfo(
        name="dicache",
        decides="accumulated change of the leading blocks' output",
        keeps="residual of the other blocks",
        runs_on="transformers",
        source="arXiv:2508.17356",
    )

    threshold: float = 0.1
    lead: int = 1
    delta: bool = False
    predictor: PredictorSetting | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("lead", self.lead, 1, "the gate looks at what a block made")

    @property
    def keep(self) -> Keep:
        return Keep("residual", choose_predictor(self.predictor, 1, first=self.warmup))

    @property
    def gate(self) -> Gate | None:
        kind = DeltaGate if self.delta else Gate
        return kind("state", every_call=True, reduce=self.reduce)


class DeltaGate(Gate):
    """Compares the change of the probe with that of what enters it."""

    @property
    def entry(self) -> bool:
        return True

    def begin(self, by_row: bool, calls: int | None) -> GateMemory:
        return DeltaMemory(self, by_row, calls)

    def combine(self, ratios: Sequence[float]) -> float:
        probe, entry = ratios
        return abs(probe - entry)


class DeltaMemory(GateMemory):
    """The output of the probe and what entered it at the previous call."""

    def __init__(self, gate: Gate, by_row: bool, calls: int | None) -> None:
        super().__init__(gate, by_row, calls)
        self.entry = make_memory(gate.predictor, by_row, calls)

    def memories(self) -> Iterable[Memory]:
        return (self.expected, self.entry)

    def measure(self, x: Tensor, call: CallState) -> Tensor:
        assert call.entered is not None
        before = self.entry.forecast(call.place.index)
        return torch.cat([super().measure(x, call), sum_errors(before, call.entered, "expected")])

    def update(self, x: Tensor, call: CallState) -> None:
        super().update(x, call)
        assert call.entered is not None
        self.entry.update(call.entered, call.place.index)
