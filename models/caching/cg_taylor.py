"""CG-Taylor: the last block is forecast where the first one was foreseen (arXiv:2508.02240)."""

from typing import ClassVar

from pydantic.dataclasses import dataclass

from .base import CacheInfo, Gated, Keep, check_whole, register
from .forecast import Basis
from .gate import Gate
from .predictors import PredictorSetting, check_degree, check_forecast, choose_predictor


@register
@dataclass(frozen=True)
class CGTaylor(Gated):
    """Runs `lead` blocks; where their output was forecast well, the last block's is forecast too.

    error = sum |forecast - true| / sum |true| of the leading output. Both forecasts start from the
    last full call, so the error measures the same horizon as the skip.

    threshold: on the scale of hidden states, not that of first-block. Published: .008 for
               DiT-XL/2, .03 to .13 for FLUX, .08 for HunyuanVideo, .18 for Wan.
    warmup, final, max_consecutive, reduce, together: see `Gated`.
    o1, o2:    orders of the leading and of the last block's forecast, 0 to 4; both 1 by default.
    lead:      leading blocks that always run.
    stride:    the gate looks at every so many tokens.
    basis:     of these forecasts.
    predictor: of the last block's output, in place of o2; see `fewstep list predictors`.
    """

    info: ClassVar[CacheInfo] = CacheInfo(
        name="cg-taylor",
        decides="forecast of the leading block",
        keeps="leading and last block's output",
        runs_on="transformers",
        source="arXiv:2508.02240",
    )

    threshold: float = 0.05
    o1: int = 1
    o2: int | None = None
    lead: int = 1
    stride: int = 1
    basis: Basis = "published"
    predictor: PredictorSetting | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_degree("o1", self.o1)
        check_forecast(self.predictor, o2=self.o2)
        check_whole("lead", self.lead, 1, "the gate looks at what a block made")
        check_whole("stride", self.stride, 1, "1 looks at all tokens")

    @property
    def keep(self) -> Keep:
        order = 1 if self.o2 is None else self.o2
        return Keep("state", choose_predictor(self.predictor, order, self.basis, self.warmup))

    @property
    def gate(self) -> Gate | None:
        leading = choose_predictor(None, self.o1, self.basis, self.warmup)
        return Gate("state", leading, "true", reduce=self.reduce, stride=self.stride)
