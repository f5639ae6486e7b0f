"""What fronts share: plots of several panels, and a row of points read between them."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import IO, Any, TypeVar

from ..models.errors import SettingError
from ..samplers.images import write_whole

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
