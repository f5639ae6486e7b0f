"""MagCache: the growth of the stack's residual, measured beforehand (arXiv:2506.09045)."""

import math
from dataclasses import replace
from typing import ClassVar

from pydantic.dataclasses import dataclass
from torch import nn

from ..architectures import published_calibrations
from ..errors import SettingError
from .base import CacheInfo, CallPosition, Keep, Policy, check_threshold, check_whole, register
from .predictors import PredictorSetting, check_forecast, choose_predictor


def find_ratios(root: nn.Module) -> tuple[float, ...]:
    """Returns the published ratios of a network's checkpoint, one per step of a run.

    Raises:
        SettingError: if none are published for it.
    """
    published = [each.ratios for each in published_calibrations(root) if each.ratios is not None]
    if not published:
        raise SettingError(
            f"magcache has no ratios for this {type(root).__name__}; measure them with "
            "fewstep calibrate: they depend on the checkpoint, the scheduler and the steps"
        )
    return tuple(published[0]())


@register
@dataclass(frozen=True)
class MagCache(Policy):
    """Skips while the residual's length, as calibrated, has moved little since the last full call.

    E = sum_i |1 - g_{last+1} .. g_i| over the calls since then; skipped while E <= threshold.
    No tensor is looked at during the run.

    ratios:          g_i = mean |r_i| / |r_{i-1}| of the stack's residual at each call of a full
                     run; g_0 is 1. For another number of calls the nearest are taken, which is
                     wrong for another solver or grid: calibrate those. None takes the published
                     ones of FLUX.1.
    threshold:       0 is off. Published: .24 for FLUX, .12 for Wan and HunyuanVideo.
    max_consecutive: skips in a row at most.
    retention:       the fraction of calls at the start that are full.
    order:           of the residual's forecast; 0 repeats it (default, published).
    predictor:       of the residual, in place of order; see `fewstep list predictors`.
    """

    info: ClassVar[CacheInfo] = CacheInfo(
        name="magcache",
        decides="call index and calibrated ratios",
        keeps="residual of the stack",
        runs_on="transformers",
        source="arXiv:2506.09045",
    )

    ratios: tuple[float, ...] | None = None
    threshold: float = 0.06
    max_consecutive: int = 3
    retention: float = 0.2
    order: int | None = None
    predictor: PredictorSetting | None = None

    def __post_init__(self) -> None:
        check_threshold(self.threshold)
        check_whole("max_consecutive", self.max_consecutive, 1, "for no skips set threshold=0")
        check_forecast(self.predictor, order=self.order)
        given = self.ratios if self.ratios is not None else (1.0,)
        if not given or not all(0.0 < g < math.inf for g in given):
            raise SettingError("ratios must be positive numbers, one per call of a full run")
        if not 0.0 <= self.retention < 1.0:
            raise SettingError(f"retention lies in 0 to 1, not {self.retention:g}; 0.2 is usual")

    def fit_to(self, root: nn.Module) -> "MagCache":
        """Returns this policy with the published ratios of the network, unless some are given.

        Raises:
            SettingError: if none are published.
        """
        given = self.ratios is not None or self.off
        return self if given else replace(self, ratios=find_ratios(root))

    @property
    def off(self) -> bool:
        return self.threshold == 0.0

    @property
    def needs_calls(self) -> bool:
        return not self.off

    def check(self, calls: int) -> None:
        if not self.off and int(self.retention * calls + 0.5) >= calls:
            raise SettingError(
                f"retention={self.retention:g} of {calls} calls leaves none to skip; lower it"
            )

    def must(self, now: CallPosition) -> bool | None:
        ratios = self.ratios or (1.0,)
        calls = now.calls or len(ratios)
        if self.off or now.index < max(1, int(self.retention * calls + 0.5)):
            return True
        product, error = 1.0, 0.0
        for i in range(now.index - now.since + 1, now.index + 1):
            product *= ratios[_find_nearest(i, calls, len(ratios))]
            error += abs(1.0 - product)
        return not (error <= self.threshold and now.since <= self.max_consecutive)

    @property
    def keep(self) -> Keep:
        return Keep("residual", choose_predictor(self.predictor, self.order or 0))


def _find_nearest(index: int, calls: int, known: int) -> int:
    """Returns the place in a list of `known` that stands for one of `calls`."""
    return round(index * (known - 1) / (calls - 1)) if calls > 1 else 0
