"""Forecasts the outputs of sub-modules inside the blocks: TaylorSeer as published."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..architectures.stack import Stack, make_blank
from ..ledger import CacheLedger
from .base import StackPolicy
from .call_state import CallState, Part, Substitute
from .engine import Engine
from .forecast import FiniteDifferences


class ModuleEngine(Engine):
    """Forecasts the outputs of sub-modules; everything between them stays true (TaylorSeer)."""

    def __init__(
        self, root: nn.Module, policy: StackPolicy, ledger: CacheLedger, stack: Stack
    ) -> None:
        super().__init__(root, policy, ledger)
        self.order, self.modules, self.idle = policy.keep.order, stack.modules, stack.idle

    def list_parts(self) -> dict[str, nn.Module]:
        return {**self.modules, **self.idle}

    def list_skipped(self, call: CallState) -> tuple[str, ...]:
        return tuple(self.list_parts())

    def list_hooked(self) -> list[Part]:
        cached = [
            Part(each, partial(self.before, name), partial(self.after, name))
            for name, each in self.modules.items()
        ]
        idle = [Part(each, self.leave_out) for each in self.idle.values()]
        return [] if self.policy.off else [*cached, *idle]

    def begin(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> CallState:
        call = super().begin(args, kwargs)
        self.settle(call)
        return call

    def finish(self, call: CallState) -> None:
        if call.full:
            call.track.last = [call.place.index]
        super().finish(call)

    def before(
        self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Substitute | None:
        """Forecasts the output of a cached module at a skipped call; a tuple part by part."""
        if not self.active or self.state.full:
            return None
        stores, index = self.state.track.stores, self.state.place.index
        dtype = _find_dtype(args, kwargs)
        if name in stores:
            return Substitute(stores[name].forecast(index).to(dtype))
        parts: list[Tensor] = []
        while (part := f"{name}[{len(parts)}]") in stores:
            parts.append(stores[part].forecast(index).to(dtype))
        return Substitute(tuple(parts))

    def after(self, name: str, out: Any) -> Any:
        """Stores the output of a cached module."""
        if self.active:
            stores, index = self.state.track.stores, self.state.place.index
            for part, value in _name_tensors(name, out):
                if part not in stores:
                    stores[part] = FiniteDifferences(self.order)
                stores[part].update(value, index)
        return out

    def leave_out(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Substitute | None:
        """Leaves out a module that feeds nothing but a cached one."""
        return None if not self.active or self.state.full else Substitute(make_blank(args, kwargs))


def _name_tensors(name: str, out: Any) -> list[tuple[str, Tensor]]:
    if isinstance(out, Tensor):
        return [(name, out)]
    return [(f"{name}[{i}]", each) for i, each in enumerate(out)]


def _find_dtype(args: Sequence[Any], kwargs: Mapping[str, Any]) -> torch.dtype:
    values = [*args, *kwargs.values()]
    floats = (v for v in values if isinstance(v, Tensor) and v.is_floating_point())
    return next(floats).dtype
