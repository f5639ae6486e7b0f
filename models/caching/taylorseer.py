"""TaylorSeer: full calls at fixed intervals, forecasts between them (arXiv:2503.06923)."""

from typing import ClassVar, Literal

from pydantic.dataclasses import dataclass

from .base import (
    CacheInfo,
    CallPosition,
    Keep,
    Ungated,
    check_degree,
    check_room,
    check_whole,
    register,
)
from .forecast import Basis, Order


@register
@dataclass(frozen=True)
class TaylorSeer(Ungated):
    """Full calls are 0 .. first-1 and then every `interval`-th one; others are forecast.

    interval: 1 is off: every call is full.
    order:    0 repeats, 1 extrapolates along a line; up to 4.
    first:    full calls at the start, at least 1.
    level:    "module": the output of every attention and feed-forward is forecast, modulation,
              gates and residual additions stay true (published); "last-block": only what enters
              the head is forecast, which is cheaper in time and memory. A UNet has the latter
              alone, as what enters its outermost up block.
    basis:    "published", or "newton" for exact polynomial extrapolation.

    Of S calls, first + floor((S - first) / interval) are full.
    """

    info: ClassVar[CacheInfo] = CacheInfo(
        name="taylorseer",
        decides="call index",
        keeps="module outputs, or the last block's",
        runs_on="transformers; UNets with level=last-block",
        source="arXiv:2503.06923",
    )

    interval: int = 4
    order: int = 1
    first: int = 2
    level: Literal["module", "last-block"] = "module"
    basis: Basis = "published"

    def __post_init__(self) -> None:
        check_whole("interval", self.interval, 1, "1 is off, 4 is usual")
        check_whole("first", self.first, 1, "the first call has nothing to be forecast from")
        check_degree("order", self.order)

    @property
    def off(self) -> bool:
        return self.interval == 1

    def check(self, calls: int) -> None:
        if not self.off:
            check_room(calls, self.first, "the first calls")

    def must(self, now: CallPosition) -> bool | None:
        return now.index < self.first or (now.index - self.first + 1) % self.interval == 0

    @property
    def keep(self) -> Keep:
        return Keep("state", Order(self.order, self.basis, self.first))
