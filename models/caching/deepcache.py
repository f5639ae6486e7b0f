"""DeepCache: the deep part of a UNet runs at fixed intervals (arXiv:2312.00858)."""

from typing import ClassVar

from pydantic.dataclasses import dataclass

from .base import CacheInfo, Keep, Periodic, check_whole, register
from .predictors import PredictorSetting, check_forecast, choose_predictor


@register
@dataclass(frozen=True)
class DeepCache(Periodic):
    """Every `interval`-th call is full; at others only the rim outside of `branch` runs.

    interval: 1 is off, 3 to 5 are published.
    branch:   0 keeps what enters the outermost up block's last layer, the cheapest; higher ones
              run more.
    order:    of the forecast of the kept feature; 0 repeats it (default, published).
    predictor: of this feature, in place of order; see `fewstep list predictors`.
    """

    info: ClassVar[CacheInfo] = CacheInfo(
        name="deepcache",
        decides="call index",
        keeps="the feature that enters the rim",
        runs_on="UNets",
        source="arXiv:2312.00858",
    )

    interval: int = 3
    branch: int = 0
    order: int | None = None
    predictor: PredictorSetting | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("branch", self.branch, 0, "0 is the cheapest")
        check_forecast(self.predictor, order=self.order)

    @property
    def unet_branch(self) -> int | None:
        return self.branch

    @property
    def keep(self) -> Keep:
        return Keep("state", choose_predictor(self.predictor, self.order or 0))
