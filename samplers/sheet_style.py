"""How a grid of images is drawn to be looked at: enlarged, with names on its margin."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from ..models.arguments import as_integer
from ..models.errors import SettingError
from .images import Picture, count_columns, enlarge, make_contact_sheet

WIDE = 1_000  # pixels that a grid is about as wide as where no zoom is given
MOST_ZOOM = 100


@dataclass(frozen=True)
class SheetStyle:
    """How images become one picture.

    columns: None makes a square.
    zoom:    the pixels of an image become squares of so many; None makes the picture about 1,000
             pixels wide, and leaves alone what is wider.
    names:   of the rows, which stand on the left margin; none by default.
    """

    columns: int | None = None
    zoom: int | None = None
    names: Sequence[str] = ()

    def __post_init__(self) -> None:
        for name, most in (("columns", math.inf), ("zoom", MOST_ZOOM)):
            value = getattr(self, name)
            if value is not None and not 1 <= as_integer(value, name) <= most:
                raise SettingError(f"{name} must lie between 1 and {most:,}, not {value}")

    def draw(self, images: Sequence[Picture]) -> Picture:
        """Returns the images row by row on white."""
        sheet = make_contact_sheet(images, self.columns)
        sheet = enlarge(sheet, self.zoom or max(1, round(WIDE / sheet.width)))
        return _write_names(sheet, self.names) if self.names else sheet


def name_rows(
    labels: Sequence[int] | None, columns: int | None, class_names: Sequence[str]
) -> tuple[str, ...]:
    """Returns the name of the class of each row of a grid.

    Raises:
        SettingError: if the images have no classes, or a row has several.
    """
    if labels is None:
        raise SettingError("these images have no classes that could stand on the margin")
    across = columns or count_columns(len(labels))
    rows = [set(labels[i : i + across]) for i in range(0, len(labels), across)]
    if any(len(row) > 1 for row in rows):
        raise SettingError(
            "the margin names a class for each row, and these rows have several: give --per-class,"
            " or --classes"
        )
    firsts = [row.pop() for row in rows]
    return tuple(class_names[label] if class_names else f"class {label}" for label in firsts)


def _write_names(sheet: Picture, names: Sequence[str]) -> Picture:
    """Returns a sheet with the names of its rows on a left margin."""
    height = sheet.height / len(names)
    font = ImageFont.load_default(size=max(8.0, min(20.0, height / 3)))
    gap = round(font.size / 2) if isinstance(font, ImageFont.FreeTypeFont) else 4
    margin = math.ceil(max(font.getlength(name) for name in names)) + 2 * gap
    drawn = Image.new(sheet.mode, (sheet.width + margin, sheet.height), "white")
    drawn.paste(sheet, (margin, 0))
    pen = ImageDraw.Draw(drawn)
    for i, name in enumerate(names):
        pen.text((margin - gap, (i + 0.5) * height), name, "black", font, anchor="rm")
    return drawn
