"""The files that a data set is made of, read from a folder, a tar or a Debian package.

Only files of the wanted names are read, into memory; nothing is unpacked, so no path in an archive
can reach the disk.
"""

import io
import lzma
import tarfile
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import IO

from ...models.errors import SettingError
from ...models.reading import ordinary_file
from .errors import DataError

LIMIT = 1 << 28  # bytes of one file in an archive
Files = dict[str, bytes]  # by the wanted name, which is the end of the path in the archive


def read_files(path: Path, names: Collection[str]) -> Files:
    """Returns the wanted files found in a folder, its sub-folders, a tar (.tgz, .tar.gz) or a .deb.

    Raises:
        DataError: if the path is missing or is none of these, or cannot be read.
    """
    try:
        if path.is_dir():
            return _from_folder(path, names)
        with ordinary_file(path).open("rb") as file:
            is_deb = file.read(8) == AR
            file.seek(0)
            return _from_tar(_data_of_deb(file) if is_deb else file, names)
    except SettingError as error:
        raise DataError(str(error)) from error
    except (tarfile.ReadError, tarfile.CompressionError) as error:
        raise DataError(
            f"{str(path)!r} is neither a folder nor a tar or Debian package that can be read here;"
            " unpack it and give the folder"
        ) from error
    except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError, tarfile.TarError) as error:
        raise DataError(f"{str(path)!r} is damaged: {error}") from error


def _from_folder(path: Path, names: Collection[str]) -> Files:
    """Reads from the folder itself, else from the first of its sub-folders that has the file."""
    folders = [path, *sorted(each for each in path.iterdir() if each.is_dir())]
    contents: Files = {}
    for name in names:
        places = [folder / name for folder in folders if (folder / name).is_file()]
        if places:
            contents[name] = places[0].read_bytes()
    return contents


def _from_tar(file: IO[bytes], names: Collection[str]) -> Files:
    with tarfile.open(fileobj=file, mode="r:*") as archive:
        return dict(_members(archive, names))


def _members(archive: tarfile.TarFile, names: Collection[str]) -> Iterator[tuple[str, bytes]]:
    for member in archive:
        name = next((name for name in names if f"/{member.name}".endswith(f"/{name}")), None)
        if member.isreg() and name is not None:
            if member.size > LIMIT:
                raise DataError(f"{member.name!r} in the archive is too large: {member.size} bytes")
            content = archive.extractfile(member)
            if content is not None:
                yield name, content.read()


AR = b"!<arch>\n"
HEADER = 60  # bytes: name 16, time 12, owner 6, group 6, mode 8, size 10, end 2


def _data_of_deb(file: IO[bytes]) -> IO[bytes]:
    """Returns data.tar.* of a .deb, an `ar` archive whose members begin on even bytes (deb(5))."""
    file.seek(len(AR))
    while len(header := file.read(HEADER)) == HEADER and header[58:] == b"`\n":
        name, size = header[:16].decode("ascii", "replace").strip(" /"), int(header[48:58])
        if name.startswith("data.tar"):
            return io.BytesIO(file.read(size))
        file.seek(size + size % 2, io.SEEK_CUR)
    raise tarfile.ReadError("it is an ar archive without data.tar")
