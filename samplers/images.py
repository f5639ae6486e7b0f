"""Samples as pictures: tensors to PIL and grids of them."""

import math
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from ..models.errors import ModelError, SettingError
from ..models.reading import ordinary_file, reason_of, shorten

Picture = Image.Image
VALUES = 100_000  # of a batch that are looked at for its range


def to_uint8(images: Tensor) -> Tensor:
    """Returns (B, C, H, W) in [-1, 1] as uint8 (B, H, W, C): round(127.5 (x + 1)), clipped."""
    if images.ndim != 4 or images.shape[1] not in (1, 3, 4):
        raise ModelError(
            f"samples of shape {tuple(images.shape)} are no pictures (1, 3 or 4 channels);"
            " latents need a pipeline that comes with its VAE"
        )
    scaled = (images.float() + 1.0).mul_(127.5).round_().clamp_(0.0, 255.0)
    return scaled.to(torch.uint8).permute(0, 2, 3, 1).cpu()


def to_pil(images: Tensor) -> list[Picture]:
    """Returns one PIL image per row of (B, C, H, W) in [-1, 1]."""
    arrays = to_uint8(images).numpy()
    return [Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array) for array in arrays]


def warn_of_grey(images: Tensor) -> None:
    """Warns if samples fill less than half of [-1, 1], as those of data in another range do.

    The darkest and the brightest hundredth are left out of it.
    """
    values = images.flatten()[:: max(1, images.numel() // VALUES)].float()
    if not values.numel():
        return
    low, high = values.quantile(values.new_tensor([0.01, 0.99])).tolist()
    if high - low < 1.0:
        warnings.warn(
            f"the samples lie between {low:.2g} and {high:.2g}, which is less than half of [-1, 1],"
            " the range that pictures are made of; if the network was trained on data in another"
            " range, give from_module the way to this one, as in decode=lambda x: 2 * x",
            stacklevel=3,
        )


def make_contact_sheet(
    images: Sequence[Picture], columns: int | None = None, padding: int = 2
) -> Picture:
    """Returns the pictures row by row on white, in a square if no columns are given."""
    columns = columns or math.ceil(math.sqrt(len(images)))
    rows = -(-len(images) // columns)
    width, height = images[0].width + padding, images[0].height + padding
    size = (columns * width + padding, rows * height + padding)
    sheet = Image.new(images[0].mode, size, color="white")
    for i, image in enumerate(images):
        sheet.paste(image, (padding + i % columns * width, padding + i // columns * height))
    return sheet


def open_picture(path: Path) -> Picture:
    """Returns the picture in a file, decoded whole.

    Raises:
        SettingError: if it is no ordinary file, or no picture that can be read, or would unfold to
            more pixels than Pillow takes for harmless.
    """
    ordinary_file(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                image.load()
                return image
    except Exception as error:  # a decoder that is given a damaged file may raise anything
        raise SettingError(f"{shorten(path)} is no readable picture: {reason_of(error)}") from error
