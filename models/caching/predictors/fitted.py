"""Weights fitted to full runs of one network, for one list of full calls."""

import math
from collections.abc import Sequence
from typing import ClassVar

from pydantic.dataclasses import dataclass

from ...errors import SettingError
from .base import IndexPredictor, PredictorInfo, register

MOST = 16.0  # |w| added up: more would blow up what the network gives

Row = tuple[int, tuple[int, ...], tuple[float, ...]]


@register
@dataclass(frozen=True)
class Fitted(IndexPredictor):
    """A table: for each skipped call the weights of the last full ones (after L2P).

    rows: of each skipped call its index, full calls before it without a gap, newest first, and
          their weights, as in [[3,[2,1],[1.51,-0.63]]]. Without any, `fewstep calibrate` fits
          them; nothing else can run.
    """

    info: ClassVar[PredictorInfo] = PredictorInfo(
        name="fitted",
        kind="index",
        exact_on="what it was fitted to",
        keeps="the longest row, at most 4 where calibrated",
        source="after L2P (arXiv:2604.26365)",
    )

    rows: tuple[Row, ...] = ()

    def __post_init__(self) -> None:
        for call, times, weights in self.rows:
            ordered = all(a > b for a, b in zip((call, *times), times, strict=False))
            if not times or len(times) != len(weights) or not ordered or times[-1] < 0:
                raise SettingError(
                    f"the row of call {call} must name earlier calls, newest first, and a weight"
                    " for each, as in [3,[2,1],[1.51,-0.63]]"
                )
            if not sum(abs(each) for each in weights) <= MOST:
                raise SettingError(
                    f"the weights of call {call} add up to more than {MOST:g} without their signs,"
                    " or are no numbers; calibrate again with more images"
                )
        if len({call for call, _, _ in self.rows}) < len(self.rows):
            raise SettingError("two rows are for the same call; keep one of them")

    @property
    def depth(self) -> int:
        return max((len(times) for _, times, _ in self.rows), default=1)

    @property
    def exact_degree(self) -> int:
        """The largest degree of polynomials that every row forecasts exactly."""
        degree = -1
        while self.rows and degree < 4 and all(_is_exact(row, degree + 1) for row in self.rows):
            degree += 1
        return degree

    @property
    def wide(self) -> bool:
        return any(sum(abs(each) for each in weights) > 4.0 for _, _, weights in self.rows)

    def check(self, full: Sequence[int] | None, calls: int) -> None:
        if full is None:
            raise SettingError(
                "fitted weights are for one list of full calls, and a gate decides here; take"
                " taylor:order=1, or a cache that skips by index"
            )
        for call in range(calls):
            if call not in full:
                self.weights(call, tuple(x for x in reversed(full) if x < call))

    def weights(
        self, index: int, times: tuple[int, ...], calls: int | None = None
    ) -> tuple[float, ...]:
        for call, known, weights in self.rows:
            if call == index and times[: len(known)] == known:
                return (*weights, *(0.0 for _ in times[len(known) :]))
        shown = list(times[: self.depth])
        raise SettingError(
            f"there are no fitted weights for call {index} after the full calls {shown}; they are"
            " for one number of steps and one list of full calls: take those, or fit them to these"
            " with fewstep calibrate --predictor fitted"
        )


def _is_exact(row: Row, degree: int) -> bool:
    call, times, weights = row
    moments = (w * (time - call) ** degree for w, time in zip(weights, times, strict=True))
    return math.isclose(sum(moments), 0.0**degree, abs_tol=1e-9)
