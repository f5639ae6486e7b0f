"""Tensors that a cache stores at full calls, and their weighted sums.

A memory takes the true value of one tensor at each full call, and says at a skipped one what is
expected. It stores copies, so that the tensors themselves may be overwritten, and starts over when
their shape, dtype or device changes. Sums are formed in single precision at least.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..devices import send

FindWeights = Callable[[int, tuple[int, ...]], tuple[float, ...]]  # of a call and the full ones


@dataclass
class Memory(ABC):
    """The base of all memories.

    depth:  tensors stored at most.
    stored: those that are stored now; rows of a batch are the first axis.
    probe:  what leading blocks add at this call (B, *), for those that look at it.
    """

    depth: int
    stored: list[Tensor] = field(default_factory=list, kw_only=True)
    probe: Tensor | None = field(default=None, kw_only=True)

    def __bool__(self) -> bool:
        return bool(self.stored)

    @property
    def nbytes(self) -> int:
        return sum(each.nbytes for each in self.stored)

    @property
    def expected_bytes(self) -> int:
        """The bytes stored after as many full calls as the forecast looks at."""
        return self.stored[0].nbytes * self.depth if self.stored else 0

    @abstractmethod
    def update(self, x: Tensor, index: int) -> None:
        """Takes the true value at a full call."""

    @abstractmethod
    def forecast(self, index: int, onto: Tensor | None = None) -> Tensor:
        """Returns the value expected at a call, plus `onto`, as a tensor of its own."""

    def keep(self, parts: Sequence[int], of: int) -> None:
        """Keeps some of `of` equal parts of the rows, as when a batch of branches halves."""
        self.stored = [_select_parts(each, parts, of) for each in self.stored]


@dataclass
class RowMemory(Memory):
    """The base of memories where row b of (B, *) has full calls of its own, at times[b]."""

    times: list[list[int]] = field(default_factory=list, kw_only=True)

    @abstractmethod
    def update(self, x: Tensor, index: int, rows: Sequence[int] | None = None) -> None:
        """Takes the true values of some rows (b, *), or of all of them (B, *)."""

    def take_all(self, new: Tensor, index: int) -> None:
        """Starts over with the values of all rows."""
        self.stored = [new, *(torch.zeros_like(new) for _ in range(self.depth - 1))]
        self.times = [[index] for _ in range(len(new))]

    def note_times(self, index: int, rows: Sequence[int]) -> None:
        for b in rows:
            self.times[b] = [index, *self.times[b]][: self.depth]

    def keep(self, parts: Sequence[int], of: int) -> None:
        super().keep(parts, of)
        size = len(self.times) // of
        self.times = [self.times[part * size + b] for part in parts for b in range(size)]


@dataclass
class Values(Memory):
    """The newest values, at `times`, newest first, and the sum that index alone decides."""

    find_weights: FindWeights
    wide: bool = False
    times: list[int] = field(default_factory=list, kw_only=True)

    def update(self, x: Tensor, index: int) -> None:
        """Takes the true value at a full call; it is written over the oldest one."""
        dtype = choose_dtype(x, self.wide)
        if not are_alike(self.stored, x, dtype):
            self.stored, self.times = [], []
        free = self.stored.pop() if len(self.stored) == self.depth else None
        new = x.detach().to(dtype, copy=True) if free is None else free.copy_(x)
        self.stored.insert(0, new)
        self.times = [index, *self.times][: self.depth]

    def forecast(self, index: int, onto: Tensor | None = None) -> Tensor:
        return add_weighted(self.stored, self.find_weights(index, tuple(self.times)), onto)


@dataclass
class RowValues(RowMemory):
    """The newest values of each row."""

    find_weights: FindWeights
    wide: bool = False

    def update(self, x: Tensor, index: int, rows: Sequence[int] | None = None) -> None:
        new = x.detach().to(choose_dtype(x, self.wide), copy=True)
        if rows is None and not are_alike(self.stored, new, new.dtype):
            self.take_all(new, index)
            return
        chosen = list(range(len(self.times))) if rows is None else list(rows)
        at = send(torch.tensor(chosen), x.device)
        for older, newer in zip(self.stored[:0:-1], self.stored[-2::-1], strict=True):
            older.index_copy_(0, at, newer.index_select(0, at))
        self.stored[0].index_copy_(0, at, new)
        self.note_times(index, chosen)

    def forecast(self, index: int, onto: Tensor | None = None) -> Tensor:
        known = [self.find_weights(index, tuple(times)) for times in self.times]
        out = self.stored[0].to(choose_dtype(self.stored[0], wide=True), copy=True)
        out.mul_(make_column([each[0] for each in known], out))
        for a, older in enumerate(self.stored[1:], 1):
            weights = [each[a] if a < len(each) else 0.0 for each in known]
            out.addcmul_(older, make_column(weights, out))
        return out if onto is None else out.add_(onto)


def choose_dtype(x: Tensor, wide: bool) -> torch.dtype:
    """Returns the dtype of storage: half precision drowns what large weights cancel."""
    return torch.promote_types(x.dtype, torch.float32) if wide else x.dtype


def are_alike(stored: Sequence[Tensor], x: Tensor, dtype: torch.dtype) -> bool:
    """Tells whether a tensor continues what is stored, in the dtype of storage."""
    if not stored:
        return False
    first = stored[0]
    return (first.shape, first.dtype, first.device) == (x.shape, dtype, x.device)


def add_weighted(
    terms: Sequence[Tensor], weights: Sequence[float], onto: Tensor | None = None
) -> Tensor:
    """Returns `onto` + sum of weight * term, in single precision at least; allocates this alone."""
    first, half = terms[0], terms[0].dtype.itemsize < 4
    if onto is None:
        out = first.float().mul_(weights[0]) if half else first * weights[0]
    elif onto.dtype.itemsize < 4:
        out = onto.float().add_(first, alpha=weights[0])
    else:
        out = torch.add(onto, first, alpha=weights[0])
    return add_terms(out, terms[1:], weights[1:])


def add_terms(out: Tensor, terms: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Returns `out` with the sum of weight * term added in place."""
    for term, weight in zip(terms, weights, strict=True):
        if weight:
            out.add_(term, alpha=weight)
    return out


def make_column(values: Sequence[float], like: Tensor) -> Tensor:
    """Returns one value per row, (B, 1, ..), to be multiplied with a tensor (B, *)."""
    column = send(torch.tensor(values, dtype=like.dtype), like.device)
    return column.reshape(-1, *[1] * (like.ndim - 1))


def _select_parts(x: Tensor, parts: Sequence[int], of: int) -> Tensor:
    blocks = x.reshape(of, -1, *x.shape[1:])
    return torch.cat([blocks[part] for part in parts])
