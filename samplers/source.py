"""Pictures from files as states of a network, and strips of pictures side by side."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from ..models.denoiser import Network
from ..models.errors import SettingError
from .images import Picture, contact_sheet, write_whole

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
ENLARGED = 256  # pixels a side that small pictures of a strip are enlarged to


def read_picture(path: Path, network: Network) -> Tensor:
    """A picture file as (1, C, H, W) in [-1, 1].

    A colour file whose channels are equal is taken for grey, as many programs write grey so.

    Raises:
        SettingError: if it cannot be read, or its size or mode is not the network's.
    """
    if network.decode is not None or len(network.shape) != 3 or network.shape[0] not in MODES:
        raise SettingError(
            f"{network.name} draws latents {network.shape}, which no picture file holds; encode the"
            " picture with its VAE and call invert or Editor from Python"
        )
    channels, height, width = network.shape
    wanted = f"a {width}x{height} picture in {'grey' if channels == 1 else MODES[channels]}"
    image = _opened(path)
    if image.size != (width, height):
        raise SettingError(
            f"{str(path)!r} has {image.width}x{image.height} pixels; {network.name} takes {wanted}:"
            " crop or resize it"
        )
    pixels = np.asarray(image)
    if channels == 1 and image.mode == "RGB" and bool((pixels == pixels[..., :1]).all()):
        pixels = pixels[..., 0]
    elif image.mode != MODES[channels]:
        raise SettingError(
            f"{str(path)!r} has mode {image.mode}; {network.name} takes {wanted}: convert it to"
            f" mode {MODES[channels]}"
        )
    rows = torch.from_numpy(pixels.copy()).reshape(height, width, channels)
    return rows.permute(2, 0, 1)[None].float() / 127.5 - 1.0


def write_strip(pictures: Sequence[Picture], path: Path) -> None:
    """The pictures in one row, small ones enlarged by a whole factor, as PNG."""
    write_sheet(pictures, len(pictures), path, ENLARGED)


def write_sheet(pictures: Sequence[Picture], columns: int, path: Path, side: int = 64) -> None:
    """The pictures row by row, enlarged by a whole factor to at most `side` pixels, as PNG."""
    sheet = contact_sheet(pictures, columns)
    factor = max(1, side // pictures[0].width)
    size = sheet.width * factor, sheet.height * factor
    write_png(sheet.resize(size, Image.Resampling.NEAREST), path)


def write_png(picture: Picture, path: Path) -> None:
    """One picture as PNG, whole or not at all."""

    def write(file: IO[bytes]) -> None:
        picture.save(file, format="PNG")

    write_whole(path, write)


def decibels(samples: Tensor, reference: Tensor) -> str:
    """10 log10(4 / MSE) of samples clipped to [-1, 1], in words."""
    error = float((samples.clamp(-1.0, 1.0) - reference).square().mean())
    return "exact" if error == 0.0 else f"PSNR {10.0 * math.log10(4.0 / error):.1f} dB"


def _opened(path: Path) -> Picture:
    try:
        with Image.open(path) as image:
            image.load()
            return image
    except FileNotFoundError:
        raise SettingError(f"there is no file {str(path)!r}") from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise SettingError(f"{str(path)!r} is no readable picture: {error}") from error
