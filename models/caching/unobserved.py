"""A cache on a network whose blocks no card describes: its first call shows them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from ..architectures.discover import observe
from ..architectures.stack import Stack
from .call_state import CallState, Part
from .engine import Engine


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
        self.active = False  # the call is made several times, for all to see
        try:
            stack = observe(self.root, *args, **kwargs)
        finally:
            self.active = True
        self.give_way(stack).enter(args, kwargs)
