"""The engines for each kind of network but a stack of blocks, and the choice among all of them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from ..architectures import known_classes
from ..architectures.base import BlockStructure
from ..architectures.discover import may_have_blocks, observe
from ..architectures.stack import Stack, block_structure, describe
from ..errors import ModelError, SettingError
from ..ledger import CacheLedger
from .base import Policy
from .calls import Arguments, CallState, Part, Substitute
from .engine import Engine
from .module_engine import AttentionEngine, ModuleEngine, VerifiedEngine, find_attention
from .pab import AttentionPolicy
from .stack_engine import StackEngine
from .unet import UNetStack, describe_unet, is_unet, make_hollow


def make_engine(root: nn.Module, policy: Policy, ledger: CacheLedger) -> Engine:
    """Makes the engine for a policy on a network.

    Raises:
        ModelError: if the network is of a kind that the policy cannot skip.
    """
    settings = policy.fit_to(root)
    if isinstance(settings, AttentionPolicy):
        _check_attention(root, settings)
        return AttentionEngine(root, settings, ledger)
    if is_unet(root):
        unet = describe_unet(root)
        _check_unet(root, settings)
        return _check_parts(UNetEngine(root, settings, ledger, unet))
    _check_stack(root, settings)
    if block_structure(root) is None:
        return Unobserved(root, settings, ledger)
    return make_stack_engine(describe(root), settings, ledger)


def make_stack_engine(stack: Stack, policy: Policy, ledger: CacheLedger) -> Engine:
    """Makes the engine for a policy on a stack of blocks."""
    if not policy.by_module:
        return _check_parts(StackEngine(stack.root, policy, ledger, stack))
    if policy.gate is not None and policy.gate.reads == "block":
        return VerifiedEngine(stack.root, policy, ledger, stack)
    return _check_parts(ModuleEngine(stack.root, policy, ledger, stack.modules, stack.idle))


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
            f" the other, and is not a UNet that is known ({unets}); {_advise(root)}"
        )
    if policy.unet_branch is not None:
        raise ModelError(
            f"{policy.info.name} splits a UNet, and {name} is none; use taylorseer or cg-taylor"
        )


def _check_attention(root: nn.Module, policy: AttentionPolicy) -> None:
    """Raises ModelError for a network without the kinds of attention that a policy skips."""
    name, cache = type(root).__name__, policy.info.name
    there = sorted({kind for kind, _ in find_attention(root).values()})
    if policy.off or set(policy.kinds) & set(there):
        return
    if there:
        raise ModelError(
            f"{name} has {' and '.join(there)} attention, and {cache} is set to skip"
            f" {' and '.join(policy.kinds)} attention; set {there[0]}=2"
        )
    other = "deepcache" if is_unet(root) else "taylorseer:level=last-block"
    skippable = is_unet(root) or block_structure(root) is not None or may_have_blocks(root)
    advice = f"take {other}, which skips whole blocks" if skippable else _advise(root)
    raise ModelError(f"{name} has no attention, whose output {cache} would reuse; {advice}")


def _advise(root: nn.Module) -> str:
    """Returns the remedy for a network whose blocks cannot be skipped."""
    if find_attention(root):
        return "take pab, which reuses its attention, or fewer steps"
    return "run it without a cache, in fewer steps"


FEATURE = "feature"


class UNetEngine(Engine):
    """The modules below a branch run at full calls only; those of the rim around them always."""

    def __init__(
        self, root: nn.Module, policy: Policy, ledger: CacheLedger, stack: UNetStack
    ) -> None:
        super().__init__(root, policy, ledger)
        self.stack, self.split = stack, stack.split(policy.unet_branch or 0)

    @property
    def may_save_little(self) -> bool:
        return True

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


OBSERVED: WeakKeyDictionary[nn.Module, dict[frozenset[Any], BlockStructure]] = WeakKeyDictionary()


class Unobserved(Engine):
    """Finds and verifies the blocks by the first call; another engine then takes its place.

    What was found is remembered for calls of the network that are given the same.

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
        seen, call = OBSERVED.setdefault(self.root, {}), _name_given(args, kwargs)
        if call not in seen:
            seen[call] = self._observe(args, kwargs).structure
        self.give_way(describe(self.root, seen[call])).enter(args, kwargs)

    def _observe(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Stack:
        try:
            with self.pause():  # the call is made several times, for all to see
                return observe(self.root, *args, **kwargs)
        except ModelError as error:
            raise ModelError(f"{error}; {_advise(self.root)}") from error


def _name_given(args: Sequence[Any], kwargs: Mapping[str, Any]) -> frozenset[Any]:
    """Names what a call is given, also inside options: a network may run other parts for more."""
    given: set[Any] = {name for name, value in kwargs.items() if value is not None}
    given |= {n for n, value in enumerate(args) if value is not None}
    options = (value for value in (*args, *kwargs.values()) if isinstance(value, Mapping))
    return frozenset(given.union(*options))
