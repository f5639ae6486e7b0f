"""Forecasts of a tensor from its values at earlier calls: arithmetic alone, no network.

A tensor F is looked at as a function of the call index. At a full call it is known and its
differences against earlier full calls are formed; at a skipped call, k later, it is forecast:

    published (arXiv:2503.06923):  D_0 = F,  D_{j+1} = (D_j - D_j before) / (x_0 - x_1)
                                   F^ = sum_j k^j / j! D_j
    newton (divided differences):  D_{j+1} = (D_j - D_j before) / (x_0 - x_{j+1})
                                   F^ = sum_j (x - x_0) .. (x - x_{j-1}) D_j

x_0, x_1, .. are the indices of full calls, newest first. The published form takes backward
differences for derivatives: it is exact for sequences of degree 1 and damps the higher orders (for
a i^2 at even spacing N its error is -a k N); the Newton form is exact to degree `order`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from ..devices import send

Basis = Literal["published", "newton"]


@dataclass(frozen=True)
class Order:
    """The order and basis of a tensor's forecast.

    degree: 0 repeats the last value, 1 extrapolates along a line; at most 4.
    basis:  see the module.
    first:  with `first` full calls at the start of a run, slopes are formed from the last of them
            on (the published rule: only where index > first - 2).
    """

    degree: int = 0
    basis: Basis = "published"
    first: int = 1

    def gap(self, newest: int, earlier: Sequence[int], j: int) -> int:
        """Returns the divisor of the j-th difference."""
        return newest - earlier[0 if self.basis == "published" else j]

    def weights(self, index: int, earlier: Sequence[int], count: int) -> list[float]:
        """Returns the factor of each of `count` differences in a forecast for a call."""
        weights, newest = [1.0], earlier[0]
        for j in range(1, count):
            step = (index - newest) / j if self.basis == "published" else index - earlier[j - 1]
            weights.append(weights[-1] * step)
        return weights

    def choose_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """Returns the dtype of storage: half precision drowns the third and fourth differences."""
        return torch.promote_types(dtype, torch.float32) if self.degree >= 3 else dtype


@dataclass
class StoredDifferences:
    """Differences of one tensor; copies, so that the tensor itself may be overwritten."""

    order: Order
    differences: list[Tensor] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.differences)

    @property
    def nbytes(self) -> int:
        return sum(each.nbytes for each in self.differences)

    @property
    def expected_bytes(self) -> int:
        """The bytes stored once the order has grown to its degree."""
        return self.differences[0].nbytes * (self.order.degree + 1) if self.differences else 0


@dataclass
class FiniteDifferences(StoredDifferences):
    """Differences where all rows have the same full calls, at `times`, newest first."""

    times: list[int] = field(default_factory=list)

    def update(self, x: Tensor, index: int) -> None:
        """Takes the true value at a full call; a change of shape, dtype or device starts over.

        Each difference is written over the one it is formed from, the value over the highest.
        """
        degree, dtype = self.order.degree, self.order.choose_dtype(x.dtype)
        usable = index > self.order.first - 2 and _are_alike(self.differences, x, dtype)
        old = self.differences if usable else []
        free = old[degree] if len(old) > degree else None
        new = [x.detach().to(dtype, copy=True) if free is None else free.copy_(x)]
        for j, before in enumerate(old[:degree]):
            gap = self.order.gap(index, self.times, j)
            new.append(_divide_difference(new[j], before, gap))
        self.differences, self.times = new, [index, *self.times][: self.order.degree + 1]

    def forecast(self, index: int, onto: Tensor | None = None) -> Tensor:
        """Returns the value expected at a call, plus `onto`; allocates this one tensor."""
        weights = self.order.weights(index, self.times, len(self.differences))
        if onto is not None:
            return _add_terms(onto + self.differences[0], self.differences[1:], weights[1:])
        if len(self.differences) == 1:
            return self.differences[0].clone()
        out = torch.add(self.differences[0], self.differences[1], alpha=weights[1])
        return _add_terms(out, self.differences[2:], weights[2:])

    def keep(self, parts: Sequence[int], of: int) -> None:
        """Keeps some of `of` equal parts of the rows, as when a batch of branches halves."""
        self.differences = [_select_parts(each, parts, of) for each in self.differences]


@dataclass
class RowDifferences(StoredDifferences):
    """Differences where row b of (B, *) has full calls of its own, at times[b]."""

    times: list[list[int]] = field(default_factory=list)

    def update(self, x: Tensor, index: int, rows: Sequence[int] | None = None) -> None:
        """Takes the true values of some rows (b, *), or of all of them (B, *)."""
        new = x.detach().to(self.order.choose_dtype(x.dtype), copy=True)
        if rows is None and not _are_alike(self.differences, new, new.dtype):
            self.differences = [new, *(torch.zeros_like(new) for _ in range(self.order.degree))]
            self.times = [[index] for _ in range(len(new))]
            return
        chosen = list(range(len(self.times))) if rows is None else list(rows)
        at = send(torch.tensor(chosen), x.device)
        for j in range(self.order.degree + 1):
            before = self.differences[j].index_select(0, at)
            self.differences[j].index_copy_(0, at, new)
            gaps = [self._find_gap(b, index, j) for b in chosen]
            new = (new - before).mul_(
                _make_column([1.0 / gap if gap else 0.0 for gap in gaps], new)
            )
        for b in chosen:
            self.times[b] = [index, *self.times[b]][: self.order.degree + 1]

    def forecast(self, index: int, onto: Tensor | None = None) -> Tensor:
        """Returns the values expected at a call (B, *), plus `onto`."""
        degree = self.order.degree + 1
        known = [self.order.weights(index, times, min(len(times), degree)) for times in self.times]
        out = self.differences[0].clone() if onto is None else onto + self.differences[0]
        for j in range(1, degree):
            weights = [each[j] if j < len(each) else 0.0 for each in known]
            out.addcmul_(self.differences[j], _make_column(weights, out))
        return out

    def keep(self, parts: Sequence[int], of: int) -> None:
        self.differences = [_select_parts(each, parts, of) for each in self.differences]
        size = len(self.times) // of
        self.times = [self.times[part * size + b] for part in parts for b in range(size)]

    def _find_gap(self, b: int, index: int, j: int) -> int:
        """Returns 0, for no slope, where the row has no earlier value of that order."""
        known = j < len(self.times[b]) and index > self.order.first - 2
        return self.order.gap(index, self.times[b], j) if known else 0


def _add_terms(out: Tensor, terms: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    for term, weight in zip(terms, weights, strict=True):
        out.add_(term, alpha=weight)
    return out


def _divide_difference(new: Tensor, before: Tensor, gap: int) -> Tensor:
    """Returns (new - before) / gap, in the memory of `before`."""
    if new.dtype.itemsize < 4:
        return before.copy_(new.float().sub_(before).div_(gap))
    torch.sub(new, before, out=before)
    return before if gap == 1 else before.div_(gap)


def _are_alike(stored: Sequence[Tensor], x: Tensor, dtype: torch.dtype) -> bool:
    if not stored:
        return False
    first = stored[0]
    return (first.shape, first.dtype, first.device) == (x.shape, dtype, x.device)


def _make_column(values: Sequence[float], like: Tensor) -> Tensor:
    column = send(torch.tensor(values, dtype=like.dtype), like.device)
    return column.reshape(-1, *[1] * (like.ndim - 1))


def _select_parts(x: Tensor, parts: Sequence[int], of: int) -> Tensor:
    blocks = x.reshape(of, -1, *x.shape[1:])
    return torch.cat([blocks[part] for part in parts])
