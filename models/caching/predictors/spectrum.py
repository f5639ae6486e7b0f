"""A Chebyshev fit to all full calls of a run, by ridge regression (Spectrum, arXiv:2603.01623)."""

from dataclasses import dataclass as plain
from dataclasses import field
from functools import lru_cache
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic.dataclasses import dataclass
from torch import Tensor

from ...errors import SettingError
from ..memory import Memory, add_weighted, are_alike, choose_dtype
from .base import IndexPredictor, PredictorInfo, register

Array = NDArray[np.float64]


@register
@dataclass(frozen=True)
class Spectrum(IndexPredictor):
    """Chebyshev polynomials fitted to all full calls of a run of S, blended with a line.

    tau(i) = 2 i / S - 1,  B_a = (T_0 .. T_degree)(tau(x_a)),  b the same at the skipped call
    w = blend B (B^T B + ridge I)^-1 b + (1 - blend) w_line

    The published ridge (anchored=false) also shrinks what is constant: the weights add up to less
    than 1. The anchored fit is of what values differ by from the last one, and has no T_0.

    degree:   0 to 8, published 4.
    ridge:    above 0, published 0.1.
    blend:    share of the fit, above 0 to 1: published 1, then 0.5 to 1; the line is through the
              last two full calls.
    anchored: false is published.
    """

    info: ClassVar[PredictorInfo] = PredictorInfo(
        name="spectrum",
        kind="index",
        exact_on="constants where anchored",
        keeps="degree + 3",
        source="Spectrum (arXiv:2603.01623)",
    )
    needs_calls: ClassVar[bool] = True

    degree: int = 4
    ridge: float = 0.1
    blend: float = 0.5
    anchored: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.degree <= 8:
            raise SettingError(f"degree lies in 0 to 8, not {self.degree}; 4 is published")
        if not (0.0 < self.ridge < float("inf")):
            raise SettingError(f"ridge must be above 0, not {self.ridge:g}; 0.1 is published")
        if not 0.0 < self.blend <= 1.0:
            raise SettingError(
                f"blend lies above 0 up to 1, not {self.blend:g}; for a line take taylor:order=1"
            )

    @property
    def depth(self) -> None:
        return None

    @property
    def exact_degree(self) -> int:
        return 0 if self.anchored else -1

    def weights(
        self, index: int, times: tuple[int, ...], calls: int | None = None
    ) -> tuple[float, ...]:
        if calls is None:
            raise SettingError("spectrum must know how many calls a run has; give calls=STEPS")
        first, second, sums = _fit(self, index, times, calls)
        weights = _list_columns(self.degree, times, calls) @ np.array(sums)
        weights[0] += first
        weights[1:2] += second
        return tuple(weights.tolist())

    def make_memory(self, calls: int | None = None) -> Memory:
        return ChebyshevSums(self.degree + 3, self, calls or 1)


@plain
class ChebyshevSums(Memory):
    """The last two values and sum_a T_j(tau(x_a)) F_a for each j, of all full calls.

    stored: F_0, the sums, and F_1 once there is one.
    """

    predictor: Spectrum
    calls: int
    times: list[int] = field(default_factory=list, kw_only=True)

    def update(self, x: Tensor, index: int) -> None:
        (column,) = _list_columns(self.predictor.degree, (index,), self.calls)
        dtype = choose_dtype(x, wide=True)
        if not are_alike(self.stored, x, dtype):
            new = x.detach().to(dtype, copy=True)
            self.stored, self.times = [new, *(new * float(each) for each in column)], [index]
            return
        free = self.stored.pop() if len(self.stored) == self.depth else self.stored[0].clone()
        older, self.stored[0] = self.stored[0], free.copy_(x)
        for total, each in zip(self.stored[1:], column, strict=True):
            total.add_(x, alpha=float(each))
        self.stored.append(older)
        self.times.insert(0, index)

    def forecast(self, index: int, onto: Tensor | None = None) -> Tensor:
        first, second, sums = _fit(self.predictor, index, tuple(self.times), self.calls)
        last = [second] if len(self.stored) == self.depth else []
        return add_weighted(self.stored, [first, *sums, *last], onto)


@lru_cache(maxsize=1024)
def _fit(
    predictor: Spectrum, index: int, times: tuple[int, ...], calls: int
) -> tuple[float, float, tuple[float, ...]]:
    """Returns the weights of F_0, of F_1 and of each sum."""
    columns = _list_columns(predictor.degree, (index, *times), calls)
    target, known = columns[0], columns[1:]
    if predictor.anchored:
        target, known = (each - known[0] for each in (target, known))
        sums = _solve_ridge(known[:, 1:], target[1:], predictor.ridge)
        first = 1.0 - float((known[:, 1:] @ sums).sum())
        sums = np.array([-(columns[1, 1:] @ sums), *sums])
    else:
        first, sums = 0.0, _solve_ridge(known, target, predictor.ridge)
    slope = (index - times[0]) / (times[0] - times[1]) if len(times) > 1 else 0.0
    line = 1.0 - predictor.blend
    sums = predictor.blend * sums
    return (
        predictor.blend * first + line * (1.0 + slope),
        -line * slope,
        tuple(sums.tolist()),
    )


def _solve_ridge(known: Array, target: Array, ridge: float) -> Array:
    normal = known.T @ known + ridge * np.eye(known.shape[1])
    return np.asarray(np.linalg.solve(normal, target), dtype=np.float64)


def _list_columns(degree: int, times: tuple[int, ...], calls: int) -> Array:
    """Returns T_0 .. T_degree at each call, one row per call."""
    tau = 2.0 * np.array(times) / calls - 1.0
    return np.asarray(np.polynomial.chebyshev.chebvander(tau, degree), dtype=np.float64)
