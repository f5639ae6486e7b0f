"""Slopes of the last full calls and of the last two calls of any kind (after FoCa)."""

from dataclasses import dataclass as plain
from dataclasses import field
from typing import ClassVar

from pydantic.dataclasses import dataclass
from torch import Tensor

from ..memory import Memory, add_weighted, are_alike
from .base import Predictor, PredictorInfo, register


@register
@dataclass(frozen=True)
class FoCa(Predictor):
    """Heun's rule with two slopes: that of full calls, and the newest one, of forecasts too.

    F^ = F_0 + k/2 ((F_0 - F_1) / (x_0 - x_1) + (R_0 - R_1)),  R the values at the last two calls,
    be they full or forecast. cache-dit's calibrator does not divide the first slope by its gap,
    and so misses lines; this one does not.
    """

    info: ClassVar[PredictorInfo] = PredictorInfo(
        name="foca",
        kind="recursive",
        exact_on="lines",
        keeps="4",
        source="after FoCa (arXiv:2508.16211)",
    )

    @property
    def depth(self) -> int:
        return 2

    @property
    def exact_degree(self) -> int:
        return 1

    def make_memory(self, calls: int | None = None) -> Memory:
        return RecentValues(4)


@plain
class RecentValues(Memory):
    """R_0, F_0, R_1, F_1; the latter two from the second call and the second full one on."""

    times: list[int] = field(default_factory=list, kw_only=True)
    recent: list[int] = field(default_factory=list, kw_only=True)

    def update(self, x: Tensor, index: int) -> None:
        if not are_alike(self.stored, x, x.dtype):
            self.stored = [x.detach().clone() for _ in range(4)]
            self.times, self.recent = [index], [index]
            return
        self._push(1, x)
        self.times = [index, *self.times][:2]
        self._remember(x, index)

    def forecast(self, index: int, onto: Tensor | None = None) -> Tensor:
        if self.recent[0] != index:
            self._remember(self._extrapolate(index), index)
        return add_weighted(self.stored[:1], [1.0], onto)

    def _extrapolate(self, index: int) -> Tensor:
        if len(self.times) == 1:
            return self.stored[1]
        half = (index - self.times[0]) / 2.0
        full, last = (half / (newer - older) for newer, older in (self.times, self.recent))
        return add_weighted(self.stored, [last, 1.0 + full, -last, -full])

    def _remember(self, x: Tensor, index: int) -> None:
        self._push(0, x)
        self.recent = [index, *self.recent][:2]

    def _push(self, place: int, x: Tensor) -> None:
        """Puts a newer value in a place, and what was there two places on."""
        free = self.stored[place + 2]
        self.stored[place + 2], self.stored[place] = self.stored[place], free.copy_(x)
