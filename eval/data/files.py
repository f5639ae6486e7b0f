"""Images from a folder, a zip or an npz that the user has.

Folder and zip: every file of a kind in FORMATS at any depth, sorted by path; hidden files and other
types are no part of the set, and pictures among these are told of. Pixels are taken as stored: grey
stays one channel, a palette becomes RGB, an alpha channel is dropped where it hides nothing, and of
several frames the first is taken, which is told too. A zip is read where it lies and never
unpacked. npz: `arr_0`, uint8 (N, H, W, C), read in pieces; no pickled object is ever loaded.
"""

import math
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from PIL import Image

from .errors import UNREADABLE, DataError
from .image_set import ImageSet, Reader, Rows

FORMATS = {  # of Pillow, by suffix
    **dict.fromkeys((".png", ".apng"), "PNG"),
    **dict.fromkeys((".jpg", ".jpeg", ".jpe", ".jfif"), "JPEG"),
    ".bmp": "BMP",
    ".dib": "DIB",
    **dict.fromkeys((".tif", ".tiff"), "TIFF"),
    **dict.fromkeys((".pbm", ".pgm", ".pnm", ".ppm"), "PPM"),
    ".avif": "AVIF",
    ".gif": "GIF",
    ".jp2": "JPEG2000",
    ".webp": "WEBP",
}
MODES = {"1": "L", "L": "L", "LA": "L", "RGB": "RGB", "P": "RGB", "PA": "RGB", "RGBA": "RGB"}
NO_IMAGE = (*UNREADABLE, Image.DecompressionBombError)
HIDDEN = re.compile(r"(^|/)\.(?!\.?/)")  # a part that begins with a dot, save . and ..
Open = Callable[[str], IO[bytes]]


@dataclass(frozen=True)
class Archive:
    """Named image files: those of a folder or of a zip."""

    path: Path
    names: Sequence[str]

    @contextmanager
    def open_names(self) -> Iterator[Open]:
        """Yields a function that opens a file by its name."""
        if self.path.is_dir():
            yield lambda name: (self.path / name).open("rb")
        else:
            with _zip(self.path) as archive:
                yield archive.open

    def images(self, name: str) -> ImageSet:
        """Returns the set of these files, every header read to see that they have one size.

        Raises:
            DataError: if there are none, one is unreadable, or two differ in size or colour.
        """
        if not self.names:
            raise DataError(f"{str(self.path)!r} holds no images ({', '.join(sorted(FORMATS))})")
        with self.open_names() as open_:
            headers = {each: _header(open_, each) for each in self.names}
        first, shape = self.names[0], headers[self.names[0]].shape
        for other, header in headers.items():
            if header.shape != shape:
                raise DataError(
                    f"the images of {str(self.path)!r} must have one size: {first!r} is"
                    f" {_size(shape)}, {other!r} is {_size(header.shape)}"
                )
        moving = [each for each, header in headers.items() if header.moves]
        if moving:
            warnings.warn(
                f"{len(moving)} of the {len(headers)} images of {str(self.path)!r}, such as"
                f" {moving[0]!r}, have several frames; only the first of each is taken",
                stacklevel=2,
            )
        return ImageSet(name, len(self.names), shape, self._read)

    def _read(self, size: int) -> Iterator[Rows]:
        with self.open_names() as open_:
            for i in range(0, len(self.names), size):
                yield np.stack([_pixels(open_, name) for name in self.names[i : i + size]])


def folder_images(path: Path) -> ImageSet:
    """Returns the images of a folder and of the folders in it."""
    paths = (each.relative_to(path) for each in path.rglob("*") if each.is_file())
    return Archive(path, _choose(path, [each.as_posix() for each in paths])).images(str(path))


def zip_images(path: Path) -> ImageSet:
    """Returns the images of a zip."""
    with _zip(path) as archive:
        names = [each.filename for each in archive.infolist() if not each.is_dir()]
    return Archive(path, _choose(path, names)).images(str(path))


def npz_images(path: Path) -> ImageSet:
    """Returns the images `arr_0` of an npz, uint8 (N, H, W, C)."""
    with _array(path) as (_, shape):
        count, height, width, channels = shape
    return ImageSet(str(path), count, (channels, height, width), _array_reader(path))


def _choose(path: Path, names: Sequence[str]) -> list[str]:
    """Returns the names that are images, sorted; warns of pictures of kinds that are not read."""
    shown = [n for n in names if not HIDDEN.search(n) and not n.startswith("__MACOSX/")]
    chosen = sorted(name for name in shown if _suffix(name) in FORMATS)
    pictures = Image.registered_extensions().keys() - FORMATS.keys()
    left_out = sorted(name for name in shown if _suffix(name) in pictures)
    if chosen and left_out:
        warnings.warn(
            f"{len(left_out)} files of {str(path)!r}, such as {left_out[0]!r}, are of a kind that"
            f" is not read and are left out; the set has {len(chosen)} images",
            stacklevel=2,
        )
    return chosen


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix.lower()


def _zip(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except UNREADABLE as error:
        raise DataError(f"{str(path)!r} is not a readable zip: {error}") from error


def _formats() -> list[str]:
    """Returns the formats that this Pillow reads; no other is tried."""
    Image.init()
    return sorted(set(FORMATS.values()) & Image.OPEN.keys())


@contextmanager
def _image(open_: Open, name: str) -> Iterator[Image.Image]:
    try:
        with open_(name) as file, Image.open(file, formats=_formats()) as image:
            if image.mode not in MODES:
                raise DataError(f"{name!r} has pixels of mode {image.mode}; save it as 8-bit RGB")
            yield image
    except NO_IMAGE as error:
        reason = str(error).partition(" <")[0]
        raise DataError(f"{name!r} cannot be read as an image: {reason}") from error


@dataclass(frozen=True)
class Header:
    """Returns the header of an image file: (C, H, W), and whether it has several frames."""

    shape: tuple[int, int, int]
    moves: bool


def _header(open_: Open, name: str) -> Header:
    with _image(open_, name) as image:
        shape = (1 if MODES[image.mode] == "L" else 3, image.height, image.width)
        return Header(shape, getattr(image, "is_animated", False))


def _size(shape: tuple[int, int, int]) -> str:
    return f"{shape[2]}x{shape[1]} {'grey' if shape[0] == 1 else 'colour'}"


def _pixels(open_: Open, name: str) -> Rows:
    """Returns the pixels (C, H, W) of a file."""
    with _image(open_, name) as image:
        if image.has_transparency_data and np.asarray(image.convert("RGBA"))[..., 3].min() < 255:
            raise DataError(f"{name!r} is transparent in places; flatten it onto a colour first")
        pixels = np.asarray(image.convert(MODES[image.mode]))
    _refuse_constant(repr(name), pixels[None])
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _refuse_constant(where: str, images: Rows, first: int | None = None) -> None:
    """Raises DataError at an image of one colour, which no network draws unless it has failed."""
    flat = images.reshape(len(images), images.shape[1] * images.shape[2], -1)
    constant = (flat == flat[:, :1]).all(axis=(1, 2))
    if constant.any():
        index = "" if first is None else f" image {first + int(constant.argmax())}"
        raise DataError(f"{where}{index} is constant: all its pixels are the same; take it out")


@contextmanager
def _array(path: Path) -> Iterator[tuple[IO[bytes], tuple[int, int, int, int]]]:
    """Yields the bytes of `arr_0` and its shape (N, H, W, C), checked."""
    with _zip(path) as archive:
        try:
            file = archive.open("arr_0.npy")
        except KeyError:
            names = ", ".join(name.removesuffix(".npy") for name in archive.namelist())
            raise DataError(f"{str(path)!r} holds no images arr_0, but {names}") from None
        except UNREADABLE as error:
            raise DataError(f"arr_0 of {str(path)!r} cannot be read: {error}") from error
        with file:
            yield file, _check_array(path, *_array_header(path, file))


def _array_header(path: Path, file: IO[bytes]) -> tuple[Any, bool, Any]:
    try:
        if npy.read_magic(file) == (1, 0):
            return npy.read_array_header_1_0(file)
        return npy.read_array_header_2_0(file)
    except UNREADABLE as error:
        raise DataError(f"arr_0 of {str(path)!r} is not an array: {error}") from error


def _check_array(path: Path, shape: Any, fortran: bool, dtype: Any) -> tuple[int, int, int, int]:
    if dtype != np.uint8 or len(shape) != 4 or shape[3] not in (1, 3) or fortran or min(shape) < 1:
        raise DataError(
            f"arr_0 of {str(path)!r} must be images: uint8 (N, H, W, C) with 1 or 3 channels,"
            f" not {dtype} {tuple(shape)}; from [-1, 1] they are round(127.5 (x + 1)), clipped"
        )
    count, height, width, channels = shape
    return count, height, width, channels


def _array_reader(path: Path) -> Reader:
    def read(size: int) -> Iterator[Rows]:
        with _array(path) as (file, (count, *shape)):
            for start in range(0, count, size):
                part = (min(size, count - start), *shape)
                rows = np.frombuffer(_bytes(path, file, math.prod(part)), np.uint8)
                _refuse_constant(repr(str(path)), rows.reshape(part), start)
                yield rows.reshape(part).transpose(0, 3, 1, 2)

    return read


def _bytes(path: Path, file: IO[bytes], count: int) -> bytes:
    try:
        body = file.read(count)
    except UNREADABLE as error:
        raise DataError(f"arr_0 of {str(path)!r} cannot be read: {error}") from error
    if len(body) != count:
        raise DataError(f"arr_0 of {str(path)!r} ends too early; the file is cut off")
    return body
