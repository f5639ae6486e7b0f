"""First-block cache and its generalisation, DBCache: the residual of the stack is kept."""

from typing import ClassVar

from pydantic.dataclasses import dataclass

from .base import CacheInfo, Gated, Keep, check_whole, register
from .gate import Gate
from .predictors import PredictorSetting, check_forecast, choose_predictor


@register
@dataclass(frozen=True)
class FirstBlock(Gated):
    """Runs `lead` blocks; if they add what they added at the last full call, so will the others.

    r = h_lead - h_0,  error = sum |r* - r| / sum |r*|,  h_end = h_lead + R*
    with r* and R* = h_end - h_lead of the last full call.

    threshold: on the scale of residuals. Published: .08 for FLUX, .06 for HunyuanVideo.
    warmup, final, max_consecutive, reduce, together: see `Gated`.
    lead:      leading blocks that always run: Fn of DBCache, 1 in first-block cache.
    tail:      trailing blocks that always run: Bn of DBCache.
    order:     of the forecast of R; 0 repeats it (default, published), 1 is DBCache's Taylor
               calibrator.
    predictor: of R, in place of order; see `fewstep list predictors`.
    """

    info: ClassVar[CacheInfo] = CacheInfo(
        name="first-block",
        decides="change of the leading residual",
        keeps="residual of the other blocks",
        runs_on="transformers",
        source="ParaAttention; DBCache (cache-dit)",
    )

    threshold: float = 0.08
    lead: int = 1
    tail: int = 0
    order: int | None = None
    predictor: PredictorSetting | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("lead", self.lead, 1, "the gate looks at what a block added")
        check_whole("tail", self.tail, 0, "0 is usual")
        check_forecast(self.predictor, order=self.order)

    @property
    def keep(self) -> Keep:
        return Keep(
            "residual", choose_predictor(self.predictor, self.order or 0, first=self.warmup)
        )

    @property
    def gate(self) -> Gate | None:
        return Gate("residual", reduce=self.reduce)
