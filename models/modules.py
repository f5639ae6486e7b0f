"""Modules of torch behind a network: finding them, and holding them between threads.

A cache, perturbed attention and taps hook the module of a network, and a thread that runs it
meanwhile runs the hooks too. So a run holds its modules from its first call to its last: running a
module is shared, changing it is exclusive.
"""

import threading
import warnings
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import takewhile
from types import FunctionType, MethodType
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn
from torch.utils.hooks import RemovableHandle

STAND_IN = "_fewstep_stand_in"  # marks a method that answers in place of another
DEPTH = 6  # of functions in functions that modules are looked for in


def unwrap_compiled(module: nn.Module) -> nn.Module:
    """Returns the network inside what torch.compile returned; any other network itself."""
    inner = getattr(module, "_orig_mod", module)
    return inner if isinstance(inner, nn.Module) else module


@contextmanager
def remove_hooks(handles: Iterable[RemovableHandle]) -> Iterator[None]:
    """Removes hooks when the context ends."""
    hooks = list(handles)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def is_answered_for(module: nn.Module) -> bool:
    """Tells whether guidance answers in place of a module, which hooks have to be beneath."""
    return getattr(module.forward, STAND_IN, False)


def is_compiled(module: nn.Module) -> bool:
    """Tells whether a module or one inside it runs compiled code, or was recorded in graphs."""
    root = unwrap_compiled(module)
    return root is not module or any(_has_compiled_call(each) for each in root.modules())


def _has_compiled_call(module: nn.Module) -> bool:
    return vars(module).get("_compiled_call_impl") is not None


def warn_in_training(network: Any, name: str) -> None:
    """Warns if a module that a function calls is in training mode.

    network: a module or a function; of a function, its closure, defaults, bound object, the
        arguments of a partial, and the globals that its code names are looked through.
    """
    for module in find_modules(network):
        if any(each.training for each in unwrap_compiled(module).modules()):
            warnings.warn(
                f"a {type(module).__name__} behind {name!r} is in training mode: batch"
                " normalisation then makes an image depend on its batch, and dropout on chance;"
                " call .eval() on it",
                stacklevel=3,
            )


def find_modules(value: Any) -> list[nn.Module]:
    """Returns the modules that a function reaches by itself, each once."""
    return list(_walk(value, DEPTH, set()))


def _walk(value: Any, depth: int, seen: set[int]) -> Iterator[nn.Module]:
    if id(value) in seen or depth == 0:
        return
    seen.add(id(value))
    if isinstance(value, nn.Module):
        yield value
        return
    for part in _list_parts(value):
        yield from _walk(part, depth - 1, seen)


def _list_parts(value: Any) -> list[Any]:
    """Returns the values that a function, a container or a callable object holds."""
    match value:
        case partial():
            return [value.func, *value.args, *value.keywords.values()]
        case MethodType():
            owner = value.__self__
            return [value.__func__, *([owner] if callable(owner) else _list_attributes(owner))]
        case FunctionType():
            names = value.__code__.co_names
            used = [value.__globals__[name] for name in names if name in value.__globals__]
            defaults = [*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
            return [*_list_cells(value), *defaults, *used]
        case list() | tuple():
            return list(value)
        case dict():
            return list(value.values())
    is_object = callable(value) and not isinstance(value, type)
    return [*_list_attributes(value), type(value).__call__] if is_object else []


def _list_attributes(value: Any) -> list[Any]:
    """Returns the attributes of an object that has a dictionary of them."""
    return list(getattr(value, "__dict__", {}).values())


def _list_cells(function: FunctionType) -> list[Any]:
    cells = []
    for cell in function.__closure__ or ():
        try:
            cells.append(cell.cell_contents)
        except ValueError:  # assigned later, if at all
            continue
    return cells


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
