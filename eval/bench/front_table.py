"""The points of fronts: panels, the baseline between its points, tables and plots.

The baseline is the same cost spent on plain steps: runs without the policy that is judged, in fewer
steps. An error stands beside that of the baseline at the same cost.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

from .plot import draw_panels, frame, scatter
from .table import markdown_table


@dataclass(frozen=True)
class FrontRun:
    """A cell of a front: one run, by a policy that saves work or without.

    nfe:      of the solver, before the policy.
    scale:    of classifier-free guidance.
    schedule: a name or a file that stands in place of the solver, and brings the policy.
    block:    of noises, from 0.
    """

    model: str
    solver: str
    nfe: int
    policy: str | None = None
    scale: float = 1.0
    schedule: str | None = None
    block: int = 0

    @property
    def plain(self) -> "FrontRun":
        """The same run without the policy."""
        return replace(self, policy=None)

    @property
    def panel(self) -> str:
        """The title of the panel within which it is compared."""
        return self.model if self.scale == 1.0 else f"{self.model}, CFG {self.scale:g}"

    @property
    def family(self) -> str:
        """The name of the policy, whose settings one line of a table holds; empty without one."""
        if self.schedule is not None:
            return "searched mask" if self.policy else "searched schedule"
        name, _, settings = (self.policy or "").partition(":")
        if name == "cfg+interval":
            return "interval"
        return f"{name} last-block" if "level=last-block" in settings else name


@dataclass(frozen=True)
class FrontPoint:
    """Facts of one run.

    cost:    effective evaluations or network rows, per image.
    error:   to the converged run; change: to the run without the policy. None: not known.
    seconds: per image; ratio: over those of the run without the policy; quartiles: of the ratios
             of single turns. None: not timed.
    parts:   the points of single blocks of noises, where there are several; it has their means.
    """

    run: FrontRun
    cost: float
    error: float | None = None
    change: float | None = None
    ratio: float | None = None
    seconds: float | None = None
    quartiles: tuple[float, float] | None = None
    parts: tuple["FrontPoint", ...] = ()


@dataclass(frozen=True)
class FrontPanel:
    """The points of one panel; baseline: the name of its family."""

    title: str
    points: tuple[FrontPoint, ...]
    baseline: str

    @property
    def families(self) -> list[str]:
        """The names of all families, the baseline first."""
        names = sorted({point.run.family or self.baseline for point in self.points})
        return sorted(names, key=lambda name: name != self.baseline)

    def family(self, name: str) -> list[FrontPoint]:
        """Returns the points of a family, cheap first."""
        points = [each for each in self.points if (each.run.family or self.baseline) == name]
        return sorted(points, key=lambda point: point.cost)

    def baseline_error(self, cost: float) -> float:
        """Returns the least error of the baseline at a cost; nan outside of what was measured.

        Of each solver it is log-linear between its steps; the best solver counts.
        """
        curves: dict[str, list[tuple[float, float]]] = {}
        for point in self.family(self.baseline):
            if point.error:
                curves.setdefault(point.run.solver, []).append((point.cost, point.error))
        errors = [interpolate(curve, cost) for curve in curves.values()]
        return min((error for error in errors if not math.isnan(error)), default=math.nan)

    def share(self, point: FrontPoint, cost: float | None = None) -> float:
        """Returns the error over that of the baseline, at the same cost or another; or nan."""
        cost = point.cost if cost is None else cost
        return math.nan if point.error is None else point.error / self.baseline_error(cost)

    def spread(self, point: FrontPoint) -> tuple[float, float] | None:
        """Returns the least and the largest share of a point in the blocks of noises."""
        shares = [self._part(part.run.block).share(part) for part in point.parts]
        known = [share for share in shares if not math.isnan(share)]
        return (min(known), max(known)) if known else None

    def _part(self, block: int) -> "FrontPanel":
        """Returns the panel of one block of noises."""
        parts = (part for point in self.points for part in point.parts)
        return replace(self, points=tuple(part for part in parts if part.run.block == block))

    def best(self, name: str, low: float, high: float) -> FrontPoint | None:
        """Returns the point of a family with the least error at a cost in (low, high]."""
        points = [p for p in self.family(name) if p.error is not None and low < p.cost <= high]
        return min(points, key=lambda point: point.error or 0.0, default=None)


def interpolate(points: Sequence[tuple[float, float]], at: float) -> float:
    """Returns the error at a cost, of points (cost, error) in rising cost; nan outside of them.

    It is log-linear from one point to the next.
    """
    for (a, e), (b, f) in pairwise(points):
        if a <= at <= b:
            return math.exp(math.log(e) + (at - a) / (b - a) * math.log(f / e))
    return next((error for cost, error in points if cost == at), math.nan)


class FrontTable(ABC):
    """How one kind of front is shown.

    baseline: the name of its family, and `line`, what the plot calls it.
    head:     of the first column; column: of the others, from a budget; budgets: their costs.
    intro:    what the figures are.
    xlabel, ylabel: of the plot.
    header:   of the CSV.
    """

    baseline: ClassVar[str]
    line: ClassVar[str]
    head: ClassVar[str]
    column: ClassVar[str]
    budgets: ClassVar[tuple[int, ...]]
    intro: ClassVar[str]
    xlabel: ClassVar[str]
    ylabel: ClassVar[str]
    header: ClassVar[str]

    @abstractmethod
    def window(self, budget: int) -> tuple[float, float]:
        """Returns the costs that a budget stands for, above the first and up to the second."""

    def share(self, panel: FrontPanel, point: FrontPoint, budget: int) -> float:
        """Returns the error over that of the baseline that stands in the column of a budget."""
        return panel.share(point)

    @abstractmethod
    def list_best(self, panel: FrontPanel) -> Iterator[str]:
        """Yields the best settings of each family, for the budgets."""

    @abstractmethod
    def csv_line(self, panel: FrontPanel, point: FrontPoint) -> str:
        """Returns one line of the CSV."""

    def append(self, panel: FrontPanel) -> Iterator[str]:
        """Yields what stands below the table of a panel."""
        yield from ()

    def panels(self, points: Sequence[FrontPoint]) -> list[FrontPanel]:
        """Returns the panels of some points, in the order they come."""
        titles = dict.fromkeys(point.run.panel for point in points)
        return [
            FrontPanel(title, tuple(p for p in points if p.run.panel == title), self.baseline)
            for title in titles
        ]

    def best(self, panel: FrontPanel, name: str, budget: int) -> FrontPoint | None:
        """Returns the point of a family with the least error for a budget."""
        return panel.best(name, *self.window(budget))

    def lines(self, points: Sequence[FrontPoint], table: str = "md") -> Iterator[str]:
        """Yields the table: of each family the best within a budget (md), or every point (csv)."""
        if table == "csv":
            yield self.header
            for panel in self.panels(points):
                ordered = sorted(panel.points, key=lambda point: point.cost)
                yield from (self.csv_line(panel, point) for point in ordered)
            return
        for panel in self.panels(points):
            yield from self._markdown(panel)
            yield from self.append(panel)

    def _markdown(self, panel: FrontPanel) -> Iterator[str]:
        """Yields a row per family, a column per budget: the error, its share of the baseline's."""
        yield f"### {panel.title}"
        yield ""
        yield self.intro
        yield ""
        rows = [(self.head, *map(self.column.format, self.budgets))]
        for name in panel.families:
            rows.append((name, *(self._text(panel, name, budget) for budget in self.budgets)))
        yield from markdown_table(rows, "---")
        yield ""
        yield "Best settings:"
        yield ""
        yield from self.list_best(panel)
        yield ""

    def _text(self, panel: FrontPanel, name: str, budget: int) -> str:
        point = self.best(panel, name, budget)
        if point is None or point.error is None:
            return ""
        share = self.share(panel, point, budget)
        return f"{point.error:.4f}" + ("" if math.isnan(share) else f" ({share:.2f})")

    def draw(self, points: Sequence[FrontPoint], path: Path) -> None:
        """Writes a plot of error against cost, with a panel for each of the table."""
        panels = self.panels(points)
        names = {name for panel in panels for name in panel.families} - {self.baseline}
        ordered = sorted(names, key=lambda name: (_least_share(panels, name), name))
        draw_panels([partial(self._paint, panel, ordered) for panel in panels], path)

    def _paint(self, panel: FrontPanel, names: Sequence[str], axis: Any) -> None:
        costs = [point.cost for point in panel.family(self.baseline) if point.error]
        errors = [panel.baseline_error(cost) for cost in costs]
        if costs:
            axis.plot(costs, errors, "k-o", markersize=4, label=self.line, zorder=3)
        for i, name in enumerate(names):
            shown = [(point.cost, point.error) for point in panel.family(name) if point.error]
            if shown:
                scatter(axis, i, name, shown)
        frame(axis, panel.title, self.xlabel, self.ylabel)


def _least_share(panels: Sequence[FrontPanel], name: str) -> float:
    """Returns the least error of a family over that of the baseline; infinity if none is known."""
    shares = [panel.share(point) for panel in panels for point in panel.family(name)]
    return min((share for share in shares if not math.isnan(share)), default=math.inf)
