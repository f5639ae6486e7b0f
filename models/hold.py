"""Locks modules between threads: running a module is shared, changing it is exclusive.

A cache, perturbed attention and taps hook the module of a network, and a thread that runs it
meanwhile runs the hooks too. So a run holds its modules from its first call to its last.
"""

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import takewhile
from weakref import WeakKeyDictionary

from torch import nn

from .modules import unwrap_compiled


@contextmanager
def hold(*modules: nn.Module | None, alone: bool = False) -> Iterator[None]:
    """Holds modules while the context lasts; waits for threads that hold them otherwise.

    A thread can hold what it holds already, also alone what it shares: it then waits for the other
    threads, and counts as not running the module while it waits. Several modules are taken in one
    order by all threads, so that no two threads wait for each other; None is skipped.

    Args:
        modules: networks of torch, compiled or not, with all modules inside them.
        alone: no other thread may run them; otherwise threads that share them may.
    """
    locks = {_lock_of(unwrap_compiled(each)) for each in modules if each is not None}
    with ExitStack() as stack:
        for lock in sorted(locks, key=id):
            stack.enter_context(lock.hold(alone))
        yield


@dataclass(frozen=True, eq=False)
class Holder:
    """A thread that holds a module or waits to."""

    thread: int
    alone: bool

    def excludes(self, other: "Holder") -> bool:
        """Tells whether the two cannot hold a module at the same time."""
        return self.thread != other.thread and (self.alone or other.alone)


@dataclass(eq=False)
class ModuleLock:
    """The lock of one module: shared or exclusive, re-entrant, first come, first served."""

    inside: list[Holder] = field(default_factory=list)
    waiting: list[Holder] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)

    @contextmanager
    def hold(self, alone: bool) -> Iterator[None]:
        """Holds the module while the context lasts."""
        holder = Holder(threading.get_ident(), alone)
        self._enter(holder)
        try:
            yield
        finally:
            with self.changed:
                self.inside.remove(holder)
                self.changed.notify_all()

    def _enter(self, holder: Holder) -> None:
        with self.changed:
            self.waiting.append(holder)
            self.changed.notify_all()  # a waiting thread does not run
            try:
                self.changed.wait_for(lambda: self._is_free_for(holder))
                self.inside.append(holder)
            finally:
                self.waiting.remove(holder)
                self.changed.notify_all()

    def _is_free_for(self, holder: Holder) -> bool:
        again = any(each.thread == holder.thread for each in self.inside)
        before = () if again else takewhile(lambda each: each is not holder, self.waiting)
        idle = {each.thread for each in self.waiting}
        running = (each for each in self.inside if each.alone or each.thread not in idle)
        return not any(holder.excludes(each) for each in (*running, *before))


_locks: "WeakKeyDictionary[nn.Module, ModuleLock]" = WeakKeyDictionary()
_making = threading.Lock()


def _lock_of(module: nn.Module) -> ModuleLock:
    with _making:
        return _locks.setdefault(module, ModuleLock())
