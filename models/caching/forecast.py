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
from .memory import Memory, RowMemory, add_terms, are_alike, choose_dtype, make_column

Basis = Literal["published", "newton"]


@dataclass(frozen=True)
class Order:
    """The order and basis of a tensor's forecast.

    degree: 0 repeats the last value, 1 extrapolates along a line; at most 4.
    basis:  see the module.
    first:  with `first` full calls at the start of a run, slopes are formed from the last of them
            on (the published rule: only where index > first - 2).
    damping: the factor of all differences in a forecast: 1 is all of them, 0 repeats.
    """

    degree: int = 0
    basis: Basis = "published"
    first: int = 1
    damping: float = 1.0

    def gap(self, newest: int, earlier: Sequence[int], j: int) -> int:
        """Returns the divisor of the j-th difference."""
        return newest - earlier[0 if self.basis == "published" else j]

    def select(self, earlier: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the full calls that slopes are formed from: none before the last delayed one."""
        last = self.first - 2
        delayed = next((a for a, time in enumerate(earlier) if time <= last), len(earlier))
        return earlier[: delayed + 1]

    def weights(self, index: int, earlier: Sequence[int], count: int) -> list[float]:
        """Returns the factor of each of `count` differences in a forecast for a call."""
        weights, newest = [1.0], earlier[0]
        for j in range(1, count):
            step = (index - newest) / j if self.basis == "published" else index - earlier[j - 1]
            weights.append(weights[-1] * step)
        return [1.0, *(self.damping * each for each in weights[1:])]

    def expand(self, earlier: Sequence[int]) -> list[list[float]]:
        """Returns each difference as weights of the values at full calls, newest first."""
        count = min(len(earlier), self.degree + 1)
        level = [[float(a == b) for b in range(count)] for a in range(count)]
        rows = [level[0]] if level else []
        for j in range(count - 1):
            gaps = [self.gap(earlier[a], earlier[a + 1 :], j) for a in range(len(level) - 1)]
            level = [
                [(new - old) / gap for new, old in zip(level[a], level[a + 1], strict=True)]
                for a, gap in enumerate(gaps)
            ]
            rows.append(level[0])
        return rows

    @property
    def wide(self) -> bool:
        """True for degrees whose differences half precision would drown: the third and fourth."""
        return self.degree >= 3


@dataclass
class FiniteDifferences(Memory):
    """Differences where all rows have the same full calls, at `times`, newest first."""

    order: Order
    depth: int = field(init=False)
    times: list[int] = field(default_factory=list, kw_only=True)

    def __post_init__(self) -> None:
        self.depth = self.order.degree + 1

    def update(self, x: Tensor, index: int) -> None:
        """Takes the true value at a full call; a change of shape, dtype or device starts over.

        Each difference is written over the one it is formed from, the value over the highest.
        """
        degree, dtype = self.order.degree, choose_dtype(x, self.order.wide)
        usable = index > self.order.first - 2 and are_alike(self.stored, x, dtype)
        old = self.stored if usable else []
        free = old[degree] if len(old) > degree else None
        new = [x.detach().to(dtype, copy=True) if free is None else free.copy_(x)]
        for j, before in enumerate(old[:degree]):
            gap = self.order.gap(index, self.times, j)
            new.append(_divide_difference(new[j], before, gap))
        self.stored, self.times = new, [index, *self.times][: self.depth]

    def forecast(self, index: int, onto: Tensor | None = None) -> Tensor:
        """Returns the value expected at a call, plus `onto`; allocates this one tensor."""
        weights = self.order.weights(index, self.times, len(self.stored))
        if onto is not None:
            return add_terms(onto + self.stored[0], self.stored[1:], weights[1:])
        if len(self.stored) == 1:
            return self.stored[0].clone()
        out = torch.add(self.stored[0], self.stored[1], alpha=weights[1])
        return add_terms(out, self.stored[2:], weights[2:])


@dataclass
class RowDifferences(RowMemory):
    """Differences where row b of (B, *) has full calls of its own, at times[b]."""

    order: Order
    depth: int = field(init=False)

    def __post_init__(self) -> None:
        self.depth = self.order.degree + 1

    def update(self, x: Tensor, index: int, rows: Sequence[int] | None = None) -> None:
        new = x.detach().to(choose_dtype(x, self.order.wide), copy=True)
        if rows is None and not are_alike(self.stored, new, new.dtype):
            self.take_all(new, index)
            return
        chosen = list(range(len(self.times))) if rows is None else list(rows)
        at = send(torch.tensor(chosen), x.device)
        for j, stored in enumerate(self.stored):
            before = stored.index_select(0, at)
            stored.index_copy_(0, at, new)
            gaps = [self._find_gap(b, index, j) for b in chosen]
            new = (new - before).mul_(make_column([1.0 / gap if gap else 0.0 for gap in gaps], new))
        self.note_times(index, chosen)

    def forecast(self, index: int, onto: Tensor | None = None) -> Tensor:
        """Returns the values expected at a call (B, *), plus `onto`."""
        known = [self.order.weights(index, times, self._count(times)) for times in self.times]
        out = self.stored[0].clone() if onto is None else onto + self.stored[0]
        for j in range(1, self.depth):
            weights = [each[j] if j < len(each) else 0.0 for each in known]
            out.addcmul_(self.stored[j], make_column(weights, out))
        return out

    def _find_gap(self, b: int, index: int, j: int) -> int:
        """Returns 0, for no slope, where the row has no earlier value of that order."""
        known = j < self._count(self.times[b]) and index > self.order.first - 2
        return self.order.gap(index, self.times[b], j) if known else 0

    def _count(self, times: Sequence[int]) -> int:
        """Returns how many differences a row has, with its value."""
        return min(len(self.order.select(tuple(times))), self.depth)


def weigh_values(
    rows: Sequence[Sequence[float]], factors: Sequence[float], count: int
) -> tuple[float, ...]:
    """Returns the weights of `count` values in a sum of factors times their differences (rows)."""
    sums = [
        sum(f * c for f, c in zip(factors, each, strict=True)) for each in zip(*rows, strict=True)
    ]
    return (*sums, *[0.0] * (count - len(sums)))


def _divide_difference(new: Tensor, before: Tensor, gap: int) -> Tensor:
    """Returns (new - before) / gap, in the memory of `before`."""
    if new.dtype.itemsize < 4:
        return before.copy_(new.float().sub_(before).div_(gap))
    torch.sub(new, before, out=before)
    return before if gap == 1 else before.div_(gap)
