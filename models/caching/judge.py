"""Decides by a gate whether a call is full, for a whole batch or for each image of it."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..devices import Reading
from ..ledger import CacheLedger
from .base import CallPosition, Policy
from .calls import CallState


class SkipJudge:
    """Carries out the gate of a policy; NaN and infinity are computed.

    group: processes that hold shards of one call and must decide alike.
    """

    def __init__(self, policy: Policy, ledger: CacheLedger) -> None:
        self.policy, self.gate, self.ledger = policy, policy.gate, ledger
        self.group: Any = None

    @property
    def by_row(self) -> bool:
        """True if each row has full calls of its own."""
        return self.gate is not None and self.gate.reduce == "per-sample"

    def reads(self, what: str) -> bool:
        """Tells whether the gate looks there."""
        return self.gate is not None and self.gate.reads == what

    def look(self, call: CallState, x: Tensor) -> None:
        """Decides on a call that is open by what it shows, and remembers that."""
        assert self.gate is not None
        x, track = self.gate.look(x, call), call.track
        if track.gate is None:
            track.gate = self.gate.begin(self.by_row, call.length)
        if call.full is None and not track.gate.ready:
            call.full = True
        if call.full is None:
            self.decide(call, self.reduce(track.gate.measure(x, call)))
        track.gate.update(x, call)

    def reduce(self, sums: Tensor) -> Reading:
        """Brings sums (2 P, B) to the host, where they need not be read at once."""
        assert self.gate is not None
        if self.gate.reduce == "mean":
            sums = sums.sum(dim=1, keepdim=True)
        if self.group is not None:
            torch.distributed.all_reduce(sums, group=self.group)
        return Reading(sums)

    def decide(self, call: CallState, sums: Reading) -> None:
        """Decides by the errors, one over the batch or one per image."""
        errors = self._read_errors(sums, len(call.place.branches))
        self.ledger.notice(errors)
        call.error = max(errors) if len(errors) > 1 else errors[0]
        track = call.track
        track.errors = track.errors or [[] for _ in errors]
        for known, error in zip(track.errors, errors, strict=True):
            known.append(error)
        failing = [b for b, known in enumerate(track.errors) if self._fails(call, b, known)]
        call.full = len(failing) == len(errors)
        images = range(0, 0 if call.full else call.batch, len(errors))
        call.rows = tuple(first + b for first in images for b in failing)
        for b in failing:
            track.errors[b].clear()

    def _fails(self, call: CallState, b: int, errors: Sequence[float]) -> bool:
        index = call.place.index
        now = CallPosition(index, index - call.track.last[b if self.by_row else 0], call.length)
        must = self.policy.must(now) if self.by_row else None
        return bool(must) or not (
            all(map(math.isfinite, errors)) and self.policy.accepts(errors, now)
        )

    def _read_errors(self, sums: Reading, branches: int) -> list[float]:
        """Returns one error, or one per image: the worse of its branches."""
        assert self.gate is not None
        columns = list(zip(*sums.numbers(), strict=True))
        rows = [self.gate.combine(_divide_pairs(each)) for each in columns]
        if not self.by_row:
            return [_find_worst(rows)]
        images = len(rows) // branches
        return [_find_worst(rows[b::images]) for b in range(images)]


def _divide_pairs(sums: Sequence[float]) -> list[float]:
    pairs = zip(sums[::2], sums[1::2], strict=True)
    return [a / b if b > 0.0 else float("nan") for a, b in pairs]


def _find_worst(errors: Sequence[float]) -> float:
    """Returns the largest error; NaN if one of them is NaN."""
    return float("nan") if any(e != e for e in errors) else max(errors)
