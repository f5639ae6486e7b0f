"""A fixed list of full calls."""

from typing import ClassVar, Literal

from pydantic.dataclasses import dataclass

from ..errors import SettingError
from .base import CacheInfo, CallPosition, Keep, Policy, register
from .forecast import Basis
from .predictors import PredictorSetting, check_forecast, choose_predictor


@register
@dataclass(frozen=True)
class FixedMask(Policy):
    """Full calls are those listed; others are forecast.

    compute: indices of the full calls, rising, from 0, which must be among them. The order of the
             forecast grows by one with each.
    order:   0 repeats, 1 (default) extrapolates along a line; up to 4.
    basis:   "published", or "newton" (default) for exact polynomial extrapolation at uneven gaps.
    predictor: of skipped calls, in place of order and basis; see `fewstep list predictors`.
    level:   "last-block": what enters the head is forecast; "module": the output of every attention
             and feed-forward, on transformers.
    calls:   how many calls the run has that the mask was made for; None fits any that has enough.
    parts:   how many blocks or modules its network has that can be skipped; None fits any.
    """

    info: ClassVar[CacheInfo] = CacheInfo(
        name="fixed-mask",
        decides="listed calls",
        keeps="the last block's output, or module outputs",
        runs_on="transformers and UNets",
        source="steps mask of cache-dit",
    )

    compute: tuple[int, ...]
    order: int | None = None
    basis: Basis | None = None
    predictor: PredictorSetting | None = None
    level: Literal["last-block", "module"] = "last-block"
    calls: int | None = None
    parts: int | None = None

    def __post_init__(self) -> None:
        rising = all(a < b for a, b in zip(self.compute, self.compute[1:], strict=False))
        if not rising or self.compute[:1] != (0,):
            raise SettingError(
                f"compute must list rising call indices from 0, not {list(self.compute)};"
                " such as [0,1,2,5,8]"
            )
        check_forecast(self.predictor, order=self.order, basis=self.basis)
        if self.calls is not None:
            self._check_room(self.calls)

    @property
    def off(self) -> bool:
        return len(self.compute) == self.calls

    @property
    def needs_calls(self) -> bool:
        return True

    def check(self, calls: int) -> None:
        if self.calls not in (None, calls):
            raise SettingError(
                f"this mask was made for runs of {self.calls} calls, and this one has {calls}; take"
                f" {self.calls} steps of the solver that it was made for, or search another mask"
            )
        self._check_room(calls)

    def check_parts(self, parts: int) -> None:
        if self.parts not in (None, parts):
            raise SettingError(
                f"this mask was made for a network with {self.parts} parts that can be skipped, and"
                f" this one has {parts}; undo what changed its layers, or search another mask"
            )

    def _check_room(self, calls: int) -> None:
        """Raises SettingError if a full call lies behind the end of a run."""
        if self.compute[-1] >= calls:
            raise SettingError(
                f"compute lists call {self.compute[-1]}, but the run has {calls}, 0 to"
                f" {calls - 1}; a mask is made for one number of steps"
            )

    def must(self, now: CallPosition) -> bool | None:
        return now.index in self.compute

    @property
    def by_module(self) -> bool:
        return self.level == "module"

    @property
    def keep(self) -> Keep:
        order = 1 if self.order is None else self.order
        return Keep("state", choose_predictor(self.predictor, order, self.basis or "newton"))
