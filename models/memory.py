"""Running out of memory, said in words that help."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from .errors import MemoryLackError

HOST = "DefaultCPUAllocator"  # torch raises a plain RuntimeError that names it


def lacks_memory(error: BaseException) -> bool:
    """Tells whether an error of torch says that a device or the host has too little memory."""
    return isinstance(error, torch.OutOfMemoryError) or HOST in str(error)


@contextmanager
def memory_advice(doing: str, advice: str) -> Iterator[None]:
    """Turns torch's error for lack of memory into one line that says what to lower.

    Raises:
        MemoryLackError: in its place; every other error passes.
    """
    try:
        yield
    except RuntimeError as error:
        if not lacks_memory(error):
            raise
        raise MemoryLackError(f"out of memory while {doing}; {advice}") from error
