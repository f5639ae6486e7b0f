"""Images as samples, and samples as images: tensors, PIL, sheets of many, files."""

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..models.denoiser import Network
from ..models.errors import ModelError, SettingError, reason_of, shorten
from ..models.files import write_whole
from ..models.pipeline_network import fit_shape
from ..models.reading import ordinary_file

Picture = Image.Image
VALUES = 100_000  # of a batch that are looked at for its range


def to_uint8(images: Tensor) -> Tensor:
    """Returns (B, C, H, W) in [-1, 1] as uint8 (B, H, W, C): round(127.5 (x + 1)), clipped."""
    if images.ndim != 4 or images.shape[1] not in (1, 3, 4):
        raise ModelError(
            f"samples of shape {tuple(images.shape)} are not pictures (1, 3 or 4 channels);"
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
    columns = columns or count_columns(len(images))
    rows = -(-len(images) // columns)
    width, height = images[0].width + padding, images[0].height + padding
    size = (columns * width + padding, rows * height + padding)
    sheet = Image.new(images[0].mode, size, color="white")
    for i, image in enumerate(images):
        sheet.paste(image, (padding + i % columns * width, padding + i // columns * height))
    return sheet


def count_columns(images: int) -> int:
    """Returns the columns of so many images in a square."""
    return math.ceil(math.sqrt(images))


def enlarge(picture: Picture, factor: int) -> Picture:
    """Returns a picture whose pixels are squares of `factor` pixels; itself for 1."""
    if factor == 1:
        return picture
    size = picture.width * factor, picture.height * factor
    return picture.resize(size, Image.Resampling.NEAREST)


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
        raise SettingError(
            f"{shorten(path)} is not a readable picture: {reason_of(error)}"
        ) from error


MODES = {1: "L", 3: "RGB", 4: "RGBA"}
Given = Tensor | Picture | Sequence[Picture]  # an image in Python
ENLARGED = 256  # pixels a side that small pictures of a strip are enlarged to


def draws_pictures(network: Network) -> bool:
    """Tells whether samples of a network are pictures, or are decoded into some."""
    return network.decode is not None or _has_pixels(network)


def _has_pixels(network: Network) -> bool:
    return len(network.shape) == 3 and network.shape[0] in MODES


def read_picture(path: Path, network: Network) -> Tensor:
    """Returns a picture file as (1, C, H, W) in [-1, 1].

    A colour file whose channels are equal is taken for grey, as many programs write grey so.

    Raises:
        SettingError: if it cannot be read, or its size or mode is not the network's.

    A network with a VAE takes colour, and `place_images` says of what size.
    """
    return _to_pixels(open_picture(path), network, repr(str(path)))


def place_images(network: Network, image: Given) -> tuple[Network, Tensor]:
    """Returns the network for images of their size, and the images as its states (B, *).

    Pictures, and tensors (B, 3, H, W) in [-1, 1], are encoded where the network has a VAE; where it
    has a pipeline too, it then samples their size. Other tensors are states already.

    Raises:
        SettingError: for pictures that the network does not take.
    """
    if not isinstance(image, Tensor):
        image = to_tensor(network, image)
    if network.encode is None or image.ndim != 4 or image.shape[1] != 3:
        alike = image.shape[1:2] == network.shape[:1]
        return fit_shape(network, tuple(image.shape[1:])) if alike else network, image
    _check_pixels(image, network)
    with torch.no_grad():
        latents = network.encode(image.to(network.device))
    fit = fit_shape(network, tuple(latents.shape[1:]))
    if fit.shape != latents.shape[1:]:
        per = image.shape[-1] // latents.shape[-1]
        height, width = (n * per for n in fit.shape[-2:])
        raise SettingError(
            f"{network.name} takes pictures of {width}x{height} pixels, not of"
            f" {image.shape[-1]}x{image.shape[-2]}: crop or resize it"
        )
    return fit, latents


def to_tensor(network: Network, pictures: Picture | Sequence[Picture]) -> Tensor:
    """Pictures of one size as (B, C, H, W) in [-1, 1]; raises SettingError for a wrong mode."""
    listed = [pictures] if isinstance(pictures, Image.Image) else list(pictures)
    if not listed or not all(isinstance(each, Image.Image) for each in listed):
        raise SettingError("give a PIL image, a list of them, or a tensor (B, C, H, W) in [-1, 1]")
    if len({each.size for each in listed}) > 1:
        raise SettingError("pictures of one batch must have one size; edit them one by one")
    return torch.cat([_to_pixels(each, network, "the picture") for each in listed])


def _to_pixels(image: Picture, network: Network, called: str) -> Tensor:
    """Returns a picture as (1, C, H, W) in [-1, 1]."""
    free = network.encode is not None  # a VAE takes colour of many sizes
    drawn = network.decode is None and _has_pixels(network)
    if not free and not drawn:
        raise SettingError(
            f"{network.name} draws samples of shape {network.shape}, which no picture holds, and"
            " has no VAE that encodes pictures"
        )
    channels, height, width = (3, image.height, image.width) if free else network.shape
    target = f"a {width}x{height} picture in {'grey' if channels == 1 else MODES[channels]}"
    if image.size != (width, height):
        raise SettingError(
            f"{called} has {image.width}x{image.height} pixels; {network.name} takes {target}:"
            " crop or resize it"
        )
    pixels = np.asarray(image)
    if channels == 1 and image.mode == "RGB" and bool((pixels == pixels[..., :1]).all()):
        pixels = pixels[..., 0]
    elif image.mode != MODES[channels]:
        raise SettingError(
            f"{called} has mode {image.mode}; {network.name} takes {target}: convert it to"
            f" mode {MODES[channels]}"
        )
    return _scale_pixels(pixels)


def read_pixels(path: Path) -> Tensor:
    """Returns a picture file of any size as (1, C, H, W) in [-1, 1], with 1, 3 or 4 channels.

    Raises:
        SettingError: if it cannot be read, or is neither grey nor colour of 8 bits.
    """
    image = open_picture(path)
    if image.mode not in MODES.values():
        raise SettingError(
            f"{shorten(path)} has mode {image.mode}; convert it to grey (L) or colour (RGB)"
        )
    return _scale_pixels(np.asarray(image))


def _scale_pixels(pixels: "np.ndarray[Any, Any]") -> Tensor:
    """Returns uint8 (H, W) or (H, W, C) as (1, C, H, W) in [-1, 1]."""
    rows = torch.from_numpy(pixels.copy()).reshape(*pixels.shape[:2], -1)
    return rows.permute(2, 0, 1)[None].float() / 127.5 - 1.0


def _check_pixels(image: Tensor, network: Network) -> None:
    """Raises SettingError if these are no pixels that the VAE and the network take whole."""
    fits = image.is_floating_point() and bool((image.abs() <= 1.0 + 1e-3).all())
    if not fits or not len(image):
        raise SettingError("pixels must be floats in [-1, 1] without NaN; 0..255 is x / 127.5 - 1")
    multiple = 1 if network.prompts is None else network.prompts.multiple
    height, width = image.shape[-2:]
    if height % multiple or width % multiple or not min(height, width):
        wide, high = (max(multiple, n // multiple * multiple) for n in (width, height))
        raise SettingError(
            f"{network.name} takes sides that are multiples of {multiple} pixels, not"
            f" {width}x{height}; crop or resize the picture to {wide}x{high}"
        )


def write_strip(pictures: Sequence[Picture], path: Path) -> None:
    """Writes the pictures in one row as PNG, small ones enlarged by a whole factor."""
    write_sheet(pictures, len(pictures), path, ENLARGED)


def write_sheet(pictures: Sequence[Picture], columns: int, path: Path, side: int = 64) -> None:
    """Writes the pictures row by row as PNG, each enlarged to at most `side` pixels."""
    sheet = make_contact_sheet(pictures, columns)
    write_png(enlarge(sheet, max(1, side // pictures[0].width)), path)


def write_png(picture: Picture, path: Path) -> None:
    """Writes one picture as PNG, whole or not at all."""
    write_whole(path, lambda file: picture.save(file, format="PNG"))


def format_psnr(samples: Tensor, reference: Tensor) -> str:
    """Returns 10 log10(4 / MSE) of samples clipped to [-1, 1], in words."""
    error = float((samples.clamp(-1.0, 1.0) - reference).square().mean())
    return "exact" if error == 0.0 else f"PSNR {10.0 * math.log10(4.0 / error):.1f} dB"
