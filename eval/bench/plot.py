"""Parts that plots share: colours and marks, and pictures of several panels."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

from ...models.errors import SettingError
from ...models.files import write_whole

Paint = Callable[[Any], None]  # fills an axis of matplotlib

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


def draw_panels(paints: Sequence[Paint], path: Path, **layout: Any) -> None:
    """Writes a picture with one panel for each painter; see `render_panels`.

    Raises:
        SettingError: if there is nothing to draw, or the file cannot be written.
    """
    if not paints:
        raise SettingError("there is nothing to draw; no run has finished")
    kind = path.suffix[1:].lower()
    write_whole(path, lambda file: render_panels(paints, file, kind, **layout))


def render_panels(
    paints: Sequence[Paint],
    file: IO[bytes],
    kind: str,
    across: int = 2,
    size: tuple[float, float] = (5.5, 4.2),
) -> None:
    """Writes a picture of a kind, the same bytes each time.

    paints: fill one axis each.
    across: panels side by side at most; size: of one in inches.
    """
    import matplotlib
    from matplotlib.figure import Figure

    settings = {"svg.fonttype": "none", "svg.hashsalt": "fewstep", "font.size": 8}
    with matplotlib.rc_context(settings):
        across = min(across, len(paints))
        down = -(-len(paints) // across)
        figure = Figure(figsize=(size[0] * across, size[1] * down), layout="constrained")
        axes = figure.subplots(down, across, squeeze=False).flatten()
        for axis, paint in zip(axes, paints, strict=False):
            paint(axis)
        for axis in axes[len(paints) :]:
            axis.set_axis_off()
        metadata = {"Date": None} if kind == "svg" else None
        figure.savefig(file, format=kind, dpi=150, metadata=metadata)


def scatter(axis: Any, i: int, name: str, points: Sequence[tuple[float, float]]) -> None:
    """Draws the points (cost, value) of the i-th series, each a mark."""
    costs, values = zip(*points, strict=True)
    axis.scatter(costs, values, s=13, label=name, color=colour(i), marker=marker(i))


def frame(axis: Any, title: str, xlabel: str, ylabel: str, yscale: str = "log") -> None:
    """Labels a panel of points, with a grid and a legend."""
    axis.set(title=title, xlabel=xlabel, ylabel=ylabel, yscale=yscale)
    axis.grid(alpha=0.3, which="both")
    axis.legend(fontsize=6)
