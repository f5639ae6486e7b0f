"""Images to measure against: data sets known by name, folders, npz and zip archives."""

from pathlib import Path

from .errors import DataError
from .fetch import fetch, load_images
from .files import folder_images, npz_images, zip_images
from .image_set import ImageSet, in_memory
from .known import DATA_SETS, data_set

__all__ = ["DATA_SETS", "DataError", "ImageSet", "data_set", "fetch", "images_of", "in_memory"]

PADDED = {"fashion-mnist-32": "fashion-mnist", "mnist-32": "mnist"}
SIDE = 32


def images_of(source: str | Path) -> ImageSet:
    """Returns the images of a source.

    Args:
        source: a name, or a path. Names, each with `:train` (default) or `:test`: `fashion-mnist`
            and `mnist`, 28x28 grey; `fashion-mnist-32` and `mnist-32`, the same in the middle of
            32x32 zeros, as the networks of the package draw it; `cifar10`, 32x32 colour. `emoji`,
            32x32 colour on white, has `:tones`, its pictures in skin tones, in place of `:test`.
            Paths: a folder of images (PNG, JPEG, WebP, GIF, BMP, TIFF and others); a .zip of such;
            an .npz with `arr_0`, uint8 (N, H, W, C). A folder that is called like a data set is
            written with a slash: `./cifar10`.

    Raises:
        DataError: if nothing is there, or what is there cannot be used; nothing is downloaded.

    Warns:
        UserWarning: of pictures of kinds that are left out, and of several frames in one.
    """
    name, colon, split = str(source).partition(":")
    if isinstance(source, str) and name in PADDED:
        label = name if split in ("", "train") else source
        return _load_named(PADDED[name], split if colon else "train").pad(SIDE, label)
    if isinstance(source, str) and name in DATA_SETS:
        return _load_named(name, split if colon else "train")
    return _at(Path(source))


def _load_named(name: str, split: str) -> ImageSet:
    return load_images(data_set(name), split)


def _at(path: Path) -> ImageSet:
    if path.is_dir():
        return folder_images(path)
    if not path.is_file():
        raise DataError(
            f"there are no images at {str(path)!r}; give a folder, a .zip or an .npz,"
            f" or a name: {', '.join(sorted([*DATA_SETS, *PADDED]))}, each with :train or :test"
        )
    readers = {".npz": npz_images, ".zip": zip_images}
    if path.suffix.lower() not in readers:
        raise DataError(f"{str(path)!r} is not a folder, .zip or .npz; put images into a folder")
    return readers[path.suffix.lower()](path)
