"""Downloads that can be broken off: what came is kept, and the next try asks for the rest."""

import hashlib
import os
import shutil
import time
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from tqdm.auto import tqdm

from ...models.errors import SettingError
from ...models.files import make_folder
from .errors import DataError

ATTEMPTS = 3
PAUSE = 1.0  # seconds between attempts
TIMEOUT = 30.0  # seconds without a byte
PIECE = 1 << 18


def download(url: str, path: Path) -> Path:
    """Fetches `url` into the file `path`, continuing an earlier try, with a bar of bytes.

    A file that is there already is whole, and taken as it is. The bytes are not judged here: who
    asks for a file knows what it must hold, and removes one that does not.

    Raises:
        SettingError: if the URL is not http or https, or the folder cannot be written to.
        DataError: if the file cannot be had; what came is kept for the next try.
    """
    if urlsplit(url).scheme not in ("http", "https"):
        raise SettingError(f"{url!r} is not an http or https address")
    if path.is_file():
        return path
    part = path.with_name(f"{path.name}.{hashlib.sha256(url.encode()).hexdigest()[:8]}.part")
    for attempt in range(ATTEMPTS):
        try:
            make_folder(path.parent)
            if _continue(url, part):
                os.replace(part, path)
                return path
            problem = "the connection broke off"
        except HTTPError as error:
            raise DataError(f"cannot download {url}: {error.code} {error.reason}") from error
        except (URLError, TimeoutError, ConnectionError, HTTPException) as error:
            problem = str(getattr(error, "reason", error)) or type(error).__name__
            if not part.exists():
                break
        except OSError as error:
            raise SettingError(f"cannot write {str(part)!r}: {error.strerror}") from error
        time.sleep(PAUSE * (attempt + 1 < ATTEMPTS))
    rest = f"; {part.stat().st_size} bytes are kept, try again" if part.exists() else ""
    raise DataError(f"cannot download {url}: {problem}{rest}")


def _continue(url: str, part: Path) -> bool:
    """Appends what is missing; says whether the file is whole now."""
    have = part.stat().st_size if part.exists() else 0
    try:
        answer = urlopen(Request(url, headers={"Range": f"bytes={have}-"}), timeout=TIMEOUT)
    except HTTPError as error:
        if error.code != 416:  # nothing there from `have` on: it is whole, or longer than the file
            raise
        return (have > 0 and error.headers.get("Content-Range") == f"bytes */{have}") or _drop(part)
    with answer:
        have = _start(answer, have)
        total = have + int(answer.headers.get("Content-Length") or 0)
        with part.open("r+b" if have else "wb") as file, _bar(part, have, total) as bar:
            file.seek(have)
            while piece := answer.read(PIECE):
                file.write(piece)
                bar.update(len(piece))
    return total == have or part.stat().st_size == total


def _start(answer: Any, have: int) -> int:
    """Returns the offset of the first byte of the answer: servers may ignore what was asked."""
    content_range = answer.headers.get("Content-Range", "")
    continues = answer.status == 206 and content_range.startswith(f"bytes {have}-")
    return have if continues else 0


def _drop(part: Path) -> bool:
    part.unlink(missing_ok=True)
    return False


def _bar(part: Path, have: int, total: int) -> Any:
    return tqdm(
        desc=part.name.rsplit(".", 2)[0],
        initial=have,
        total=total or None,
        unit="B",
        unit_scale=True,
        unit_divisor=1024,
        disable=None,  # in terminals only
        delay=0.5,
        leave=False,
    )


def run_download(command: list[str], folder: Path, pattern: str) -> Path:
    """Returns the file that a command such as `apt-get download NAME` leaves in a folder.

    Raises:
        DataError: if the command is not there, fails or leaves no such file.
    """
    import subprocess

    if shutil.which(command[0]) is None:
        raise DataError(f"{command[0]} is not on this machine")
    make_folder(folder)
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    paths = sorted(folder.glob(pattern))
    if done.returncode or not paths:
        lines = [line for line in done.stderr.splitlines() if line.startswith("E:")]
        lines += done.stderr.splitlines()[-1:]
        raise DataError(f"{' '.join(command)} failed: {lines[0] if lines else 'no output'}")
    return paths[-1]
