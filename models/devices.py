"""Tensors on their way between host and device, and devices that lack memory.

On a CPU both ways are plain reads. On a GPU `x.to(device)` of ordinary memory, `.tolist()` and
`.item()` stall the host until the device has finished all queued work, which empties its queue.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor

from .errors import MemoryLackError


def send(x: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """Sends x to a device; the host does not wait.

    It goes through page-locked memory, which its allocator keeps until the copy is done.
    """
    if device.type == "cuda" and x.device.type == "cpu":
        x = x.pin_memory()
    return x.to(device, dtype, non_blocking=True)


class Constant:
    """A tensor that never changes, copied once to each place where it is needed."""

    def __init__(self, x: Tensor) -> None:
        self._at = {(x.device, x.dtype): x}

    def on(self, like: Tensor) -> Tensor:
        """Returns the tensor on the device and in the dtype of another one."""
        key = like.device, like.dtype
        if key not in self._at:
            with torch.inference_mode(False):  # a later run may record gradients
                self._at[key] = send(next(iter(self._at.values())), *key)
        return self._at[key]


class Reading:
    """A tensor that the host will read: its copy starts now and is waited for when it is read."""

    allowed: ClassVar[bool] = True

    def __init__(self, x: Tensor) -> None:
        self._host, self._done = x.detach(), None
        events: Any = torch.cuda
        if x.device.type == "cuda":
            self._host = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
            self._host.copy_(x, non_blocking=True)
            self._done = events.Event()
            self._done.record(torch.cuda.current_stream(x.device))

    def tensor(self) -> Tensor:
        """Returns the tensor on the CPU.

        Raises:
            RuntimeError: while a CUDA graph is recorded, which holds no decisions of the host.
        """
        if not Reading.allowed:
            raise RuntimeError("the host reads numbers that the device has computed")
        if self._done is not None:
            self._done.synchronize()
        return self._host.cpu()

    def numbers(self) -> Any:
        """Returns the tensor as `tolist` does: floats, in lists as deep as the tensor."""
        return self.tensor().tolist()


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
