"""Gates: what a skip is judged by, as a value of settings and its memory of a run.

A gate looks at one tensor of a call, compares it with what was expected of it, and says by how much
it missed. The memory of a gate gives sums per row of the batch, in pairs: the first over the second
is a ratio, and the gate makes one error of them. The sums alone come to the host.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .calls import CallState, select_rows
from .memory import Memory, RowMemory
from .predictors import Predictor, Reuse

REPEAT = Reuse()
Reduce = Literal["mean", "max", "per-sample"]
Reads = Literal["input", "signal", "residual", "state", "block"]


class GateMemory:
    """The memory of one branch and stage; by itself, of what is expected of one tensor."""

    def __init__(self, gate: "Gate", by_row: bool, calls: int | None) -> None:
        self.gate = gate
        self.expected = make_memory(gate.predictor, by_row, calls)

    @property
    def ready(self) -> bool:
        """True if it can judge a call."""
        return bool(self.expected)

    def memories(self) -> Iterable[Memory]:
        """Returns what it stores."""
        return (self.expected,)

    def keep(self, parts: Sequence[int], of: int) -> None:
        """Keeps some of `of` equal parts of the rows, as when a batch of branches halves."""
        for memory in self.memories():
            memory.keep(parts, of)

    def measure(self, x: Tensor, call: CallState) -> Tensor:
        """Returns pairs of sums (2 P, B) by which a call missed what was expected."""
        return sum_errors(self.expected.forecast(call.place.index), x, self.gate.relative_to)

    def update(self, x: Tensor, call: CallState) -> None:
        """Takes the tensor of a call, of the rows that are computed or of every call."""
        if self.gate.every_call:
            self.expected.update(x, call.place.index)
        else:
            update_memory(self.expected, x, call)

    def hear(self, out: Tensor, call: CallState) -> None:
        """Takes what the network answered, for gates that look at it."""


@dataclass(frozen=True)
class Gate:
    """The test by which a skip is judged: a tensor of this call against its expected value.

    reads:       "input" of the network; "signal", the input of the first block after its
                 modulation; "state" at the start of the stretch; "residual", that minus what enters
                 the first block; or "block", the last block's output, run on a forecast input.
    predictor:   of the expectation, formed at full calls.
    relative_to: error = sum |expected - true| / sum |true| or / sum |expected|.
    every_call:  expect what the previous call had, be it full or not.
    reduce:      "mean": one error over the batch; "max": that of the worst row; "per-sample": one
                 per image, and only the rows that fail are computed.
    stride:      only every so many tokens are looked at.
    entry:       it needs to know what enters the first block, too.
    """

    reads: Reads
    predictor: Predictor = REPEAT
    relative_to: Literal["true", "expected"] = "expected"
    every_call: bool = False
    reduce: Reduce = "max"
    stride: int = 1

    @property
    def entry(self) -> bool:
        return self.reads == "residual"

    def begin(self, by_row: bool, calls: int | None) -> GateMemory:
        """Returns the memory of a run of so many calls."""
        return GateMemory(self, by_row, calls)

    def look(self, x: Tensor, call: CallState) -> Tensor:
        """Returns what is compared of the tensor that it reads."""
        return x[:, :: self.stride] if self.stride > 1 else x

    def combine(self, ratios: Sequence[float]) -> float:
        """Returns one error from the ratios of the sums that are measured."""
        return ratios[0]


def make_memory(predictor: Predictor, by_row: bool, calls: int | None) -> Memory:
    """Makes the memory of one tensor, whose rows have full calls of their own or not."""
    return predictor.make_row_memory(calls) if by_row else predictor.make_memory(calls)


def update_memory(memory: Memory, x: Tensor, call: CallState) -> None:
    """Stores those rows of x (B, *) that a call computes."""
    if call.full:
        memory.update(x, call.place.index)
    elif call.rows:
        assert isinstance(memory, RowMemory)
        memory.update(select_rows(x, call.rows), call.place.index, call.rows)


def sum_errors(expected: Tensor, x: Tensor, relative_to: str) -> Tensor:
    """Returns (2, B): sum |expected - x| and the sum it is measured by, in single precision."""
    size = sum_magnitudes(x if relative_to == "true" else expected)
    wide = expected.float() if expected.dtype.itemsize < 4 else expected
    return torch.stack([sum_magnitudes(wide.sub_(x)), size])


def sum_magnitudes(x: Tensor) -> Tensor:
    """Returns sum |x| of each row, in single precision at least."""
    wide = torch.promote_types(x.dtype, torch.float32)
    sums: Tensor = torch.linalg.vector_norm(x.flatten(1), ord=1, dim=1, dtype=wide)
    return sums
