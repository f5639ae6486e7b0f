"""Files that are written whole or not at all, checks of the places, and locks between processes.

A file is written under a hidden name in its own folder and then renamed. The hidden name follows
from the file's, and one process at a time writes it: what a killed process has left of a file is
known by its name, and is gone once that file is written again.
"""

import hashlib
import os
import stat
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO

from filelock import Timeout

from .errors import SettingError
from .lease import WholeLease

UNFINISHED, LOCK = ".fewstep-new", ".fewstep-lock"  # what hidden names end in
ATTEMPTS = 100  # to claim in a folder that others remove whenever it is empty
LEASE = 60.0  # seconds after which another machine may take over what a dead one has held
WATCHED: dict[Path, WholeLease] = {}  # held by others when last asked for; each has its clock


def write_whole(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Writes a file under a hidden name beside it and renames it, so that no half is ever seen.

    A link is followed to the file that it names. A file that is replaced keeps its permissions.

    Raises:
        SettingError: for what `check_writable` refuses, or if writing fails, on a full disk.
    """
    try:
        target = resolve_target(path)
        with hold_file(_name_beside(target, LOCK)):
            _replace(target, write)
    except OSError as error:
        raise _make_error(path, error) from error


def write_bytes(path: Path, body: bytes) -> None:
    """Writes bytes as `write_whole` does."""
    write_whole(path, lambda file: file.write(body))


def remove_file(path: Path) -> None:
    """Removes a file, if it is there, and what a killed process has left of it."""
    try:
        for each in (path, _name_beside(path, UNFINISHED), _name_beside(path, LOCK)):
            each.unlink(missing_ok=True)
    except OSError as error:
        raise SettingError(f"cannot remove {str(path)!r}: {_find_reason(error)}") from error


def make_folder(path: Path) -> None:
    """Makes a folder and those above it, and clears it of what killed processes have left there.

    Raises:
        SettingError: if it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        for lock in clear_locks(path, f".*{LOCK}"):
            lock.with_name(lock.name.removesuffix(LOCK) + UNFINISHED).unlink(missing_ok=True)
    except OSError as error:
        raise SettingError(f"cannot create folder {str(path)!r}: {_find_reason(error)}") from error


def check_writable(path: Path, *suffixes: str) -> None:
    """Raises SettingError if a file could not be written there, before anything is computed.

    Only a regular file is replaced, and never one that is marked as read-only, even by root.
    What a killed process has left of the file is removed.

    suffixes: that the name may end in, as ".png"; none for any.
    """
    if str(path) == "-":
        raise SettingError("'-' is not a file; give the name of a file to write")
    try:
        target = resolve_target(path)
        with hold_file(_name_beside(target, LOCK), wait=False) as mine:
            if mine:
                _name_beside(target, UNFINISHED).unlink(missing_ok=True)
    except OSError as error:
        raise _make_error(path, error) from error
    if suffixes and path.suffix.lower() not in suffixes:
        raise SettingError(f"{str(path)!r} must end in {', '.join(suffixes)}")


def resolve_target(path: Path) -> Path:
    """Returns the file that a name or a link stands for, if it may be written or replaced.

    Raises:
        SettingError: if it may not.
        OSError: if the name cannot be looked up.
    """
    target = Path(os.path.realpath(path))
    try:
        status = target.stat()
    except FileNotFoundError:
        if not target.parent.is_dir():
            parent = path.parent if target.parent == path.parent.resolve() else target.parent
            raise SettingError(
                f"the folder {str(parent)!r} does not exist; create it first"
            ) from None
        return target
    if stat.S_ISDIR(status.st_mode):
        raise SettingError(f"{str(path)!r} is a folder; give the name of a file in it")
    if not stat.S_ISREG(status.st_mode):
        raise SettingError(
            f"cannot write {str(path)!r}: it is {_name_kind(status.st_mode)}, not a file; give"
            " another name"
        )
    if not status.st_mode & 0o222 or not os.access(target, os.W_OK):  # root may write any file
        raise SettingError(f"cannot write {str(path)!r}: it is read-only; give another name")
    return target


def check_folder(path: Path) -> None:
    """Raises SettingError if a folder could not be made there or written to."""
    try:
        existing = next(each for each in (path, *path.parents) if _exists(each))
        if not existing.is_dir():
            raise SettingError(f"cannot create folder {str(path)!r}: {str(existing)!r} is a file")
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise SettingError(f"cannot create folder {str(path)!r}: {_find_reason(error)}") from error


def check_apart(outputs: Iterable[Path | None], inputs: Iterable[Path | None] = ()) -> None:
    """Raises SettingError if a file would be written twice, or over one that is read.

    Names of one file are the same, also through links. None is skipped.
    """
    read = {_identify(path): path for path in inputs if path is not None}
    written: dict[object, Path] = {}
    for path in filter(None, outputs):
        this = _identify(path)
        if this in read:
            raise SettingError(
                f"{str(path)!r} would be written over {str(read[this])!r}, which is read; give"
                " another name"
            )
        if this in written:
            raise SettingError(
                f"{str(path)!r} and {str(written[this])!r} are one file, which would be written"
                " twice; give another name"
            )
        written[this] = path


def _identify(path: Path) -> object:
    """Returns a key that all names of one file share; the file need not be there yet."""
    try:
        status = path.stat()
    except OSError:
        return os.path.realpath(path)
    return status.st_dev, status.st_ino


def _replace(target: Path, write: Callable[[IO[bytes]], object]) -> None:
    new = _name_beside(target, UNFINISHED)
    new.unlink(missing_ok=True)  # of a process that was killed: the lock is ours
    try:
        with new.open("xb") as file:
            write(file)
        if target.exists():
            new.chmod(stat.S_IMODE(target.stat().st_mode))
        os.replace(new, target)
    finally:
        new.unlink(missing_ok=True)


def _name_beside(target: Path, suffix: str) -> Path:
    """Returns a hidden name for a file, of one length whatever the file's name is."""
    digest = hashlib.sha256(os.fsencode(target.name)).hexdigest()[:16]
    return target.with_name(f".{digest}{suffix}")


def _exists(path: Path) -> bool:
    """Tells whether a path exists; raises OSError for a name too long or a loop of links."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _name_kind(mode: int) -> str:
    if stat.S_ISDIR(mode):
        return "a folder"
    return "a pipe" if stat.S_ISFIFO(mode) else "a device"


def _make_error(path: Path, error: OSError) -> SettingError:
    return SettingError(f"cannot write {str(path)!r}: {_find_reason(error)}")


def _find_reason(error: OSError) -> str:
    return error.strerror or str(error)


@contextmanager
def hold_file(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Holds the lock of a file that is there only for that; yields whether this process has it.

    The file names its holder, who renews it while it is held, so that it holds where the system's
    own locks do not, as on many network filesystems. What a dead process of this machine has held
    is free at once, and that of another machine once it has been seen unchanged for `LEASE`
    seconds, whatever their clocks say. It is not re-entrant: a process that asks for a lock that it
    holds waits for ever.

    wait: until the holder releases it; otherwise False is yielded.

    Raises:
        OSError: if the file cannot be made.
    """
    lock = WATCHED.pop(path, None) or WholeLease(path, lease_duration=LEASE)
    while not _acquire(lock, LEASE if wait else 0.0):
        if not wait:
            WATCHED[path] = lock
            yield False
            return
    try:
        yield True
    finally:
        lock.release()


def _acquire(lock: WholeLease, seconds: float) -> bool:
    """Returns whether a lock could be had within that time.

    A file that names no holder is left by a version of this package whose locks were the system's,
    or by a process that was killed before it wrote, where files cannot be linked.
    """
    path = Path(lock.lock_file)
    with suppress(FileNotFoundError):
        status = path.stat()
        if status.st_size == 0 and time.time() - status.st_mtime > LEASE:
            path.unlink()
    try:
        lock.acquire(timeout=seconds)
    except Timeout:
        return False
    return True


@contextmanager
def claim(path: Path, is_done: Callable[[], bool], *, wait: bool = False) -> Iterator[bool]:
    """Yields whether this process may do a piece of work that no other has done or is doing.

    path:    of the lock that stands for the work; its folder is made.
    is_done: asked once the lock is held, so that it must look at what others have done since.
    wait:    for a process that is at it, whose work is then done or, if it was killed, is not.
    """
    with ExitStack() as stack:
        yield _enter(stack, path, wait) and not is_done()


def clear_locks(folder: Path, pattern: str) -> Iterator[Path]:
    """Yields and then removes the files of locks in a folder whose holders were killed."""
    for path in folder.glob(pattern):
        with suppress(OSError), hold_file(path, wait=False) as mine:
            if mine:
                yield path


def _enter(stack: ExitStack, path: Path, wait: bool) -> bool:
    for _ in range(ATTEMPTS):
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):  # another process removed the folder meanwhile
            return stack.enter_context(hold_file(path, wait=wait))
    raise FileNotFoundError(f"cannot keep the folder of {str(path)!r}")
