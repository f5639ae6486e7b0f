"""Sums of exponentials through equally spaced values: dynamic mode decomposition."""

from collections.abc import Sequence
from dataclasses import dataclass as plain
from dataclasses import field
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic.dataclasses import dataclass
from torch import Tensor

from ...devices import Reading
from ...errors import SettingError
from ..memory import Values, add_weighted, make_column
from .base import Predictor, PredictorInfo, register
from .differences import Taylor

LEAST = 4  # values: two poles, of which a pair of complex ones is a single oscillation
CUT = 1e-4  # of the largest singular value
LINE = Taylor()

Array = NDArray[np.float64]


@register
@dataclass(frozen=True)
class Poles(Predictor):
    """Poles of the last full calls at equal gaps N, fitted for each image (Prony's method).

    X is all values but the newest, X' all but the oldest. X = U s V^T with s above 1e-4 of the
    largest, U^T X' V / s = W mu W^-1, Q = V / s W, F^ = X' Re(Q mu^(k/N) c) with c the least
    squares of X' Q c = F_0. All follows from inner products of the values, in float64 on the host.

    Where fewer than four full calls lie at equal gaps, and where a negative pole would have to be
    raised to a fraction, it is taylor:order=1.

    history: full calls looked at, 4 or more; usual are 5 and 6.
    """

    info: ClassVar[PredictorInfo] = PredictorInfo(
        name="dmd",
        kind="inner products",
        exact_on="sums of exponentials at equal gaps; lines",
        keeps="history",
        source="DMD, Prony",
    )
    waits: ClassVar[bool] = True

    history: int = 6

    def __post_init__(self) -> None:
        if not LEAST <= self.history <= 12:
            raise SettingError(f"history of dmd is {LEAST} to 12, not {self.history}; 6 is usual")

    @property
    def depth(self) -> int:
        return self.history

    @property
    def exact_degree(self) -> int:
        return 1

    def check(self, full: Sequence[int] | None, calls: int) -> None:
        if full is None:
            return
        skipped = [call for call in range(calls) if call not in full]
        tails = (tuple(x for x in reversed(full) if x < call) for call in skipped)
        if skipped and not any(count_equal(tail) >= LEAST for tail in tails):
            raise SettingError(
                f"dmd forecasts from {LEAST} full calls at equal gaps, and no skipped call has them"
                " here; take taylor:order=1, a shorter interval or more steps"
            )

    def make_memory(self, calls: int | None = None) -> "PoleValues":
        return PoleValues(self.history, LINE.weights)


def count_equal(times: tuple[int, ...]) -> int:
    """Returns how many of the newest full calls lie at equal gaps."""
    count = min(len(times), 2)
    while count < len(times) and times[count - 1] - times[count] == times[0] - times[1]:
        count += 1
    return count


@plain
class PoleValues(Values):
    """The newest values, and their inner products since the last full call."""

    grams: Array | None = field(default=None, kw_only=True)

    def update(self, x: Tensor, index: int) -> None:
        super().update(x, index)
        self.grams = None

    def keep(self, parts: Sequence[int], of: int) -> None:
        super().keep(parts, of)
        self.grams = None

    def forecast(self, index: int, onto: Tensor | None = None) -> Tensor:
        count = count_equal(tuple(self.times))
        if count < LEAST:
            return super().forecast(index, onto)
        if self.grams is None:
            self.grams = _read_products(self.stored[:count])
        gap = self.times[0] - self.times[1]
        line = np.array(self.find_weights(index, tuple(self.times[:count])))
        rows = [find_pole_weights(gram, (index - self.times[0]) / gap) for gram in self.grams]
        weights = np.stack([line if each is None else each for each in rows])
        return _add_rows(self.stored[:count], weights, onto)


def find_pole_weights(gram: Array, power: float) -> Array | None:
    """Returns the weights of n values, newest first; None where a line is the answer.

    Args:
        gram: (n, n) inner products of the values, newest first.
        power: k / N.
    """
    products = gram[::-1, ::-1]
    before, mixed, after = products[:-1, :-1], products[:-1, 1:], products[1:, 1:]
    squares, vectors = np.linalg.eigh(before)
    large = squares > CUT**2 * squares[-1]
    if not large.any():
        return None
    basis = vectors[:, large] / np.sqrt(squares[large])
    poles, modes = np.linalg.eig(basis.T @ mixed @ basis)
    fraction = abs(power - round(power)) > 1e-9
    if fraction and bool(((poles.real < 0.0) & (np.abs(poles.imag) < 1e-12)).any()):
        return None
    newest = np.linalg.lstsq(basis.T @ after @ basis, basis.T @ after[:, -1])[0]
    ends = np.linalg.lstsq(modes, newest.astype(complex))[0]  # c; not by X' Q, which squares errors
    weights = (basis @ modes @ (poles.astype(complex) ** power * ends)).real[::-1]
    return np.append(weights, 0.0) if np.isfinite(weights).all() else None


def _read_products(stored: list[Tensor]) -> Array:
    """Returns (B, n, n) inner products of each image's values, on the host."""
    wide = torch.float32 if stored[0].device.type == "mps" else torch.float64
    rows = torch.stack([each.flatten(1).to(wide) for each in stored], dim=1)
    grams: Array = Reading(rows @ rows.transpose(1, 2)).tensor().double().numpy()
    return grams


def _add_rows(stored: list[Tensor], weights: Array, onto: Tensor | None) -> Tensor:
    """Returns the sum with weights (B, n) of each image, plus `onto`."""
    out = add_weighted(stored[:1], [0.0], onto)
    for each, column in zip(stored, weights.T, strict=True):
        out.addcmul_(each, make_column(column.tolist(), out))
    return out
