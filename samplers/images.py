"""Samples as pictures: tensors to PIL, grids, and files written whole or not at all."""

import math
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

import torch
from PIL import Image
from torch import Tensor

from ..models.errors import ModelError, SettingError

Picture = Image.Image


def to_uint8(images: Tensor) -> Tensor:
    """(B, C, H, W) in [-1, 1] as uint8 (B, H, W, C): round(127.5 (x + 1)), clipped."""
    if images.ndim != 4 or images.shape[1] not in (1, 3, 4):
        raise ModelError(
            f"samples of shape {tuple(images.shape)} are no pictures (1, 3 or 4 channels);"
            " latents need a pipeline that comes with its VAE"
        )
    scaled = (images.float() + 1.0).mul_(127.5).round_().clamp_(0.0, 255.0)
    return scaled.to(torch.uint8).permute(0, 2, 3, 1).cpu()


def to_pil(images: Tensor) -> list[Picture]:
    """One PIL image per row of (B, C, H, W) in [-1, 1]."""
    arrays = to_uint8(images).numpy()
    return [Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array) for array in arrays]


def contact_sheet(
    images: Sequence[Picture], columns: int | None = None, padding: int = 2
) -> Picture:
    """The pictures row by row on white, `padding` pixels around each; columns: default square."""
    columns = columns or math.ceil(math.sqrt(len(images)))
    rows = -(-len(images) // columns)
    width, height = images[0].width + padding, images[0].height + padding
    size = (columns * width + padding, rows * height + padding)
    sheet = Image.new(images[0].mode, size, color="white")
    for i, image in enumerate(images):
        sheet.paste(image, (padding + i % columns * width, padding + i // columns * height))
    return sheet


def write_whole(path: Path, write: Callable[[IO[bytes]], None]) -> None:
    """Writes a file under a temporary name beside it and renames it, so that no half is ever left.

    Raises:
        SettingError: if the folder does not exist or cannot be written to.
    """
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as file:
            write(file)
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except OSError as error:
        raise SettingError(f"cannot write {str(path)!r}: {error.strerror or error}") from error
    finally:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)


def write_bytes(path: Path, body: bytes) -> None:
    """`write_whole` of bytes that are at hand."""

    def write(file: IO[bytes]) -> None:
        file.write(body)

    write_whole(path, write)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def check_writable(path: Path) -> None:
    """Raises SettingError if a picture could not be written there, before anything is computed."""
    if path.is_dir():
        raise SettingError(f"{str(path)!r} is a folder; give the name of a file in it")
    if not path.parent.is_dir():
        raise SettingError(f"the folder {str(path.parent)!r} does not exist; create it first")
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise SettingError(f"cannot write {str(path)!r}: {error.strerror or error}") from error


def check_folder(path: Path) -> None:
    """Raises SettingError if a folder for pictures could not be made there or written to."""
    existing = next(each for each in (path, *path.parents) if each.exists())
    if not existing.is_dir():
        raise SettingError(f"cannot create folder {str(path)!r}: {str(existing)!r} is a file")
    check_writable(existing / ".png")
