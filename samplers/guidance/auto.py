"""Autoguidance: away from a worse network under the same condition (arXiv:2406.02507)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, ClassVar

import torch
from pydantic import BeforeValidator, InstanceOf
from torch import Tensor

from ...models.denoiser import Ask, Branch, Network
from ...models.errors import SettingError
from ...models.load import load
from ...models.schedule import TimeGrid, process_of
from .base import Guide, Moment, Setup, register
from .settings import Scaled

WEAK = (Ask(Branch.WEAK), Ask(Branch.COND))


def _check_network(given: Any) -> Any:
    if not isinstance(given, str | Network):
        raise ValueError("it takes a Network, or a name or folder as load takes it")
    return given


@register
@dataclass(frozen=True)
class AutoGuidance(Scaled):
    """x0 = weak + scale (strong - weak), both under the condition.

    scale:   1 is off; the paper has about 2.
    network: the weaker one, smaller or trained less, on the same data and noise process: a
             `Network`, or a name or folder as `load` takes it. It needs no unconditional branch.

    The ledger counts a row of either network as one.
    """

    name: ClassVar[str] = "auto"
    source: ClassVar[str] = "arXiv:2406.02507"

    network: Annotated[str | InstanceOf[Network], BeforeValidator(_check_network)]

    def needs(self, grid: TimeGrid) -> set[Branch]:
        return {Branch.COND}

    def check(self, setup: Setup) -> None:
        if not self.off:
            _check_alike(setup.network, self._load_second(setup.network))

    def networks(self, main: Network) -> Mapping[Branch, Network]:
        return {} if self.off else {Branch.WEAK: self._load_second(main)}

    def guide(self, setup: Setup) -> Guide:
        return AutoGuide(self.scale)

    def _load_second(self, main: Network) -> Network:
        if isinstance(self.network, Network):
            return self.network
        return _load(self.network, _read_dtype(main), str(main.device))


@dataclass(frozen=True)
class AutoGuide(Guide):
    """CFG with the weak network's answer in place of u."""

    scale: float

    def ask(self, moment: Moment) -> tuple[Ask, ...]:
        return WEAK

    def combine(self, outputs: Sequence[Tensor], x: Tensor, moment: Moment) -> Tensor:
        weak, strong = outputs
        return torch.lerp(weak, strong, self.scale)


@lru_cache(maxsize=1)
def _load(name: str, dtype: torch.dtype | None, device: str) -> Network:
    return load(name, dtype=dtype, device=device)


def _read_dtype(network: Network) -> torch.dtype | None:
    if network.module is None:
        return None
    return next((each.dtype for each in network.module.parameters()), None)


def _check_alike(strong: Network, weak: Network) -> None:
    facts = {
        "shape": (strong.shape, weak.shape),
        "number of classes": (strong.num_classes, weak.num_classes),
        "noise process": _describe_processes(strong, weak),
    }
    for what, (mine, theirs) in facts.items():
        if mine != theirs:
            raise SettingError(
                f"autoguidance takes two networks of one {what}: {strong.name} has {mine},"
                f" {weak.name} {theirs}; take a smaller or earlier version of {strong.name}"
            )


def _describe_processes(strong: Network, weak: Network) -> tuple[Any, Any]:
    """Returns their families; of one family, the parameters that differ."""
    mine, theirs = process_of(strong.schedule), process_of(weak.schedule)
    if mine["family"] != theirs["family"]:
        return mine["family"], theirs["family"]
    a, b = mine["params"], theirs["params"]
    names = [name for name in a if a[name] != b[name]]
    return {name: a[name] for name in names}, {name: b[name] for name in names}
