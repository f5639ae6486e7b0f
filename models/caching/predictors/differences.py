"""Reuse and extrapolation from differences: the orders of TaylorSeer and of Newton's formula."""

from abc import abstractmethod
from typing import Any, ClassVar

from pydantic.dataclasses import dataclass

from ...errors import SettingError
from ...registry import format_spec
from ..forecast import Basis, FiniteDifferences, Order, RowDifferences, weigh_values
from ..memory import Memory, RowMemory
from .base import IndexPredictor, Predictor, PredictorInfo, register


def check_degree(name: str, value: int) -> None:
    """Raises SettingError unless an order lies in 0 .. 4."""
    if not 0 <= value <= 4:
        raise SettingError(f"{name} must be 0 (repeat) to 4, not {value}; 1 is usual")


def _check_first(value: int) -> None:
    if value < 1:
        raise SettingError(f"first must be at least 1, not {value}; 1 delays no slope")


@register
@dataclass(frozen=True)
class Reuse(IndexPredictor):
    """F^ = F_0, the value at the last full call."""

    info: ClassVar[PredictorInfo] = PredictorInfo(
        name="reuse",
        kind="index",
        exact_on="constants",
        keeps="1",
        source="FORA (arXiv:2407.01425)",
    )

    def weights(
        self, index: int, times: tuple[int, ...], calls: int | None = None
    ) -> tuple[float, ...]:
        return (1.0, *(0.0 for _ in times[1:]))


class DifferencePredictor(IndexPredictor):
    """The base of predictors that store differences (`forecast`) in place of values."""

    @property
    @abstractmethod
    def differences(self) -> Order:
        """The order and the kind of the differences."""

    @property
    def depth(self) -> int:
        return self.differences.degree + 1

    @property
    def wide(self) -> bool:
        return self.differences.wide

    def weights(
        self, index: int, times: tuple[int, ...], calls: int | None = None
    ) -> tuple[float, ...]:
        order = self.differences
        usable = order.select(times)
        rows = order.expand(usable)
        factors = order.weights(index, usable, len(rows))
        return weigh_values(rows, factors, len(times))

    def make_memory(self, calls: int | None = None) -> Memory:
        return FiniteDifferences(self.differences)

    def make_row_memory(self, calls: int | None = None) -> RowMemory:
        return RowDifferences(self.differences)


@register
@dataclass(frozen=True)
class Taylor(DifferencePredictor):
    """Taylor's formula with backward differences for derivatives, as published.

    D_{j+1} = (D_j - D_j before) / (x_0 - x_1),  F^ = D_0 + damping * sum_{j>0} k^j / j! D_j

    order:   0 repeats, 1 extrapolates along a line; up to 4.
    damping: of all differences, 0 (repeat) to 1; 0.5 with order 1 is Hermite's of order 1.
    first:   slopes are formed from the last of so many full calls at the start on.
    """

    info: ClassVar[PredictorInfo] = PredictorInfo(
        name="taylor",
        kind="index",
        exact_on="lines; constants with order=0 or damping",
        keeps="order + 1",
        source="TaylorSeer (arXiv:2503.06923)",
    )

    order: int = 1
    damping: float = 1.0
    first: int = 1

    def __post_init__(self) -> None:
        check_degree("order", self.order)
        if not 0.0 <= self.damping <= 1.0:
            raise SettingError(f"damping lies in 0 (repeat) to 1, not {self.damping:g}")
        _check_first(self.first)

    @property
    def differences(self) -> Order:
        return Order(self.order, "published", self.first, self.damping)

    @property
    def exact_degree(self) -> int:
        return min(self.order, 1) if self.damping == 1.0 else 0


@register
@dataclass(frozen=True)
class Newton(DifferencePredictor):
    """The polynomial through the last order + 1 values, by divided differences.

    order: 0 repeats, 1 extrapolates along a line; up to 4.
    first: slopes are formed from the last of so many full calls at the start on.
    """

    info: ClassVar[PredictorInfo] = PredictorInfo(
        name="newton",
        kind="index",
        exact_on="polynomials of degree order",
        keeps="order + 1",
        source="Newton's divided differences",
    )

    order: int = 2
    first: int = 1

    def __post_init__(self) -> None:
        check_degree("order", self.order)
        _check_first(self.first)

    @property
    def differences(self) -> Order:
        return Order(self.order, "newton", self.first)

    @property
    def exact_degree(self) -> int:
        return self.order


def check_forecast(predictor: Predictor | None, **others: Any) -> None:
    """Raises SettingError where a predictor is given and an order or basis too."""
    given = {name: value for name, value in others.items() if value is not None}
    for name, value in given.items():
        if predictor is not None:
            raise SettingError(
                f"predictor={format_spec(predictor)} and {name}={value} both say how skipped calls"
                f" are forecast; drop {name}"
            )
        if isinstance(value, int):
            check_degree(name, value)


def choose_predictor(
    given: Predictor | None, order: int, basis: Basis | None = None, first: int = 1
) -> Predictor:
    """Returns the predictor that is given, or else that of an order and a basis."""
    if given is not None:
        return given
    return Newton(order, first) if basis == "newton" else Taylor(order, first=first)
