"""The table and the picture of a calibration: caches beside runs without one, cheap first."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from .bench.front_table import FrontPoint
from .bench.plot import draw_panels, frame, scatter
from .cache_quality import HIGHER, Quality
from .experiments.cache import QUALITIES


@dataclass(frozen=True)
class CalibrationTable:
    """The figures of a calibration.

    title:   of the picture.
    images:  how many they are of.
    quality: what is asked for.
    figures: of caches, cheap first.
    plain:   of runs without one.
    """

    title: str
    images: int
    quality: Quality
    figures: tuple[FrontPoint, ...]
    plain: tuple[FrontPoint, ...] = ()

    def front(self) -> list[FrontPoint]:
        """Returns the caches that nothing cheaper is as good as."""
        best, front = math.inf, []
        for each in self.figures:
            if (badness := self.quality.badness(each.change or 0.0)) < best:
                best = badness
                front.append(each)
        return front

    def lines(self) -> Iterator[str]:
        """Yields the table: the front, the cheapest of each kind that will do, and plain runs."""
        quality = self.quality
        yield f"{QUALITIES[quality.metric]}, {self.images} images; distance from the converged run"
        yield ""
        yield f"| effective | {quality.metric} | meets {quality.bound:g} | distance | run |"
        yield "|---|---|---|---|---|"
        shown = [*self.front(), *self._list_cheapest(), *self.plain]
        for each in sorted(dict.fromkeys(shown), key=lambda each: each.cost):
            yield self._row(each)
        yield ""

    def _list_cheapest(self) -> Iterator[FrontPoint]:
        """Yields the cheapest setting of each kind of cache that will do."""
        able = [each for each in self.figures if self.quality.met(each.change or 0.0)]
        for family in dict.fromkeys(each.run.family for each in able):
            yield next(each for each in able if each.run.family == family)

    def _row(self, point: FrontPoint) -> str:
        run, value = point.run, point.change or 0.0
        cells = [f"{point.cost:.2f}", "", "", "", f"{run.schedule or run.solver}, without a cache"]
        if run.policy:
            mark = "yes" if self.quality.met(value) else ""
            cells[1:] = f"{value:.4g}", mark, "", f"`{run.policy}`"
        if point.error is not None:
            cells[3] = f"{point.error:.4f}"
        return f"| {' | '.join(cells)} |"

    def draw(self, path: Path) -> None:
        """Draws quality against effective evaluations."""
        draw_panels([partial(_paint, self)], path)


def _paint(table: CalibrationTable, axis: Any) -> None:
    quality, figures = table.quality, table.figures
    for i, name in enumerate(dict.fromkeys(each.run.family for each in figures)):
        shown = [(e.cost, e.change) for e in figures if e.run.family == name and e.change]
        if shown:
            scatter(axis, i, name, shown)
    front = [each for each in table.front() if each.change]
    axis.plot([each.cost for each in front], [each.change for each in front], "k-", lw=0.8)
    axis.axhline(quality.bound, color="grey", lw=0.8, ls="--", label="asked for")
    yscale = "linear" if quality.metric in HIGHER else "log"
    frame(axis, table.title, "effective evaluations", QUALITIES[quality.metric], yscale)
