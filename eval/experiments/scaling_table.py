"""The figures of `fewstep bench scaling`: slopes, the table and the plot."""

import math
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import linear_regression
from typing import Any

from ..bench.plot import colour, draw_panels, frame, marker
from ..bench.table import align_table, format_number
from .scaling import ScalingRow

Curves = dict[str, list[ScalingRow]]


def split_axes(rows: Sequence[ScalingRow]) -> Curves:
    """Returns the rows of each axis by rising value."""
    names = dict.fromkeys(row.axis for row in rows)
    ordered = sorted(rows, key=lambda row: row.value)
    return {name: [row for row in ordered if row.axis == name] for name in names}


def find_slope(rows: Sequence[ScalingRow]) -> float:
    """Returns p of time ~ value^p, fitted to the upper half of the values, at least two."""
    upper = rows[-max(2, len(rows) // 2) :]
    values = [math.log(row.value) for row in upper]
    return linear_regression(values, [math.log(row.seconds[1]) for row in upper]).slope


def write_table(rows: Sequence[ScalingRow]) -> Iterator[str]:
    """Yields a table of each axis with its slope, and whether shares of the work are the same."""
    for name, curve in split_axes(rows).items():
        yield f"### {name.capitalize()}"
        yield ""
        yield from align_table([(name, "ms", "MiB"), *map(_line, curve)])
        yield ""
        if len(curve) > 1:
            yield f"Slope of the upper half: {find_slope(curve):.2f}."
        digests = {row.digest for row in curve} - {None}
        if digests:
            same = "equal to the bit" if len(digests) == 1 else "NOT EQUAL"
            yield f"Samples of all numbers of {name} are {same}."
        yield ""


def _line(row: ScalingRow) -> tuple[str, ...]:
    low, middle, high = (format_number(1e3 * value) for value in row.seconds)
    return str(row.value), f"{middle} ({low}..{high})", format_number(row.mebibytes)


def draw_curves(rows: Sequence[ScalingRow], path: Path) -> None:
    """Writes the picture: time of all axes relative to its least value, and memory beside it.

    Raises:
        SettingError: if there is nothing to draw, or the file cannot be written.
    """
    curves = split_axes(rows)
    panels = [partial(_paint_time, curves), partial(_paint_memory, curves)] if rows else []
    draw_panels(panels, path)


def _paint_time(curves: Curves, axis: Any) -> None:
    for i, (name, curve) in enumerate(curves.items()):
        slope = f", slope {find_slope(curve):.2f}" if len(curve) > 1 else ""
        times = [row.seconds[1] / curve[0].seconds[1] for row in curve]
        _plot(axis, i, name + slope, curve, times)
    frame(axis, "time", "value over the least one", "time over that of the least value")
    axis.set_xscale("log")


def _paint_memory(curves: Curves, axis: Any) -> None:
    for i, (name, curve) in enumerate(curves.items()):
        _plot(axis, i, name, curve, [row.mebibytes for row in curve])
    frame(axis, "peak memory", "value over the least one", "MiB")
    axis.set_xscale("log")


def _plot(axis: Any, i: int, name: str, curve: list[ScalingRow], heights: list[float]) -> None:
    values = [row.value / curve[0].value for row in curve]
    axis.plot(values, heights, f"{marker(i)}-", color=colour(i), label=name, markersize=3)
