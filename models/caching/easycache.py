"""EasyCache: the change of the input, in units of how the output answered it (arXiv:2507.02860)."""

from collections.abc import Iterable, Sequence
from math import prod
from typing import ClassVar

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor

from ..devices import send
from .base import Accumulated, CacheInfo, Keep, register
from .calls import CallState
from .gate import (
    REPEAT,
    Gate,
    GateMemory,
    make_memory,
    sum_errors,
    sum_magnitudes,
    update_memory,
)
from .memory import Memory
from .predictors import PredictorSetting, choose_predictor


@register
@dataclass(frozen=True)
class EasyCache(Accumulated):
    """Skips until the changes of the input, times the network's gain, add up to the threshold.

    error_i = k mean |x_i - x_{i-1}| / mean |v_a|,  k = mean |v_a - v_b| / mean |x_a - x_b|
    with input x and answer v of the network, and a, b its last two full calls. It looks at nothing
    inside the network; two full calls have to be there before it skips one.

    threshold: of the sum since the last full call. Published: .025 for HunyuanVideo with warmup=5,
               .1 for SANA-Video.
    warmup, final, max_consecutive, reduce, together: see `Gated`; published is reduce=mean.
    predictor: of the last block's output, a line by default. The published forecast, the last
               answer plus the change of the input, shrinks the velocity of a flow.
    """

    info: ClassVar[CacheInfo] = CacheInfo(
        name="easycache",
        decides="accumulated change of the input, times the gain",
        keeps="the last block's output",
        runs_on="transformers and UNets",
        source="arXiv:2507.02860",
    )

    threshold: float = 0.1
    predictor: PredictorSetting | None = None

    @property
    def keep(self) -> Keep:
        return Keep("state", choose_predictor(self.predictor, 1, first=self.warmup))

    @property
    def gate(self) -> Gate | None:
        return GainGate("input", every_call=True, reduce=self.reduce)


class GainGate(Gate):
    """Multiplies the change of the input by the gain between the last two full calls."""

    def begin(self, by_row: bool, calls: int | None) -> GateMemory:
        return GainMemory(self, by_row, calls)

    def combine(self, ratios: Sequence[float]) -> float:
        return prod(ratios)


class GainMemory(GateMemory):
    """The input of the previous call, input and answer of the last full one, and the gain there.

    gain: (3, B): sums |v_a|, |v_a - v_b| and |x_a - x_b| of each row, after two full calls.
    """

    def __init__(self, gate: Gate, by_row: bool, calls: int | None) -> None:
        super().__init__(gate, by_row, calls)
        self.asked, self.answered = (make_memory(REPEAT, by_row, calls) for _ in range(2))
        self.x: Tensor | None = None
        self.gain: Tensor | None = None

    @property
    def ready(self) -> bool:
        return self.gain is not None

    def memories(self) -> Iterable[Memory]:
        return (self.expected, self.asked, self.answered)

    def keep(self, parts: Sequence[int], of: int) -> None:
        super().keep(parts, of)
        if self.gain is not None:
            blocks = self.gain.chunk(of, dim=1)
            self.gain = torch.cat([blocks[part] for part in parts], dim=1)

    def measure(self, x: Tensor, call: CallState) -> Tensor:
        assert self.gain is not None
        change, _ = super().measure(x, call)
        return torch.stack([change, *self.gain])

    def update(self, x: Tensor, call: CallState) -> None:
        super().update(x, call)
        self.x = x

    def hear(self, out: Tensor, call: CallState) -> None:
        """Measures the gain of the rows that were computed."""
        assert self.x is not None
        pairs = ((self.answered, out), (self.asked, self.x))
        if self.answered and (call.full or call.rows):
            changes = [self._compare(memory, new, call) for memory, new in pairs]
            self._note_gain(torch.stack([sum_magnitudes(out), *changes]), call)
        for memory, new in pairs:
            update_memory(memory, new, call)

    def _compare(self, memory: Memory, new: Tensor, call: CallState) -> Tensor:
        """Returns sum |new - old| of each row."""
        return sum_errors(memory.forecast(call.place.index), new, "true")[0]

    def _note_gain(self, gain: Tensor, call: CallState) -> None:
        if call.full or self.gain is None:
            self.gain = gain
        else:
            rows = send(torch.tensor(call.rows), gain.device)
            self.gain = self.gain.index_copy(1, rows, gain.index_select(1, rows))
