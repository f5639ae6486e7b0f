"""FasterCache: outputs of attention are extrapolated with a growing weight (arXiv:2410.19355)."""

from typing import ClassVar

from pydantic.dataclasses import dataclass

from ..errors import SettingError
from .base import CacheInfo, Keep, register
from .pab import AttentionPolicy
from .predictors import IndexPredictor, PredictorInfo


@register
@dataclass(frozen=True)
class FasterCache(AttentionPolicy):
    """Runs attention at every so many-th call of a window, and extrapolates its output in between.

    F^ = F_0 + w k (F_0 - F_1) / (x_0 - x_1), k calls after x_0, with the last two true outputs.

    The published F_0 and F_1 are the outputs of the two calls before, forecasts too, without a look
    at how far apart true ones are; on a line the two agree at the first skip alone. The part of
    FasterCache that saves unconditional evaluations is the guidance `cfg-cache`.

    spatial, temporal, cross, window: see `AttentionPolicy`; published: 2 from timestep 680 on.
    weight: w; None lets it rise from 0 to 1 over the window, as the paper does. diffusers has .5,
            the authors' code for CogVideoX .3.
    """

    info: ClassVar[CacheInfo] = CacheInfo(
        name="fastercache",
        decides="call index, in a window of the run",
        keeps="two outputs of each attention",
        runs_on="networks with attention",
        source="arXiv:2410.19355",
    )

    window: tuple[float, float] = (0.32, 1.0)
    weight: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weight is not None and not 0.0 <= self.weight <= 1.0:
            raise SettingError(
                f"weight lies in 0 (repeat) to 1 (a line), not {self.weight:g}; without, it rises"
            )

    @property
    def keep(self) -> Keep:
        return Keep("state", GrowingLine(*self.window, self.weight))


@dataclass(frozen=True)
class GrowingLine(IndexPredictor):
    """A line through the last two values, whose slope is taken times a weight.

    low, high: fractions of the run between which the weight rises from 0 to 1.
    weight:    one for all calls, instead.
    """

    info: ClassVar[PredictorInfo] = PredictorInfo(
        name="growing-line",
        kind="index",
        exact_on="constants",
        keeps="2",
        source="arXiv:2410.19355",
    )
    needs_calls: ClassVar[bool] = True

    low: float
    high: float
    weight: float | None = None

    @property
    def depth(self) -> int:
        return 2

    def weights(
        self, index: int, times: tuple[int, ...], calls: int | None = None
    ) -> tuple[float, ...]:
        if len(times) == 1:
            return (1.0,)
        slope = self._find_weight(index, calls or 1) * (index - times[0]) / (times[0] - times[1])
        return 1.0 + slope, -slope

    def _find_weight(self, index: int, calls: int) -> float:
        if self.weight is not None:
            return self.weight
        return min(max((index / calls - self.low) / (self.high - self.low), 0.0), 1.0)
