"""Skips sub-modules inside the blocks: all that are forecast, or attention alone."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..architectures.stack import Stack, make_blank
from ..ledger import CacheLedger
from .base import CallPosition, Policy
from .calls import CallState, Part, Substitute
from .engine import Engine
from .gate import sum_errors
from .pab import AttentionPolicy


class ModuleEngine(Engine):
    """Forecasts the outputs of sub-modules; everything between them stays true (TaylorSeer)."""

    def __init__(
        self,
        root: nn.Module,
        policy: Policy,
        ledger: CacheLedger,
        modules: Mapping[str, nn.Module],
        idle: Mapping[str, nn.Module] | None = None,
    ) -> None:
        super().__init__(root, policy, ledger)
        self.modules, self.idle = modules, idle or {}

    def list_parts(self) -> dict[str, nn.Module]:
        return {**self.modules, **self.idle}

    def list_skipped(self, call: CallState) -> tuple[str, ...]:
        return tuple(self.list_parts())

    def list_hooked(self) -> list[Part]:
        cached = [
            Part(each, partial(self.before, name), partial(self.after, name))
            for name, each in self.modules.items()
        ]
        idle = [Part(each, partial(self.leave_out, name)) for name, each in self.idle.items()]
        return [] if self.policy.off else [*cached, *idle]

    def begin(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> CallState:
        call = super().begin(args, kwargs)
        self.settle(call)
        return call

    def runs(self, name: str) -> bool:
        """Tells whether a sub-module runs truly now."""
        return not self.active or self.state.full is not False

    def stores(self, name: str) -> bool:
        """Tells whether the output of a sub-module that runs now is stored."""
        return self.state.full is True

    def before(
        self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Substitute | None:
        """Forecasts the output of a cached module at a skipped call; a tuple part by part."""
        if self.runs(name):
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
        """Stores the output of a cached module that ran, at a full call."""
        if self.active and self.stores(name):
            stores, index = self.state.track.stores, self.state.place.index
            for part, value in _name_tensors(name, out):
                if part not in stores:
                    stores[part] = self.make_memory()
                stores[part].update(value, index)
        return out

    def leave_out(
        self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Substitute | None:
        """Leaves out a module that feeds nothing but a cached one."""
        return None if self.runs(name) else Substitute(make_blank(args, kwargs))


class VerifiedEngine(ModuleEngine):
    """Runs the last block truly at skipped calls, beside its forecast from the same input.

    What the verification says is read at the next call, and the true output goes on.
    """

    def __init__(self, root: nn.Module, policy: Policy, ledger: CacheLedger, stack: Stack) -> None:
        super().__init__(root, policy, ledger, stack.modules, stack.idle)
        self.block, self.inside = stack.blocks[-1], False
        self.forecast: Tensor | None = None

    def list_hooked(self) -> list[Part]:
        hooked = super().list_hooked()
        verified = Part(self.block.module, self.enter_block, self.leave_block)
        return [*hooked, verified] if hooked else []

    def list_skippable(self) -> tuple[str, ...]:
        return tuple(name for name in self.list_parts() if not self._is_last(name))

    def list_skipped(self, call: CallState) -> tuple[str, ...]:
        return super().list_skipped(call) if call.follows else self.list_skippable()

    def _is_last(self, name: str) -> bool:
        return name.startswith(f"{self.block.name}.")

    def begin(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> CallState:
        self.inside, self.forecast = False, None
        return super().begin(args, kwargs)

    def decide_early(self, call: CallState) -> bool | None:
        """Decides by the verification of the call before; where none was made, it is skipped."""
        early, check = super().decide_early(call), call.track.check
        call.track.check = None
        if early is None and check is not None:
            self.judge.decide(call, check)
            return call.full
        return bool(early)

    def runs(self, name: str) -> bool:
        return super().runs(name) or (self.forecast is not None and self._is_last(name))

    def enter_block(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Forecasts the last block first, from a copy of its input."""
        if not self.active or self.state.full or self.state.follows or self.inside:
            return
        self.inside = True
        given = {name: _copy_tensor(each) for name, each in self.block.call(args, kwargs).items()}
        self.forecast = self._read_image(self.block.module(**given)).clone()

    def leave_block(self, out: Any) -> Any:
        """Compares the true output with the forecast."""
        if self.active and self.forecast is not None:
            sums = sum_errors(self.forecast, self._read_image(out), "true")
            self.state.track.check, self.forecast = self.judge.reduce(sums), None
        return out

    def _read_image(self, out: Any) -> Tensor:
        return self.block.read_output(out).image


def _copy_tensor(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def _name_tensors(name: str, out: Any) -> list[tuple[str, Tensor]]:
    if isinstance(out, Tensor):
        return [(name, out)]
    return [(f"{name}[{i}]", each) for i, each in enumerate(out)]


def _find_dtype(args: Sequence[Any], kwargs: Mapping[str, Any]) -> torch.dtype:
    values = [*args, *kwargs.values()]
    floats = (v for v in values if isinstance(v, Tensor) and v.is_floating_point())
    return next(floats).dtype


class AttentionEngine(ModuleEngine):
    """Skips attention alone, each kind of it in a rhythm of its own (PAB).

    What enters a module that adds it to its own output, as in UNets without text, stays true.
    """

    def __init__(self, root: nn.Module, policy: AttentionPolicy, ledger: CacheLedger) -> None:
        everything = find_attention(root)
        self.rhythms: AttentionPolicy = policy
        self.skipped: tuple[str, ...] = ()
        self.added: dict[str, Tensor] = {}
        self.kinds = {n: k for n, (k, _) in everything.items() if k in policy.kinds}
        modules = {name: everything[name][1] for name in self.kinds}
        super().__init__(root, policy, ledger, modules)

    @property
    def may_save_little(self) -> bool:
        return True

    def decide_early(self, call: CallState) -> bool | None:
        """Makes calls full in which the kinds that this network has are not skipped."""
        return super().decide_early(call) is not False or not self.list_skipped(call)

    def list_skipped(self, call: CallState) -> tuple[str, ...]:
        now = CallPosition(call.place.index, 0, call.length)
        return tuple(name for name, kind in self.kinds.items() if self.rhythms.skips(kind, now))

    def begin(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> CallState:
        call = super().begin(args, kwargs)
        self.skipped = () if call.full else self.list_skipped(call)
        return call

    def runs(self, name: str) -> bool:
        return super().runs(name) or name not in self.skipped

    def stores(self, name: str) -> bool:
        return self.runs(name)

    def before(
        self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Substitute | None:
        substitute = super().before(name, args, kwargs)
        module: Any = self.modules[name]
        if not getattr(module, "residual_connection", False):
            return substitute
        added = (args[0] if args else kwargs["hidden_states"]) / module.rescale_output_factor
        if substitute is not None:
            return Substitute(substitute.value + added)
        self.added[name] = added
        return None

    def after(self, name: str, out: Any) -> Any:
        added = self.added.pop(name, None)
        super().after(name, out if added is None else out - added)
        return out


def find_attention(root: nn.Module) -> dict[str, tuple[str, nn.Module]]:
    """Returns the kind, "spatial", "temporal" or "cross", of each attention, and it, by name."""
    return {
        name: (_find_kind(name, each), each)
        for name, each in root.named_modules()
        if isinstance(getattr(each, "to_v", None), nn.Module)
    }


def _find_kind(name: str, attention: nn.Module) -> str:
    cross = getattr(attention, "is_cross_attention", None)
    if cross or (cross is None and name.endswith("attn2")):
        return "cross"
    return "temporal" if "temporal" in name else "spatial"
