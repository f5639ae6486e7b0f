"""The engines for each kind of network but a stack of blocks, and the choice among all of them."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..architectures import known_classes
from ..architectures.discover import may_have_blocks, observe
from ..architectures.stack import Stack, block_structure, describe, make_blank
from ..errors import ModelError, SettingError
from ..ledger import CacheLedger
from .base import Policy
from .calls import Arguments, CallState, Part, Substitute
from .engine import Engine
from .gate import sum_errors
from .stack_engine import StackEngine
from .unet import UNetStack, describe_unet, is_unet, make_hollow


def make_engine(root: nn.Module, policy: Policy, ledger: CacheLedger) -> Engine:
    """Makes the engine for a policy on a network.

    Raises:
        ModelError: if the network is of a kind that the policy cannot skip.
    """
    settings = policy.fit_to(root)
    if is_unet(root):
        _check_unet(root, settings)
        return _check_parts(UNetEngine(root, settings, ledger, describe_unet(root)))
    _check_stack(root, settings)
    if block_structure(root) is None:
        return Unobserved(root, settings, ledger)
    return make_stack_engine(describe(root), settings, ledger)


def make_stack_engine(stack: Stack, policy: Policy, ledger: CacheLedger) -> Engine:
    """Makes the engine for a policy on a stack of blocks."""
    kind: type[ModuleEngine | StackEngine] = ModuleEngine if policy.by_module else StackEngine
    if policy.gate is not None and policy.gate.reads == "block":
        kind = VerifiedEngine
    return _check_parts(kind(stack.root, policy, ledger, stack))


def _check_parts(engine: Engine) -> Engine:
    """Returns the engine; raises SettingError if its policy is for a network of other parts."""
    engine.policy.check_parts(len(engine.list_parts()))
    return engine


def _check_unet(root: nn.Module, policy: Policy) -> None:
    """Raises ModelError for a policy that no UNet can carry out."""
    name = type(root).__name__
    inside = policy.gate is not None and policy.gate.reads != "input"
    if inside or policy.keep.what == "residual":
        raise ModelError(
            f"{name} has no row of equal blocks, which {policy.info.name} needs; a UNet takes"
            " deepcache, easycache, fixed-mask and taylorseer:level=last-block"
        )
    if policy.gate is not None and policy.gate.reduce == "per-sample":
        raise SettingError(
            f"{name} cannot run some images of a batch alone; set reduce=max or reduce=mean of"
            f" {policy.info.name}"
        )
    if policy.by_module:
        raise ModelError(
            f"the sub-modules of {name} are not forecast one by one; use"
            " taylorseer:level=last-block or deepcache"
        )


def _check_stack(root: nn.Module, policy: Policy) -> None:
    """Raises ModelError for a network without blocks, or a policy for UNets alone."""
    name = type(root).__name__
    if block_structure(root) is None and not may_have_blocks(root):
        unets = ", ".join(known_classes(lambda card: card.unet))
        raise ModelError(
            f"{name} has nothing that a cache can skip: it has no list of blocks that run one after"
            f" the other, and is no UNet that is known ({unets}); run it without a cache, in fewer"
            " steps"
        )
    if policy.unet_branch is not None:
        raise ModelError(
            f"{policy.info.name} splits a UNet, and {name} is none; use taylorseer or cg-taylor"
        )


class ModuleEngine(Engine):
    """Forecasts the outputs of sub-modules; everything between them stays true (TaylorSeer)."""

    def __init__(self, root: nn.Module, policy: Policy, ledger: CacheLedger, stack: Stack) -> None:
        super().__init__(root, policy, ledger)
        self.modules, self.idle = stack.modules, stack.idle

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
        """Stores the output of a cached module at a full call."""
        if self.active and self.state.full:
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
        super().__init__(root, policy, ledger, stack)
        self.block, self.inside = stack.blocks[-1], False
        self.forecast: Tensor | None = None

    def list_hooked(self) -> list[Part]:
        hooked = super().list_hooked()
        verified = Part(self.block.module, self.enter_block, self.leave_block)
        return [*hooked, verified] if hooked else []

    def list_skipped(self, call: CallState) -> tuple[str, ...]:
        return tuple(name for name in self.list_parts() if call.follows or not self._is_last(name))

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


FEATURE = "feature"


class UNetEngine(Engine):
    """The modules below a branch run at full calls only; those of the rim around them always."""

    def __init__(
        self, root: nn.Module, policy: Policy, ledger: CacheLedger, stack: UNetStack
    ) -> None:
        super().__init__(root, policy, ledger)
        self.stack, self.split = stack, stack.split(policy.unet_branch or 0)

    def list_parts(self) -> dict[str, nn.Module]:
        return self.split.deep

    def list_skipped(self, call: CallState) -> tuple[str, ...]:
        return tuple(self.split.deep)

    def list_hooked(self) -> list[Part]:
        deep = [Part(each, self.skip_deep) for each in self.split.deep.values()]
        return [] if self.policy.off else [*deep, Part(self.split.entry, self.run_entry)]

    def begin(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> CallState:
        call = super().begin(args, kwargs)
        if self.stack.needs_all(kwargs):
            call.full = True
        self.settle(call)
        return call

    def skip_deep(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Substitute | None:
        """Leaves out a module of the deep part at a skipped call."""
        return None if not self.active or self.state.full else Substitute(make_hollow(args, kwargs))

    def run_entry(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Arguments | None:
        """Stores the feature that enters the rim at a full call, and forecasts it at others."""
        if not self.active:
            return None
        call, x = self.state, args[0]
        stores, index = call.track.stores, call.place.index
        if call.full:
            if FEATURE not in stores:
                stores[FEATURE] = self.make_memory()
            stores[FEATURE].update(self.split.feature(x), index)
            return None
        feature = stores[FEATURE].forecast(index).to(x.dtype)
        return (self.split.join(feature, x), *args[1:]), kwargs


class Unobserved(Engine):
    """Finds and verifies the blocks by the first call; another engine then takes its place.

    give_way: puts the engine for the blocks that were found in the place of this one.
    """

    give_way: Callable[[Stack], Engine]

    def list_skipped(self, call: CallState) -> tuple[str, ...]:
        return ()

    def list_parts(self) -> dict[str, nn.Module]:
        return {}

    def list_hooked(self) -> list[Part]:
        return []

    def enter(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Raises ModelError if what the call shows cannot be skipped, or not by this policy."""
        if not self.active:
            return
        self._check_mode()
        with self.pause():  # the call is made several times, for all to see
            stack = observe(self.root, *args, **kwargs)
        self.give_way(stack).enter(args, kwargs)
