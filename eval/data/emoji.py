"""Noto emoji as a data set: the pictures of one sheet, laid on white and made smaller."""

import io
import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .archives import Files
from .errors import UNREADABLE, DataError

LIST, SHEET = "emoji.json", "img/google/sheets/64.png"
CELL, FRAME, SIDE = 66, 1, 32  # pixels of a cell of the sheet, its frame, and a side in the set
NO_CLASS = "Component"  # skin tones and hair by themselves

Pictures = tuple[NDArray[np.uint8], NDArray[np.uint8]]  # (N, 3, 32, 32) and labels (N,)


def decode_emoji(files: Files) -> Mapping[str, Pictures]:
    """Returns one picture of each emoji as `train`, and those in skin tones as `tones`.

    The classes are the categories in alphabetical order.

    Raises:
        DataError: if the list or the sheet cannot be read.
    """
    try:
        emoji = [each for each in json.loads(files[LIST]) if each["category"] != NO_CLASS]
        sheet = _lay_on_white(files[SHEET])
        classes = sorted({each["category"] for each in emoji})
        tones = [tone for each in emoji for tone in _tones(each)]
        return {"train": _cut(sheet, emoji, classes), "tones": _cut(sheet, tones, classes)}
    except (*UNREADABLE, AttributeError, Image.DecompressionBombError) as error:
        raise DataError(f"{LIST} or {SHEET} is damaged: {error}") from error


def _tones(emoji: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for tone in emoji.get("skin_variations", {}).values():
        yield {**tone, "category": emoji["category"]}


def _lay_on_white(content: bytes) -> Image.Image:
    with Image.open(io.BytesIO(content)) as image:
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        white.alpha_composite(image.convert("RGBA"))
        return white.convert("RGB")


def _cut(sheet: Image.Image, places: list[Mapping[str, Any]], classes: list[str]) -> Pictures:
    pictures = [np.asarray(_picture(sheet, each)).transpose(2, 0, 1) for each in places]
    labels = [classes.index(each["category"]) for each in places]
    return np.stack(pictures), np.array(labels, np.uint8)


def _picture(sheet: Image.Image, place: Mapping[str, Any]) -> Image.Image:
    left, top = CELL * place["sheet_x"] + FRAME, CELL * place["sheet_y"] + FRAME
    inner = CELL - 2 * FRAME
    cell = sheet.crop((left, top, left + inner, top + inner))
    return cell.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
