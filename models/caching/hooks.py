"""The hooks that put an engine into a network: those of diffusers, so that others' compose.

Imported when a cache is attached, as it needs diffusers.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from diffusers.hooks import HookRegistry, ModelHook
from diffusers.hooks.hooks import BaseState, StateManager
from torch import nn

from .advice import warn_of_share
from .calls import Part, Substitute
from .engine import Engine

NAME, LISTENER = "fewstep_cache", "fewstep_cache_listener"
Undo = Callable[[], None]
F = TypeVar("F", bound=Callable[..., Any])
Inner = Callable[..., Any]


def _on_host(function: F, *, all_of_it: bool = True) -> F:
    """Keeps a function out of compiled code, and all it calls or not."""
    disable: Any = torch.compiler.disable
    plain: F = disable(function, recursive=all_of_it)
    return plain


class _Context(StateManager):  # type: ignore[misc]
    """Hears which branch a pipeline is about to call; the engine keeps the state itself."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(BaseState)
        self.engine = engine

    def set_context(self, context: Any) -> None:
        super().set_context(context)
        self.engine.context = None if context is None else getattr(context, "name", context)


class Root:
    """The hook of a network: its decisions are taken on the host, its inside stays as it was."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine  # may give way to another one at its first call
        self.weighed = False
        self.enter, self.leave = _on_host(self._enter), _on_host(self._leave)

    def _enter(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        self.engine.enter(args, kwargs)

    def _leave(self, out: Any, inner: Inner) -> None:
        self.engine.leave(out)
        if self.engine.active and not self.weighed:
            self.weighed = True
            warn_of_share(self.engine, inner)

    def run(self, inner: Inner, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        self.enter(args, kwargs)
        try:
            out = inner(*args, **kwargs)
        except BaseException:
            self.engine.fail()
            raise
        self.leave(out, inner)
        return out


class Around:
    """The hook of one of its parts."""

    def __init__(self, part: Part) -> None:
        self.before, self.after = _on_host(part.before), _on_host(part.after)

    def run(self, inner: Inner, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        asked = self.before(args, kwargs)
        if isinstance(asked, Substitute):
            return asked.value
        if asked is not None:
            args, kwargs = asked
        return self.after(inner(*args, **kwargs))


class _Hook(ModelHook):  # type: ignore[misc]
    """Puts one of the two around the forward of a module."""

    def __init__(self, around: Root | Around) -> None:
        super().__init__()
        self.run = _on_host(around.run, all_of_it=False)

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return self.run(self.fn_ref.original_forward, args, kwargs)


class _Listener(ModelHook):  # type: ignore[misc]
    """A hook of the network itself, which hears of contexts and resets and knows the attachment."""

    _is_stateful = True

    def __init__(self, engine: Engine, attachment: Any) -> None:
        super().__init__()
        self.engine, self.attachment, self.context = engine, attachment, _Context(engine)

    def reset_state(self, module: nn.Module) -> nn.Module:
        self.engine.reset()
        return module


def put(module: nn.Module, around: Root | Around) -> Undo:
    """Puts a hook around a module, outermost; returns the function that removes every trace of it.

    A module that is compiled already (`module.compile()`) gets it around its compiled call, so that
    the compiled code stays as it is.
    """
    compiled = vars(module).get("_compiled_call_impl")
    if compiled is None:
        return _register(module, _Hook(around), NAME)

    def call(*args: Any, **kwargs: Any) -> Any:
        return around.run(compiled, args, kwargs)

    vars(module)["_compiled_call_impl"] = call

    def remove() -> None:
        vars(module)["_compiled_call_impl"] = compiled

    return remove


def listen(engine: Engine, attachment: Any) -> Undo:
    """Makes an attachment known to its network, and to pipelines that call it."""
    return _register(engine.root, _Listener(engine, attachment), LISTENER)


def _register(module: nn.Module, hook: Any, name: str) -> Undo:
    had = vars(module).keys() & {"forward", "_diffusers_hook"}
    registry = HookRegistry.check_if_exists_or_initialize(module)
    registry.register_hook(hook, name)

    def remove() -> None:
        _remove(registry, name)
        if not registry.hooks:
            for each in {"forward", "_diffusers_hook"} - had:
                vars(module).pop(each, None)

    return remove


def replace_engine(root: Root, engine: Engine) -> None:
    """Puts another engine in the place of an attached one, in the middle of a call."""
    listener = find_listener(engine.root)
    root.engine = listener.engine = listener.context.engine = engine


def find_listener(module: nn.Module) -> Any:
    """Returns our listener on a network; None if there is none."""
    registry = vars(module).get("_diffusers_hook")
    return None if registry is None else registry.get_hook(LISTENER)


def forget_contexts(module: nn.Module) -> None:
    """Makes diffusers look for registries below a network again: it memoises them."""
    HookRegistry.check_if_exists_or_initialize(module).invalidate_child_registries_cache()


def _remove(registry: HookRegistry, name: str) -> None:
    """Takes our hook out; one that was registered after it keeps its own forward.

    diffusers would put the inner forward in the place of the outer hook's `new_forward`.
    """
    place = registry._hook_order.index(name)
    outer = registry._fn_refs[place + 1] if place + 1 < len(registry._fn_refs) else None
    forward = None if outer is None or outer.original_forward is None else outer.forward
    inner = registry._fn_refs[place].original_forward
    registry.remove_hook(name, recurse=False)
    if outer is not None and forward is not None:
        outer.forward, outer.original_forward = forward, inner
