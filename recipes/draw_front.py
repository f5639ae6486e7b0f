"""Draws docs/front.png: effective evaluations against distance and FD, from reports of tune.

    fewstep tune fashion-dit --points 4,6,8 --out front.json
    python recipes/draw_front.py front.report.json docs/front.png

Of diffusers' schedulers, hand-made settings and searched tables each panel shows the best at each
cost; the plans are what tune chose. The dashed line is the fair baseline: the same cost spent on
plain steps of the best hand-made setting. What is shown was judged on test noises, which chose
nothing.
"""

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from fewstep.eval.bench.plot import colour, draw_panels, frame, marker
from fewstep.eval.tune.report import TuneReport
from fewstep.models.errors import SettingError
from fewstep.samplers.plan_file import JudgedPoint

SERIES = {
    "diffusers, best scheduler": ("rival",),
    "best hand-made": ("named",),
    "searched": ("searched", "preset"),
}
PLANS, PLAIN = "tuned plan", "best hand-made"
Read = Callable[[JudgedPoint], float | None]
Series = dict[str, list[tuple[float, float]]]  # (cost, value) by name


def read_distance(point: JudgedPoint) -> float | None:
    """Returns the distance of a point from the converged run."""
    return point.columns.distance.value if point.columns else None


def read_features(point: JudgedPoint) -> float | None:
    """Returns the distance of the features of its images."""
    return point.columns.features.value if point.columns and point.columns.features else None


def read_fd(point: JudgedPoint) -> float | None:
    """Returns the Frechet distance of its images from real ones."""
    return point.fd


def find_best(points: Sequence[JudgedPoint], read: Read) -> list[tuple[float, float]]:
    """Returns the least value at each cost, rounded to tenths of an evaluation."""
    best: dict[float, float] = {}
    for point in points:
        value, cost = read(point), round(point.cost.effective, 1)
        if value is not None and value < best.get(cost, float("inf")):
            best[cost] = value
    return sorted(best.items())


def list_series(reports: Sequence[TuneReport], read: Read) -> Series:
    """Returns (cost, value) by the name of the series; those without a value are left out."""
    tested = [p for report in reports for p in report.points if p.noises == "test"]
    series = {
        name: find_best([point for point in tested if point.kind in kinds], read)
        for name, kinds in SERIES.items()
    }
    plans = [written.plan.point for report in reports for written in report.plans]
    series[PLANS] = find_best(plans, read)
    return {name: points for name, points in series.items() if points}


def paint(series: Series, title: str, last: bool, axis: Any) -> None:
    """Fills a panel; the last one has the legend of all."""
    for name, points in series.items():
        i, (costs, values) = [*SERIES, PLANS].index(name), zip(*points, strict=True)
        label = f"{name} (the fair baseline)" if name == PLAIN else name
        looks = {"linestyle": "--" if name == PLAIN else "-", "color": colour(i)}
        if name == PLANS:  # around the mark of another series where the plan is that one
            looks |= {"markersize": 11, "markerfacecolor": "none"}
        axis.plot(costs, values, label=label, marker=marker(i), linewidth=2, **looks)
    axis.xaxis.get_major_locator().set_params(integer=True)
    frame(axis, title, "effective evaluations" if last else "", "", legend=last)


def choose_columns(reports: Sequence[TuneReport]) -> dict[str, Series]:
    """Returns distance, and beside it FD or, where there are no real images, that of features."""
    columns = {
        "FD to real images": read_fd,
        "distance of features from the converged run": read_features,
    }
    series = {title: list_series(reports, read) for title, read in columns.items()}
    second = next((title for title, each in series.items() if each), None)
    first = {"distance from the converged run": list_series(reports, read_distance)}
    return first | ({second: series[second]} if second else {})


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked.add_argument("reports", type=Path, nargs="+")
    asked.add_argument("out", type=Path)
    given = asked.parse_args()
    reports = [TuneReport.load(path) for path in given.reports]
    if len({report.network for report in reports}) > 1:
        raise SettingError("the reports are of several networks: draw one picture of each")
    columns = choose_columns(reports)
    last = list(columns)[-1]
    panels = [partial(paint, each, title, title == last) for title, each in columns.items()]
    draw_panels(panels, given.out, across=1, size=(5.4, 3.4))
    for report in reports:
        print(f"{report.network}: {report.command}, {report.judged.seeds['test']}")


if __name__ == "__main__":
    main()
