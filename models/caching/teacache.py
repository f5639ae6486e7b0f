"""TeaCache: the change of the first block's modulated input, accumulated (arXiv:2411.19108)."""

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

from pydantic.dataclasses import dataclass
from torch import nn

from ..architectures import published_calibrations
from ..errors import SettingError
from .base import Accumulated, CacheInfo, CallPosition, Keep, register
from .gate import Gate, Reduce
from .predictors import PredictorSetting, check_forecast, choose_predictor


def find_polynomial(root: nn.Module) -> tuple[float, ...] | None:
    """Returns the published polynomial of a network's checkpoint; None if there is none.

    Raises:
        SettingError: if its class and settings fit several checkpoints.
    """
    published = published_calibrations(root)
    if len(published) > 1:
        choices = "; ".join(f"{each.checkpoint} {list(each.polynomial)}" for each in published)
        raise SettingError(
            f"{type(root).__name__} with these settings may be any of {len(published)} checkpoints;"
            f" give the coefficients of yours: {choices}"
        )
    return published[0].polynomial if published else None


@register
@dataclass(frozen=True)
class TeaCache(Accumulated):
    """Skips until the rescaled changes since the last full call add up to the threshold.

    d_i = sum |s_i - s_{i-1}| / sum |s_{i-1}| of the modulated input s of the first block;
    skipped while sum max(0, p(d)) < threshold; then the residual of the whole stack is added.

    threshold:    published: .25 to .8 for FLUX, .1 to .15 for HunyuanVideo, .05 to .2 for Wan.
    warmup, final, max_consecutive, together: see `Gated`; published are 1, 1 and no limit.
    reduce:       "mean" is published.
    coefficients: of the polynomial p, the highest power first. None takes the published ones of the
                  checkpoint; [1, 0] is no rescaling. p is held above 0: published
                  polynomials fall below it.
    order:        of the residual's forecast; 0 repeats it (default, published).
    predictor:    of the residual, in place of order; see `fewstep list predictors`.
    """

    info: ClassVar[CacheInfo] = CacheInfo(
        name="teacache",
        decides="accumulated change of the modulated input",
        keeps="residual of the stack",
        runs_on="transformers",
        source="arXiv:2411.19108",
    )

    threshold: float = 0.2
    warmup: int = 1
    reduce: Reduce = "mean"
    coefficients: tuple[float, ...] | None = None
    order: int | None = None
    predictor: PredictorSetting | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.coefficients == ():
            raise SettingError("coefficients must not be empty; [1, 0] is no rescaling")
        check_forecast(self.predictor, order=self.order)

    def fit_to(self, root: nn.Module) -> "TeaCache":
        """Returns this policy with the checkpoint's published coefficients, unless some are given.

        Raises:
            SettingError: if none are published.
        """
        if self.coefficients is not None or self.off:
            return self
        polynomial = find_polynomial(root)
        if polynomial is None:
            raise SettingError(
                f"no coefficients of teacache are published for {type(root).__name__};"
                " calibrate them, or give coefficients=[1,0] for no rescaling"
            )
        return replace(self, coefficients=polynomial)

    @property
    def keep(self) -> Keep:
        return Keep(
            "residual", choose_predictor(self.predictor, self.order or 0, first=self.warmup)
        )

    @property
    def gate(self) -> Gate | None:
        return Gate("signal", every_call=True, reduce=self.reduce)

    def accepts(self, errors: Sequence[float], now: CallPosition) -> bool:
        changes = [self._rescale(error) for error in errors]
        return super().accepts([0.0 if change < 0.0 else change for change in changes], now)

    def _rescale(self, error: float) -> float:
        value = 0.0
        for coefficient in self.coefficients or (1.0, 0.0):
            value = value * error + coefficient
        return value
