"""The front of a report as SVG: cost against quality, on logarithmic axes."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from ...samplers.plan_file import JudgedPoint, Unit
from .report import TuneReport

WIDTH, HEIGHT = 400, 300
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 12, 40  # margins
ROOM = 0.06  # on either side of the points, of the whole axis
COSTS: dict[Unit, str] = {
    "ms": "milliseconds of a batch, as predicted",
    "rows": "network rows of an image",
}
SUBDIVISIONS = (  # of a power of ten, the finer the shorter an axis is
    (1, 2, 5),
    (1, 1.5, 2, 3, 4, 5, 6, 8),
    (1, 1.2, 1.4, 1.6, 1.8, 2, 2.2, 2.5, 2.8, 3, 3.2, 3.5, 4, 4.5, 5, 6, 7, 8, 9),
)
FEWEST = 4  # numbers on an axis, if there are so many round ones


@dataclass(frozen=True)
class QualityColumn:
    """A column of quality: what it is called, and what it is of a point."""

    label: str
    read: Callable[[JudgedPoint], float | None]
    interval: Callable[[JudgedPoint], tuple[float, float] | None] = lambda point: None


def _read_distance(point: JudgedPoint) -> float | None:
    return None if point.columns is None else point.columns.distance.value


def _bound_distance(point: JudgedPoint) -> tuple[float, float] | None:
    column = None if point.columns is None else point.columns.distance
    return None if column is None else (column.low, column.high)


def _read_features(point: JudgedPoint) -> float | None:
    seen = None if point.columns is None else point.columns.features
    return None if seen is None else seen.value


def _bound_features(point: JudgedPoint) -> tuple[float, float] | None:
    seen = None if point.columns is None else point.columns.features
    return None if seen is None else (seen.low, seen.high)


def list_qualities(report: TuneReport) -> list[QualityColumn]:
    """Returns the columns that a report has: distance, and features or FD."""
    qualities = [QualityColumn("distance to the converged run", _read_distance, _bound_distance)]
    extractor = report.judged.extractor
    if any(_read_features(point) is not None for point in report.points):
        label = f"paired distance of {extractor} features"
        qualities.append(QualityColumn(label, _read_features, _bound_features))
    if any(point.fd is not None for point in report.points):
        qualities.append(
            QualityColumn(f"FD of {extractor} features to real images", lambda point: point.fd)
        )
    return qualities


@dataclass(frozen=True)
class Axis:
    """A logarithmic axis from low to high, drawn from start to end in units of the picture."""

    low: float
    high: float
    start: float
    end: float

    @classmethod
    def of(cls, values: Sequence[float], start: float, end: float) -> "Axis":
        """Returns the axis that holds positive values, with some room beside them."""
        low, high = min(values), max(values)
        if high < 1.05 * low:
            low, high = low / 1.2, high * 1.2
        room = (high / low) ** ROOM
        return cls(low / room, high * room, start, end)

    def place(self, value: float) -> float:
        """Returns where a value is drawn."""
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return round(self.start + share * (self.end - self.start), 2)

    @property
    def ticks(self) -> list[tuple[float, str]]:
        """The places of round numbers, and the numbers."""
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        shown: list[float] = []
        for steps in SUBDIVISIONS:
            values = [s * 10.0**power for power in powers for s in steps]
            shown = [v for v in values if self.low <= v <= self.high]
            if len(shown) >= FEWEST:
                break
        return [(self.place(v), f"{v:g}") for v in shown]


@dataclass(frozen=True)
class Mark:
    """A point of a panel.

    kind:   of the setting. number: of the plan, if it was chosen.
    bar:    where its interval begins and ends.
    """

    x: float
    y: float
    kind: str
    text: str
    number: int | None = None
    bar: tuple[float, float] | None = None


@dataclass(frozen=True)
class FrontFigure:
    """One panel: all points of a report, by cost and one column of quality."""

    report: TuneReport
    unit: Unit
    quality: QualityColumn

    @property
    def title(self) -> str:
        """The panel in words."""
        return f"{self.quality.label} against {self.cost}"

    @property
    def cost(self) -> str:
        """The cost in words."""
        return COSTS[self.unit]

    @cached_property
    def _points(self) -> list[tuple[JudgedPoint, int | None]]:
        """Every point that can be drawn with the number of its plan; those of plans come last."""
        chosen = {each.plan.point.name: n for n, each in enumerate(self.report.plans, start=1)}
        plans = {each.plan.point.name: each.plan.point for each in self.report.plans}
        others = [each for each in self.report.points if each.name not in plans]
        listed = [*((each, None) for each in others), *((p, chosen[n]) for n, p in plans.items())]
        return [(each, n) for each, n in listed if self._x(each) and self.quality.read(each)]

    def _x(self, point: JudgedPoint) -> float | None:
        """Returns the cost of a point; of times the predicted one, which every point has."""
        return point.cost.predicted if self.unit == "ms" else point.cost.amount(self.unit)

    def __bool__(self) -> bool:
        return bool(self._points)

    @cached_property
    def x(self) -> Axis:
        """The axis of costs."""
        values = [self._x(each) or 0.0 for each, _ in self._points]
        return Axis.of(values, LEFT, WIDTH - RIGHT)

    @cached_property
    def y(self) -> Axis:
        """The axis of quality, the better the lower."""
        values = [self.quality.read(each) or 0.0 for each, _ in self._points]
        bars = [self.quality.interval(each) for each, number in self._points if number]
        ends = [end for bar in bars if bar is not None for end in bar if end > 0.0]
        return Axis.of([*values, *ends], HEIGHT - BOTTOM, TOP)

    def marks(self) -> Iterator[Mark]:
        """Yields all points, the chosen ones last."""
        for point, number in self._points:
            cost, value = self._x(point) or 0.0, self.quality.read(point) or 0.0
            bounds = self.quality.interval(point) if number else None
            shown = bounds is not None and bounds[0] > 0.0
            yield Mark(
                self.x.place(cost),
                self.y.place(value),
                point.kind,
                f"{point.name}: {cost:.4g} {self.unit}, {value:.4g}",
                number,
                (self.y.place(bounds[0]), self.y.place(bounds[1])) if bounds and shown else None,
            )

    def trace(self) -> str:
        """Returns the line through the chosen plans, as the points of a polyline."""
        marks = sorted((mark.x, mark.y) for mark in self.marks() if mark.number)
        return " ".join(f"{x},{y}" for x, y in marks)
