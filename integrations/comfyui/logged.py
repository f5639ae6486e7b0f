"""Warnings of fewstep in ComfyUI's log: Python shows each of them only once a process."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def log_warnings() -> Iterator[None]:
    """Logs what is warned of inside."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for warning in caught:
        logging.warning("fewstep: %s", warning.message)
