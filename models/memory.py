"""Lack of memory, reported with advice."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from .errors import MemoryLackError

TEXTS = ("DefaultCPUAllocator", "out of memory")  # of plain RuntimeErrors: the host, CUDA, MPS


def lacks_memory(error: BaseException) -> bool:
    """Tells whether an error of torch says that a device or the host has too little memory."""
    is_plain = isinstance(error, RuntimeError) and any(text in str(error) for text in TEXTS)
    return is_plain or isinstance(error, torch.OutOfMemoryError)


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
