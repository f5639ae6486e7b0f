"""The cache of a schedule as data: which of its calls run in full, and how others are forecast."""

from typing import Any, Literal

from ..models.caching import FixedMask
from ..models.errors import UnknownNameError
from ..models.reading import StrictModel
from ..models.registry import parse_spec

BASES = {"reuse": "newton", "taylor": "published", "newton": "newton"}


class CachedCalls(StrictModel):
    """The cache that a schedule brings.

    compute:   the calls that run in full, rising, from 0. They count evaluations, not steps.
    predictor: how others are forecast, as `name:key=value,...`.
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
        name, settings = parse_spec(self.predictor)
        if name not in BASES:
            raise UnknownNameError("predictor", name, BASES)
        forecast: dict[str, Any] = {"order": 0 if name == "reuse" else 1, "basis": BASES[name]}
        return FixedMask(
            self.compute, **forecast | settings, level=self.level, calls=calls, parts=parts
        )
