"""Scaled Hermite polynomials of differences (HiCache, arXiv:2508.16984)."""

import math
from typing import ClassVar

from pydantic.dataclasses import dataclass

from ...errors import SettingError
from ..forecast import Order, weigh_values
from .base import IndexPredictor, PredictorInfo, register


@register
@dataclass(frozen=True)
class Hermite(IndexPredictor):
    """The published differences, weighted by Hermite polynomials in place of powers.

    F^ = D_0 + sum_{j=1..order} sigma^j / j! H_j(sigma k) D_j,  k > 0 calls after the last full one,
    with H_1(z) = 2 z, H_{j+1}(z) = 2 z H_j(z) - 2 j H_{j-1}(z).

    At sigma 0.5 the slope of order 1 is half that of a line; the others damp likewise.

    order: 1 to 4, published 2.
    sigma: above 0 to 1, published 0.5; sqrt(1/2) makes order 1 exact on lines.
    """

    info: ClassVar[PredictorInfo] = PredictorInfo(
        name="hermite",
        kind="index",
        exact_on="constants; lines where sigma^2 = 1/2",
        keeps="order + 1",
        source="HiCache (arXiv:2508.16984)",
    )

    order: int = 2
    sigma: float = 0.5

    def __post_init__(self) -> None:
        if not 1 <= self.order <= 4:
            raise SettingError(f"order of hermite is 1 to 4, not {self.order}; 2 is published")
        if not 0.0 < self.sigma <= 1.0:
            raise SettingError(f"sigma lies above 0 up to 1, not {self.sigma:g}; 0.5 is published")

    @property
    def depth(self) -> int:
        return self.order + 1

    @property
    def exact_degree(self) -> int:
        return 1 if abs(self.sigma**2 - 0.5) < 1e-15 else 0

    @property
    def wide(self) -> bool:
        return self.order >= 3

    def weights(
        self, index: int, times: tuple[int, ...], calls: int | None = None
    ) -> tuple[float, ...]:
        rows = Order(self.order).expand(times)
        z, polynomials = self.sigma * (index - times[0]), [1.0]
        for j in range(len(rows) - 1):
            before = 2.0 * j * polynomials[j - 1] if j else 0.0
            polynomials.append(2.0 * z * polynomials[j] - before)
        factors = [self.sigma**j / math.factorial(j) * h for j, h in enumerate(polynomials)]
        return weigh_values(rows, factors, len(times))
