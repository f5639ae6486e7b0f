"""Locks between processes: a file that one holds at a time, and that ends with its holder."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

ATTEMPTS = 100  # to claim in a folder that others remove whenever it is empty


@contextmanager
def hold(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Holds the lock of a file that is there only for that; yields whether this process has it.

    The system releases it when the process ends, however it ends. It is not re-entrant: a process
    that asks for a lock that it holds waits for ever.

    wait: until the holder releases it; otherwise False is yielded.

    Raises:
        OSError: if the file cannot be made.
    """
    lock = FileLock(path)
    try:
        lock.acquire(timeout=-1 if wait else 0)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        with suppress(OSError):  # Windows removes none that is open
            path.unlink()  # while it is held: a process that waits for it sees that it is gone
        lock.release()


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
        with suppress(OSError), hold(path, wait=False) as mine:
            if mine:
                yield path


def _enter(stack: ExitStack, path: Path, wait: bool) -> bool:
    for _ in range(ATTEMPTS):
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):  # another process removed the folder meanwhile
            return stack.enter_context(hold(path, wait=wait))
    raise FileNotFoundError(f"cannot keep the folder of {str(path)!r}")
