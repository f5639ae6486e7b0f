"""The picture of a comparison: a row of images for each setting, or a panel of points."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..models.errors import SettingError
from ..models.files import check_writable
from ..samplers.images import MODES, Picture, make_contact_sheet, to_pil, write_png
from .bench.plot import check_plot, draw_panels

if TYPE_CHECKING:
    from .compare import Comparison

SIDE, LINE = 64, 16  # pixels of small images, and of a line of text
CONVERGED = "converged run"


def draw_comparison(comparison: "Comparison", path: Path, images: int) -> None:
    """Writes the picture of a comparison; see `Comparison.save`."""
    samples = {CONVERGED: comparison.reference}
    samples |= {run.name: run.samples for run in comparison.runs}
    shape = comparison.reference.shape[1:]
    if shape == (2,):
        check_plot(path)
        limits = find_limits(torch.cat(list(samples.values())))
        panels = [partial(_draw_points, name, each, limits) for name, each in samples.items()]
        draw_panels(panels, path, across=2 if len(panels) == 4 else 3, size=(3.2, 3.2))
    elif len(shape) == 3 and shape[0] in MODES:
        check_writable(path, ".png")
        write_png(stack_rows({name: each[:images] for name, each in samples.items()}), path)
    else:
        raise SettingError(
            f"samples of shape {tuple(shape)} are neither images nor points of two numbers; print"
            " comparison.table()"
        )


def stack_rows(rows: Mapping[str, Tensor]) -> Picture:
    """Returns images (n, C, H, W) in [-1, 1] row by row, each below its name."""
    sheets = {name: make_contact_sheet(to_pil(each), len(each)) for name, each in rows.items()}
    first = next(iter(rows.values()))
    factor = max(1, SIDE // first.shape[-1])
    font = ImageFont.load_default(12)
    wide = max(
        max(factor * sheet.width for sheet in sheets.values()),
        *(round(font.getlength(name)) + 4 for name in sheets),
    )
    high = sum(factor * sheet.height + LINE for sheet in sheets.values())
    picture, top = Image.new("RGB", (wide, high), "white"), 0
    draw = ImageDraw.Draw(picture)
    for name, sheet in sheets.items():
        draw.text((2, top), name, fill="black", font=font)
        size = factor * sheet.width, factor * sheet.height
        picture.paste(sheet.resize(size, Image.Resampling.NEAREST).convert("RGB"), (0, top + LINE))
        top += size[1] + LINE
    return picture


def find_limits(points: Tensor) -> list[list[float]]:
    """Returns the least and the largest x and y, with some room, of the points that are finite."""
    finite = points[points.isfinite().all(1)].double()
    if not len(finite):
        return [[-1.0, 1.0]] * 2
    low, high = finite.amin(0), finite.amax(0)
    room = 0.05 * (high - low).clamp_min(1e-6)
    return torch.stack([low - room, high + room], 1).tolist()


def _draw_points(title: str, samples: Tensor, limits: list[list[float]], panel: Any) -> None:
    panel.scatter(*samples.T.tolist(), s=4, linewidths=0)
    panel.set_title(title, fontsize=10)
    panel.set(xlim=limits[0], ylim=limits[1], aspect="equal")
