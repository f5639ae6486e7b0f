"""A picture in a terminal: each character is two pixels, one above the other."""

import numpy as np
from rich.color import Color
from rich.segment import Segment, Segments
from rich.style import Style

from .images import Picture

HALF = "\N{UPPER HALF BLOCK}"


def preview(picture: Picture, columns: int) -> Segments:
    """Returns a picture for a console of rich, at most so many characters wide.

    A smaller picture has a character for each of its columns of pixels.
    """
    width = min(columns, picture.width)
    rows = max(1, round(picture.height * width / picture.width / 2))
    pixels = np.asarray(picture.convert("RGB").resize((width, 2 * rows))).tolist()
    segments = []
    for y in range(0, 2 * rows, 2):
        for x in range(width):
            upper, lower = (Color.from_rgb(*pixels[each][x]) for each in (y, y + 1))
            segments.append(Segment(HALF, Style(color=upper, bgcolor=lower)))
        segments.append(Segment.line())
    return Segments(segments)
