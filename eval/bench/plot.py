"""Parts that plots share: colours and marks, and pictures of several panels."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any, TypeVar

from ...models.errors import SettingError
from ...models.files import write_whole

P = TypeVar("P")

KINDS = (".png", ".svg", ".pdf")
_MARKERS = "osv^D<>pXhdP8"
_COLOURS = (
    *("#1f77b4", "#d62728", "#2ca02c", "#ff7f0e", "#9467bd", "#8c564b", "#e377c2", "#17becf"),
    *("#7f7f7f", "#bcbd22", "#0b3d91", "#006400", "#800000", "#4b0082", "#b8860b"),
)


def colour(i: int) -> str:
    """Returns the colour of the i-th series."""
    return _COLOURS[i % len(_COLOURS)]


def marker(i: int) -> str:
    """Returns the mark of the i-th series."""
    return _MARKERS[i % len(_MARKERS)]


def draw_panels(things: Sequence[P], paint: Callable[[Any, P], None], path: Path) -> None:
    """Writes a picture with one panel for each thing; `paint(axis, thing)` fills it.

    Raises:
        SettingError: if there is nothing to draw, or the file cannot be written.
    """
    if not things:
        raise SettingError("there is nothing to draw; no run has finished")
    write_whole(path, lambda file: _draw(things, paint, file, path.suffix[1:].lower()))


def _draw(things: Sequence[P], paint: Callable[[Any, P], None], file: IO[bytes], kind: str) -> None:
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.fonttype": "none", "font.size": 8}):
        across = min(2, len(things))
        down = -(-len(things) // across)
        figure = Figure(figsize=(5.5 * across, 4.2 * down), layout="constrained")
        axes = figure.subplots(down, across, squeeze=False).flatten()
        for axis, each in zip(axes, things, strict=False):
            paint(axis, each)
        for axis in axes[len(things) :]:
            axis.set_axis_off()
        figure.savefig(file, format=kind, dpi=150)


def scatter(axis: Any, i: int, name: str, points: Sequence[tuple[float, float]]) -> None:
    """Draws the points (cost, value) of the i-th series, each a mark."""
    costs, values = zip(*points, strict=True)
    axis.scatter(costs, values, s=13, label=name, color=colour(i), marker=marker(i))


def frame(axis: Any, title: str, xlabel: str, ylabel: str, yscale: str = "log") -> None:
    """Labels a panel of points, with a grid and a legend."""
    axis.set(title=title, xlabel=xlabel, ylabel=ylabel, yscale=yscale)
    axis.grid(alpha=0.3, which="both")
    axis.legend(fontsize=6)
