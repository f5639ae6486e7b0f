"""Parts that plots share: colours and marks, and pictures of several panels."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

from ...models.errors import SettingError
from ...models.extras import check_installed
from ...models.files import check_writable, write_whole

Paint = Callable[[Any], None]  # fills an axis of matplotlib

KINDS = (".png", ".svg", ".pdf")
MOST = 8  # series that are told apart; further ones are grey
GREY = "#bbbbbb"
BELOW = 0.5  # from a panel to its legend, in inches: room for numbers and a label
_MARKERS = "osv^D<>p"
_COLOURS = (  # of Okabe and Ito, which colour-blind people tell apart; the last two darker
    *("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f4f00", "#4d4d4d"),
)


def colour(i: int) -> str:
    """Returns the colour of the i-th series."""
    return _COLOURS[i] if i < MOST else GREY


def marker(i: int) -> str:
    """Returns the mark of the i-th series."""
    return _MARKERS[i % MOST]


def entry(i: int, name: str) -> str:
    """Returns what the legend calls the i-th series."""
    return name if i < MOST else "others"


def check_plot(path: Path) -> None:
    """Raises SettingError if no plot could be written there, or matplotlib is not installed."""
    check_writable(path, *KINDS)
    check_installed("matplotlib")


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
    size: tuple[float, float] = (6.0, 5.6),
) -> None:
    """Writes a picture of a kind, the same bytes each time.

    paints: fill one axis each.
    across: panels side by side at most; size: of one in inches.
    """
    import matplotlib
    from matplotlib.figure import Figure

    settings = {"svg.fonttype": "none", "svg.hashsalt": "fewstep", "font.size": 12}
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
    looks = {"label": entry(i, name), "color": colour(i), "marker": marker(i)}
    axis.scatter(costs, values, s=24, zorder=2 if i < MOST else 1, **looks)


def frame(
    axis: Any, title: str, xlabel: str, ylabel: str, yscale: str = "log", legend: bool = True
) -> None:
    """Labels a panel of points, with a grid and, if asked for, a legend."""
    axis.set(title=title, xlabel=xlabel, ylabel=ylabel, yscale=yscale)
    if yscale == "log":
        write_plain_numbers(axis.yaxis)
    axis.grid(alpha=0.3, which="both")
    if legend:
        put_legend(axis)


def write_plain_numbers(axis: Any) -> None:
    """Sets ticks of a logarithmic axis at 1, 2 and 5, finer where it is short; 0.5 and not 5e-1."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    low, high = axis.get_view_interval()
    subs = (1.0, 2.0, 5.0) if high / low > 8.0 else (1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0)
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def put_legend(axis: Any) -> None:
    """Writes the legend below a panel, each name once."""
    from matplotlib.transforms import ScaledTranslation

    handles, labels = axis.get_legend_handles_labels()
    entries = dict(zip(labels, handles, strict=True))
    columns = 2 if max(map(len, entries), default=0) < 26 else 1
    below = axis.transAxes + ScaledTranslation(0, -BELOW, axis.figure.dpi_scale_trans)
    place: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, 0.0)}
    place["bbox_transform"] = below
    axis.legend(entries.values(), entries, **place, ncols=columns, fontsize="small", frameon=False)
