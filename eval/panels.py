"""What fronts share: plots of several panels, and a row of points read between them."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import IO, Any, TypeVar

from ..models.errors import SettingError
from ..models.files import write_whole
from .report import COLOURS, MARKERS

P = TypeVar("P")


def draw_panels(found: Sequence[P], paint: Callable[[Any, P], None], path: Path) -> None:
    """Writes a picture with one panel for each thing found; `paint(axis, thing)` fills it.

    Raises:
        SettingError: if there is nothing to draw, or the file cannot be written.
    """
    if not found:
        raise SettingError("there is nothing to draw; no run has finished")
    write_whole(path, lambda file: _figure(found, paint, file, path.suffix[1:].lower()))


def _figure(
    found: Sequence[P], paint: Callable[[Any, P], None], file: IO[bytes], kind: str
) -> None:
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.fonttype": "none", "font.size": 8}):
        across = min(2, len(found))
        down = -(-len(found) // across)
        figure = Figure(figsize=(5.5 * across, 4.2 * down), layout="constrained")
        axes = figure.subplots(down, across, squeeze=False).flatten()
        for axis, each in zip(axes, found, strict=False):
            paint(axis, each)
        for axis in axes[len(found) :]:
            axis.set_axis_off()
        figure.savefig(file, format=kind, dpi=150)


def between(points: Sequence[tuple[float, float]], at: float) -> float:
    """The error at a cost, of points (cost, error) in rising cost; log-linear from one to the next.

    nan outside of them.
    """
    for (a, e), (b, f) in pairwise(points):
        if a <= at <= b:
            return math.exp(math.log(e) + (at - a) / (b - a) * math.log(f / e))
    return next((error for cost, error in points if cost == at), math.nan)


def points(axis: Any, i: int, name: str, places: Sequence[float], errors: Sequence[float]) -> None:
    """The settings of the i-th policy, each a mark."""
    style = {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]}
    axis.scatter(places, errors, s=13, label=name, **style)


def labelled(axis: Any, title: str, xlabel: str, ylabel: str) -> None:
    """The frame of a panel of errors, on a logarithmic scale."""
    axis.set(title=title, xlabel=xlabel, ylabel=ylabel, yscale="log")
    axis.grid(alpha=0.3, which="both")
    axis.legend(fontsize=6)


def beside(error: float, ratio: float) -> str:
    """An error and, where it is known, its share of the honest row's."""
    return f"{error:.4f}" + ("" if math.isnan(ratio) else f" ({ratio:.2f})")
