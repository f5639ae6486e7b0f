"""Skips the deep part of a UNet and forecasts what comes up from it (DeepCache)."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from ..ledger import CacheLedger
from .base import StackPolicy
from .call_state import Arguments, CallState, Part, Substitute
from .engine import Engine
from .forecast import FiniteDifferences
from .unet import UNetStack, make_hollow

FEATURE = "feature"


class UNetEngine(Engine):
    """The modules below a branch run at full calls only; those of the rim around them always."""

    def __init__(
        self, root: nn.Module, policy: StackPolicy, ledger: CacheLedger, stack: UNetStack
    ) -> None:
        super().__init__(root, policy, ledger)
        self.stack, self.order = stack, policy.keep.order
        self.split = stack.split(getattr(policy, "branch", 0))

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

    def finish(self, call: CallState) -> None:
        if call.full:
            call.track.last = [call.place.index]
        super().finish(call)

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
                stores[FEATURE] = FiniteDifferences(self.order)
            stores[FEATURE].update(self.split.feature(x), index)
            return None
        feature = stores[FEATURE].forecast(index).to(x.dtype)
        return (self.split.join(feature, x), *args[1:]), kwargs
