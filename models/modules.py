"""Finds the network of torch inside a compiled module or a function."""

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FunctionType, MethodType
from typing import Any

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
