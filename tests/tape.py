"""A recording like that of a CUDA graph, on the CPU: operations with the memory they work on.

A replay runs the recorded operations again on the same tensors and leaves what they give where the
recording left it. Nothing of Python runs again, so whatever the host decided or computed while it
was recorded is fixed, as it is in a real graph. Reading a number on the host is an error.
"""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

READS = {"_local_scalar_dense", "nonzero", "equal", "is_nonzero", "masked_select"}


class Tape(TorchDispatchMode):
    """One recording; `recordings` and `replays` count over all of a capture."""

    def __init__(self):
        super().__init__()
        self.operations = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ in READS:
            raise RuntimeError("operation not permitted when stream is capturing")
        out = func(*args, **(kwargs or {}))
        self.operations.append((func, args, kwargs or {}, out))
        return out

    def replay(self):
        for func, args, kwargs, out in self.operations:
            again = func(*args, **kwargs)
            for old, new in zip(tree_leaves(out), tree_leaves(again), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


class Taped:
    """A capture: `fails` instead of recording, if told so."""

    def __init__(self, fails=None):
        self.fails, self.recordings, self.replays, self.tried = fails, 0, 0, 0

    def __call__(self, work):
        self.tried += 1
        if self.fails is not None:
            raise self.fails
        work()  # as the warm-up
        with Tape() as tape:
            out = work()
        self.recordings += 1
        for leaf in tree_leaves(out):  # a recording does not run
            if isinstance(leaf, torch.Tensor) and leaf.is_floating_point():
                leaf.fill_(float("nan"))

        def replay():
            self.replays += 1
            tape.replay()

        return out, replay
