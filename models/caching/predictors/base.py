"""Predictors: what a skipped call is expected to give, from the values at full calls.

Every predictor is a weighted sum of stored values, F^ = sum_a w_a F_a. They differ in what decides
on the weights: the indices of calls alone, inner products of the values, or what a skipped call
shows.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass as plain
from functools import partial
from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, InstanceOf

from ...errors import SettingError
from ...registry import SettingsRegistry, strip_brackets
from ..memory import Memory, RowMemory, RowValues, Values


@plain(frozen=True, slots=True, kw_only=True)
class PredictorInfo:
    """Facts about a predictor, for `fewstep list predictors`.

    name:     what users type.
    kind:     what decides on the weights: "index" (known before the run), "inner products" of the
              values, "recursive" (earlier forecasts), or "observation" (what blocks that run at the
              skipped call add).
    exact_on: the series in the call index that it forecasts without an error, at any full calls.
    keeps:    the tensors stored for each that is forecast.
    source:   paper.
    """

    name: str
    kind: Literal["index", "inner products", "recursive", "observation"]
    exact_on: str
    keeps: str
    source: str


class Predictor(ABC):
    """The base of predictors, frozen values of settings.

    depth:       full values that a forecast looks at, at most; None for all of the run.
    exact_degree: the degree of the polynomials in the call index that it forecasts exactly; -1 if
                 it misses constants.
    needs_calls: whether the number of calls in a run must be known.
    needs_probe: whether it looks at what leading blocks add at the skipped call.
    waits:       whether the host must read numbers of the device during a run.
    """

    info: ClassVar[PredictorInfo]
    needs_calls: ClassVar[bool] = False
    needs_probe: ClassVar[bool] = False
    waits: ClassVar[bool] = False

    @property
    def depth(self) -> int | None:
        return 1

    @property
    def exact_degree(self) -> int:
        return 0

    @property
    def suits_any_mask(self) -> bool:
        """True if it runs on every list of full calls, and without a gate."""
        return not self.needs_probe and type(self).check is Predictor.check

    def check(  # noqa: B027  # most run on any calls
        self, full: Sequence[int] | None, calls: int
    ) -> None:
        """Raises SettingError if a run with these full calls, None for a gate's, is not for it."""

    @abstractmethod
    def make_memory(self, calls: int | None = None) -> Memory:
        """Makes the memory of one tensor in a run of so many calls."""

    def make_row_memory(self, calls: int | None = None) -> RowMemory:
        """Makes a memory where each row has full calls of its own.

        Raises:
            SettingError: if this predictor has none.
        """
        raise SettingError(
            f"{self.info.name} cannot forecast rows with full calls of their own; set reduce=max,"
            " or predictor=taylor:order=1"
        )


class IndexPredictor(Predictor):
    """The base of predictors whose weights follow from the indices of calls alone."""

    @property
    def wide(self) -> bool:
        """True to store the values in single precision: where |w| add up to more than 4."""
        return False

    @abstractmethod
    def weights(
        self, index: int, times: tuple[int, ...], calls: int | None = None
    ) -> tuple[float, ...]:
        """Returns the weights of the values at `times`, full calls with the newest first.

        Fewer than `depth` lower the order of the forecast.

        Args:
            index: the call to be forecast.
            calls: the number of calls in the run, where `needs_calls`.
        """

    def make_memory(self, calls: int | None = None) -> Memory:
        assert self.depth is not None
        return Values(self.depth, partial(self.weights, calls=calls), self.wide)

    def make_row_memory(self, calls: int | None = None) -> RowMemory:
        if self.depth is None:
            return super().make_row_memory(calls)
        return RowValues(self.depth, partial(self.weights, calls=calls), self.wide)


PREDICTORS: SettingsRegistry[Predictor] = SettingsRegistry("predictor", PredictorInfo)
register, predictor_names, predictor_class = PREDICTORS.register, PREDICTORS.names, PREDICTORS.get


def take_predictor(given: Predictor | str) -> Predictor:
    """Returns a predictor given as such or as `name:key=value`; brackets hold several settings.

    As in `taylorseer:predictor=[hermite:order=2,sigma=0.7],interval=3`.

    Raises:
        FewstepError: for a name or setting that cannot be.
    """
    return PREDICTORS.take(strip_brackets(given))


PredictorSetting = Annotated[InstanceOf[Predictor], BeforeValidator(take_predictor)]
