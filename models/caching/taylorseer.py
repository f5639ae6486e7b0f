"""TaylorSeer: full calls at fixed intervals, forecasts between them (arXiv:2503.06923)."""

from typing import ClassVar, Literal

from pydantic.dataclasses import dataclass

from .base import CacheInfo, Keep, Periodic, register
from .forecast import Basis
from .predictors import PredictorSetting, check_forecast, choose_predictor


@register
@dataclass(frozen=True)
class TaylorSeer(Periodic):
    """Full calls are 0 .. first-1 and then every `interval`-th one; others are forecast.

    interval: 1 is off: every call is full.
    order:    0 repeats, 1 (default) extrapolates along a line; up to 4.
    first:    full calls at the start, at least 1.
    level:    "module": the output of every attention and feed-forward is forecast, modulation,
              gates and residual additions stay true (published); "last-block": only what enters
              the head is forecast, which is cheaper in time and memory. A UNet has the latter
              alone, as what enters its outermost up block.
    basis:    "published" (default), or "newton" for exact polynomial extrapolation.
    predictor: of skipped calls, in place of order and basis; see `fewstep list predictors`.

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
    order: int | None = None
    first: int = 2
    level: Literal["module", "last-block"] = "module"
    basis: Basis | None = None
    predictor: PredictorSetting | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_forecast(self.predictor, order=self.order, basis=self.basis)

    @property
    def by_module(self) -> bool:
        return self.level == "module"

    @property
    def keep(self) -> Keep:
        order = 1 if self.order is None else self.order
        return Keep("state", choose_predictor(self.predictor, order, self.basis, self.first))
