"""A fixed list of full calls."""

from typing import ClassVar

from pydantic.dataclasses import dataclass

from ..errors import SettingError
from .base import CacheInfo, CallPosition, Keep, Policy, check_degree, register
from .forecast import Basis, Order


@register
@dataclass(frozen=True)
class FixedMask(Policy):
    """Full calls are those listed; at others, what enters the head is forecast.

    compute: indices of the full calls, rising, from 0, which must be among them. The order of the
             forecast grows by one with each.
    order:   0 repeats, 1 extrapolates along a line; up to 4.
    basis:   "published", or "newton" for exact polynomial extrapolation at uneven gaps.
    """

    info: ClassVar[CacheInfo] = CacheInfo(
        name="fixed-mask",
        decides="listed calls",
        keeps="the last block's output",
        runs_on="transformers and UNets",
        source="steps mask of cache-dit",
    )

    compute: tuple[int, ...]
    order: int = 1
    basis: Basis = "newton"

    def __post_init__(self) -> None:
        rising = all(a < b for a, b in zip(self.compute, self.compute[1:], strict=False))
        if not rising or self.compute[:1] != (0,):
            raise SettingError(
                f"compute must list rising call indices from 0, not {list(self.compute)};"
                " such as [0,1,2,5,8]"
            )
        check_degree("order", self.order)

    @property
    def needs_calls(self) -> bool:
        return True

    def check(self, calls: int) -> None:
        if self.compute[-1] >= calls:
            raise SettingError(
                f"compute lists call {self.compute[-1]}, but the run has {calls}, 0 to"
                f" {calls - 1}; a mask is made for one number of steps"
            )

    def must(self, now: CallPosition) -> bool | None:
        return now.index in self.compute

    @property
    def keep(self) -> Keep:
        return Keep("state", Order(self.order, self.basis))
