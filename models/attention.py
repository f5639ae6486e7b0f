"""The values V of self-attention, recorded in one pass over a network and put back in another.

The card of the architecture says which attention modules are tapped. A `Tape` hooks their value
projections. Two integers tell it where a run is (interval of the grid counted from the noise end,
calls left in that step), and it keeps or replaces V under (interval, stage, layer): never under a
time, so that two passes over one grid in opposite directions meet exactly.

    bytes = places * sum over layers of B * L * d * itemsize
"""

import re
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor, nn

from .architectures import architecture_of, known_classes
from .architectures.base import SelfAttention
from .errors import ModelError, SettingError, UnknownNameError
from .modules import remove_hooks, unwrap_compiled

Place = tuple[int, int]  # (interval, stage)
Key = tuple[int, int, int]  # (interval, stage, layer)
SHARE_OF_FREE = 0.25  # of a GPU's free memory, which V may take before it goes to the host


@dataclass(frozen=True)
class Projection:
    """The place where V of one layer leaves a module: the last `width` columns of its output.

    Of queries they are the first ones.
    """

    layer: int
    module: nn.Module
    width: int


def find_projections(
    module: nn.Module | None, layers: Sequence[int] | None = None
) -> tuple[Projection, ...]:
    """Returns the value projections of the tapped layers.

    layers: numbers of the self-attention modules; None for the architecture's own choice.

    Raises:
        ModelError: if the network is no module, of an unknown kind, or without self-attention.
        SettingError: for layers that it does not have.
    """
    if module is None:
        raise ModelError(
            "this network is a plain function, whose attention cannot be reached; make it with"
            " from_module from a torch module, or take an editor that needs none, such as flow-edit"
        )
    root = unwrap_compiled(module)
    attentions = find_self_attention(root)
    if not attentions:
        raise ModelError(
            f"this {type(root).__name__} has no self-attention whose values could be kept; take an"
            " editor that needs none, such as flow-edit, rf-inversion or uni-edit"
        )
    if layers is None:
        chosen = _attention_of(root).default_layers(len(attentions))
    else:
        chosen = check_layers(layers, list(attentions))
    modules = list(attentions.values())
    return tuple(find_projection(layer, modules[layer]) for layer in chosen)


def holds_text(module: nn.Module) -> bool:
    """Tells whether V of the tapped layers holds text, which both passes then need equally long.

    Raises:
        UnknownNameError: if nothing is known of its architecture.
    """
    return _attention_of(unwrap_compiled(module)).text


def find_self_attention(root: nn.Module) -> dict[str, nn.Module]:
    """Returns the self-attention modules of a network by name, in its order.

    Raises:
        UnknownNameError: if nothing is known of its architecture.
    """
    pattern = re.compile(_attention_of(root).pattern)
    return {
        name: each
        for name, each in root.named_modules()
        if pattern.fullmatch(name) and isinstance(getattr(each, "to_v", None), nn.Module)
    }


def find_projection(layer: int, attention: Any) -> Projection:
    """Returns the module that computes V: `to_v`, or `to_qkv` after fuse_qkv_projections."""
    return _find_part(layer, attention, attention.to_v)


def find_query_projection(layer: int, attention: Any) -> Projection:
    """Returns the module that computes the queries: `to_q`, or `to_qkv` as above."""
    return _find_part(layer, attention, attention.to_q)


def _find_part(layer: int, attention: Any, part: nn.Linear) -> Projection:
    fused = getattr(attention, "fused_projections", False) and hasattr(attention, "to_qkv")
    return Projection(layer, attention.to_qkv if fused else part, int(part.weight.shape[0]))


def _attention_of(root: nn.Module) -> SelfAttention:
    card = architecture_of(root)
    if card is None or card.attention is None:
        known = known_classes(lambda each: each.attention)
        raise UnknownNameError("self-attention known of the network", type(root).__name__, known)
    return card.attention


def check_layers(layers: Sequence[int], names: Sequence[str]) -> tuple[int, ...]:
    """Returns numbers of self-attention layers, which have these names, in their order.

    Raises:
        SettingError: for none, for one twice, and for one that the network does not have.
    """
    if not layers or len(set(layers)) < len(layers) or not set(layers) <= set(range(len(names))):
        shown = [f"{n} ({name})" for n, name in enumerate(names)]
        shown = shown if len(shown) <= 8 else [*shown[:4], "..", *shown[-3:]]
        raise SettingError(
            f"layers={list(layers)} must be different numbers of self-attention layers; this"
            f" network has {', '.join(shown)}"
        )
    return tuple(sorted(layers))


class ValueStorage(StrEnum):
    """The place where V waits: the network's device, (pinned) host memory, or as there is room."""

    AUTO = "auto"
    CPU = "cpu"
    DEVICE = "device"


class Mode(StrEnum):
    """The work of a tape at the places of its plan."""

    OFF = "off"
    RECORD = "record"
    REPLACE = "replace"


@dataclass
class Tape:
    """The V of one run.

    taps:   the projections whose V it handles.
    places: where it is recorded, and where it is put back.
    store:  where it is stored in between.

    values: the V recorded and not used yet; each is dropped once it has been used.
    bytes_predicted: the bytes of all places by the formula, known from the first call of each
            layer on; bytes_held: the maximum so far.
    """

    taps: Sequence[Projection]
    places: Collection[Place]
    store: ValueStorage = ValueStorage.AUTO
    mode: Mode = Mode.OFF
    place: Place | None = None
    values: dict[Key, Tensor] = field(default_factory=dict)
    recorded: set[Key] = field(default_factory=set)
    used: set[Key] = field(default_factory=set)
    bytes_predicted: int = 0
    bytes_held: int = 0
    _layers: dict[int, int] = field(default_factory=dict)

    @contextmanager
    def on(self) -> Iterator[None]:
        """Hooks the projections; afterwards removes every hook and drops all V."""
        hooks = (tap.module.register_forward_hook(self._hook(tap)) for tap in self.taps)
        try:
            with remove_hooks(hooks):
                yield
        finally:
            self.values.clear()
            self.mode = Mode.OFF

    def check(self) -> None:
        """Raises ModelError unless all that was planned was recorded, and all that was, used."""
        planned = {(*place, tap.layer) for place in self.places for tap in self.taps}
        if not planned == self.recorded == self.used:
            raise ModelError(
                f"of {len(planned)} planned V, {len(self.recorded)} were recorded and"
                f" {len(self.used)} used; compiled code sees no hooks that were put on later, and"
                " a cache skips layers: take the network without either"
            )

    def _hook(self, tap: Projection) -> Callable[[nn.Module, Any, Tensor], Tensor | None]:
        def run(module: nn.Module, args: Any, out: Tensor) -> Tensor | None:
            if self.mode is Mode.OFF or self.place is None or self.place not in self.places:
                return None
            key = (*self.place, tap.layer)
            if self.mode is Mode.RECORD:
                self._keep(key, out[..., -tap.width :])
                return None
            return _replace_values(out, self._fetch(key, out), tap)

        return run

    def _keep(self, key: Key, value: Tensor) -> None:
        self._layers.setdefault(key[-1], value.numel() * value.element_size())
        self.bytes_predicted = len(self.places) * sum(self._layers.values())
        self.values[key] = (
            _copy_to_host(value) if self._goes_to_host(value.device) else value.detach().clone()
        )
        self.recorded.add(key)
        size = sum(each.numel() * each.element_size() for each in self.values.values())
        self.bytes_held = max(self.bytes_held, size)

    def _fetch(self, key: Key, out: Tensor) -> Tensor:
        if key not in self.values:
            raise ModelError(f"no V was recorded for {key} (interval, stage, layer)")
        self.used.add(key)
        return self.values.pop(key).to(out.device, non_blocking=True)

    def _goes_to_host(self, device: torch.device) -> bool:
        """Tells whether V goes to the host."""
        if device.type == "cpu" or self.store is ValueStorage.DEVICE:
            return False
        if self.store is ValueStorage.CPU or device.type != "cuda":
            return self.store is ValueStorage.CPU
        expected = len(self.places) * len(self.taps) * max(self._layers.values())
        return expected > SHARE_OF_FREE * torch.cuda.mem_get_info(device)[0]


def _copy_to_host(value: Tensor) -> Tensor:
    """Copies to pinned memory while the device goes on; the same stream reads it back later."""
    copy = torch.empty(value.shape, dtype=value.dtype, pin_memory=value.device.type == "cuda")
    return copy.copy_(value.detach(), non_blocking=True)


def _replace_values(out: Tensor, recorded: Tensor, tap: Projection) -> Tensor:
    """Returns the output with V replaced, in the rows of further branches of the batch too."""
    rows, *rest = recorded.shape
    if out.shape[1:-1] != recorded.shape[1:-1] or len(out) % rows:
        raise SettingError(
            f"V was recorded for {rows} rows of {rest[0]} tokens, and the edit has {len(out)} rows"
            f" of {out.shape[1]}: both passes need the same images and prompts of one length; pad"
            " the shorter prompt to the longer"
        )
    value = recorded.repeat(len(out) // rows, *[1] * len(rest)).to(out.dtype)
    return value if out.shape[-1] == tap.width else torch.cat([out[..., : -tap.width], value], -1)
