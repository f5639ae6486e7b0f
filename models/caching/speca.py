"""SpeCa: forecasts of all sub-modules, verified by the last block (arXiv:2509.11628)."""

import math
from collections.abc import Sequence
from typing import ClassVar

from pydantic.dataclasses import dataclass

from ..errors import SettingError
from .base import CacheInfo, CallPosition, Gated, Keep, check_whole, register
from .gate import Gate
from .predictors import PredictorSetting, choose_predictor


@register
@dataclass(frozen=True)
class SpeCa(Gated):
    """Forecasts every attention and feed-forward, and runs the last block truly to verify that.

    error_i = sum |forecast - true| / sum |true| of the last block's output at call i, on one input;
    call i + 1 is skipped if error_i <= max(floor, threshold * decay^((i + 1) / calls)).

    The verification costs one block of a skipped call, and its outcome steers the next call, so
    that the host never waits for it. The published error is a mean of quotients, which small
    entries dominate; this is a quotient of sums.

    threshold: at the first call; 0 is off. Published: .1 with decay=.01 and floor=.01 for DiT, 7
               with decay=.3 and floor=.1 for FLUX.
    decay:     what is left of the threshold at the end of the run.
    floor:     the threshold falls no further.
    warmup, final, max_consecutive, together: see `Gated`. Published are 5 skips in a row at most
               for DiT, 8 for FLUX; of a warm-up of 3 the published code runs 0 and 2 in full alone.
    least:     skips in a row that need no verification, for none came before; published: 2.
    reduce:    "mean" (published) or "max".
    predictor: of each output, a line by default.
    """

    info: ClassVar[CacheInfo] = CacheInfo(
        name="speca",
        decides="the last block's forecast at the call before",
        keeps="module outputs",
        runs_on="transformers",
        source="arXiv:2509.11628",
    )

    threshold: float = 0.1
    decay: float = 0.01
    floor: float = 0.01
    max_consecutive: int = 5
    least: int = 1
    predictor: PredictorSetting | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("least", self.least, 1, "the first skip has nothing to be judged by")
        if not 0.0 < self.decay <= 1.0:
            raise SettingError(f"decay lies above 0 and up to 1, not {self.decay:g}; 1 is none")
        if not 0.0 <= self.floor < float("inf"):
            raise SettingError(f"floor must be at least 0, not {self.floor:g}; 0.01 is usual")
        if self.reduce == "per-sample":
            raise SettingError(
                "reduce of speca is max or mean: sub-modules are forecast for all images at once"
            )

    @property
    def needs_calls(self) -> bool:
        return not self.off and (self.final > 0 or self.decay < 1.0)

    @property
    def by_module(self) -> bool:
        return True

    @property
    def keep(self) -> Keep:
        return Keep("state", choose_predictor(self.predictor, 1, first=self.warmup))

    @property
    def gate(self) -> Gate | None:
        return Gate("block", relative_to="true", reduce=self.reduce)

    def must(self, now: CallPosition) -> bool | None:
        decided = super().must(now)
        return False if decided is None and now.since <= self.least else decided

    def accepts(self, errors: Sequence[float], now: CallPosition) -> bool:
        passed = now.index / now.calls if now.calls else 0.0
        return errors[-1] <= max(self.floor, self.threshold * math.pow(self.decay, passed))
