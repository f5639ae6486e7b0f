"""The cache of a schedule as data: which of its calls run in full, and how others are forecast."""

from typing import Literal

from ..models.caching import FixedMask
from ..models.caching.predictors import take_predictor
from ..models.reading import StrictModel


class CachedCalls(StrictModel):
    """The cache that a schedule brings.

    compute:   the calls that run in full, rising, from 0. They count evaluations, not steps.
    predictor: how others are forecast, as `name:key=value,...`; see `fewstep list predictors`.
    level:     "last-block" or "module"; see `FixedMask`.
    """

    compute: tuple[int, ...]
    predictor: str = "taylor:order=1"
    level: Literal["last-block", "module"] = "last-block"

    def policy(self, calls: int, parts: int | None = None) -> FixedMask:
        """Returns it as a policy for a run of so many calls.

        parts: how many the network has that can be skipped; None is not checked.

        Raises:
            FewstepError: for a mask or a predictor that cannot be.
        """
        return FixedMask(
            self.compute,
            predictor=take_predictor(self.predictor),
            level=self.level,
            calls=calls,
            parts=parts,
        )
