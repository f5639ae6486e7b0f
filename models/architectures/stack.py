"""A live transformer, held against what its card says: blocks in a row, then a head.

A cache skips blocks. For that it must know which modules are the blocks, in which order they run,
where the image is in what a block takes and returns, and what the head reads. `BlockStructure` says
so as data; `describe` finds it in a live network and gives a `Stack` whose blocks share one
form of state: `State(image, text)`.
"""

import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import ModelError
from ..modules import unwrap_compiled
from . import architecture_of, known_classes
from .base import IMAGE, TEXT, BlockGroup, BlockStructure


class State(NamedTuple):
    """The tensors that flow from block to block.

    image: (B, L, d) tokens that the head reads.
    text:  (B, T, d) tokens that run along; None where there are none, or the block drops them.
    """

    image: Tensor
    text: Tensor | None = None


@dataclass(frozen=True)
class LiveBlock:
    """One block of a live network.

    name:       its full name, such as "transformer_blocks.0".
    module:     the block.
    group:      the list it comes from.
    parameters: names of its forward arguments, in their order.
    """

    name: str
    module: nn.Module
    group: BlockGroup
    parameters: tuple[str, ...]

    def call(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the arguments of one call by name, without those left to their default."""
        return {**dict(zip(self.parameters, args, strict=False)), **kwargs}

    def find_streams(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Tensor, ...]:
        """Returns the streams of a call, in the order in which the block returns them."""
        call = self.call(args, kwargs)
        return tuple(call[stream] for stream in self.group.returns)

    def pass_through(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Returns the inputs of the block laid out as its output, as if it did nothing."""
        return self._pack(self.find_streams(args, kwargs))

    def read_input(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], text_rows: int = 0
    ) -> State:
        """Returns the state before the block. text_rows: see `Stack.text_rows`."""
        return self._split(self.find_streams(args, kwargs), text_rows)

    def read_output(self, output: Any, text_rows: int = 0) -> State:
        """Returns the state after the block from its output."""
        return self._split(output if isinstance(output, tuple) else (output,), text_rows)

    def lay_out(self, state: State) -> Any:
        """Lays a state out as this block returns it; the inverse of `read_output`."""
        if self.group.joint:
            rows = (state.text, state.image)
            ordered = rows if self.group.joint == "first" else rows[::-1]
            return torch.cat([each for each in ordered if each is not None], dim=1)
        named = {self.group.image: state.image, self.group.text: state.text}
        return self._pack(tuple(named[stream] for stream in self.group.returns))

    def _pack(self, streams: tuple[Any, ...]) -> Any:
        return streams if len(self.group.returns) > 1 else streams[0]

    def _split(self, streams: tuple[Any, ...], text_rows: int) -> State:
        named = dict(zip(self.group.returns, streams, strict=True))
        image, text = named[self.group.image], named.get(self.group.text)
        if self.group.joint == "first":
            text, image = image[:, :text_rows], image[:, text_rows:]
        elif self.group.joint == "last":
            rows = image.shape[1] - text_rows
            image, text = image[:, :rows], image[:, rows:]
        return State(image, text)


@dataclass(frozen=True)
class Stack:
    """A live network, taken apart into blocks.

    root:      the network.
    structure: the facts about its blocks.
    blocks:    all blocks in the order they run.
    """

    root: nn.Module
    structure: BlockStructure
    blocks: tuple[LiveBlock, ...]

    @cached_property
    def modules(self) -> dict[str, nn.Module]:
        """The sub-modules that a module-level cache forecasts, by name; at least one.

        Raises:
            ModelError: if none are known, or its patterns match none here.
        """
        modules = _match_modules(self.root, self.structure.modules)
        if not modules:
            patterns = ", ".join(self.structure.modules) or "any (none are known for it)"
            raise ModelError(
                f"{type(self.root).__name__} has no sub-module that matches {patterns}; "
                "use a cache of whole blocks, such as taylorseer:level=last-block or cg-taylor"
            )
        return modules

    @cached_property
    def idle(self) -> dict[str, nn.Module]:
        """The sub-modules that need not run when the cached ones are forecast, by name."""
        return _match_modules(self.root, self.structure.idle)

    def text_rows(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> int:
        """Counts the text rows of a joint group, from the arguments of the first block."""
        first = self.blocks[0]
        if not any(group.joint for group in self.structure.groups):
            return 0
        return int(first.call(args, kwargs)[first.group.text].shape[1])

    @property
    def signal_module(self) -> nn.Module | None:
        """The module whose output is TeaCache's signal; None if it is no module's output."""
        path = self.structure.signal
        return self.root.get_submodule(path) if isinstance(path, str) else None

    def signal(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
        """Computes TeaCache's signal from the arguments of the first block's call.

        Raises:
            ModelError: if none is known; `signal_module` may give it then.
        """
        modulate, first = self.structure.signal, self.blocks[0]
        if modulate is None or isinstance(modulate, str):
            raise ModelError(f"no modulated input is known for {type(self.root).__name__}")
        return modulate(first.module, first.call(args, kwargs))


def describe(module: nn.Module, structure: BlockStructure | None = None) -> Stack:
    """Returns the stack of blocks of a live network.

    Args:
        module: a diffusers transformer, compiled or not.
        structure: what it is made of; None takes what the card of its class says.

    Raises:
        ModelError: if that is not known, or the network lacks one of these lists of blocks.
    """
    root = unwrap_compiled(module)
    structure = structure or block_structure(root)
    if structure is None:
        card = architecture_of(root)
        raise ModelError(
            _explain_unet(root) if card is not None and card.unet else _explain_unknown(root)
        )
    blocks = tuple(block for group in structure.groups for block in _find_blocks(root, group))
    if not blocks:
        paths = " and ".join(group.path for group in structure.groups)
        raise ModelError(f"{type(root).__name__} has no block in {paths}; {_name_lists(root)}")
    return Stack(root, structure, blocks)


def block_structure(module: nn.Module) -> BlockStructure | None:
    """Returns the block structure on the card of a network's class; None if there is none."""
    card = architecture_of(module)
    return None if card is None else card.blocks


def make_blank(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Makes the output of an idle module: its streams at width zero, which cost nothing to join.

    A tensor for one stream, a pair (image, text) if the call brings both.
    """
    image = kwargs[IMAGE] if IMAGE in kwargs else args[0]
    text = kwargs.get(TEXT)
    return image[..., :0] if text is None else (image[..., :0], text[..., :0])


def _match_modules(root: nn.Module, patterns: tuple[str, ...]) -> dict[str, nn.Module]:
    whole = re.compile("|".join(f"(?:{pattern})" for pattern in patterns) or "(?!)")
    return {name: each for name, each in root.named_modules() if whole.fullmatch(name)}


def _find_blocks(root: nn.Module, group: BlockGroup) -> list[LiveBlock]:
    members = dict(root.named_modules()).get(group.path)
    if not isinstance(members, nn.ModuleList):
        raise ModelError(
            f"{type(root).__name__} has no list of blocks {group.path!r}; {_name_lists(root)}"
        )
    return [
        LiveBlock(f"{group.path}.{k}", each, group, list_parameters(each))
        for k, each in enumerate(members)
    ]


def list_parameters(module: nn.Module) -> tuple[str, ...]:
    """Names the forward arguments of a module's class; hooks may have wrapped its own."""
    return tuple(inspect.signature(type(unwrap_compiled(module)).forward).parameters)[1:]


def _explain_unknown(root: nn.Module) -> str:
    known = ", ".join(known_classes(lambda card: card.blocks))
    return (
        f"no block structure is known for {type(root).__name__}; known: {known}; "
        "caching(network, policy) finds and verifies it by the first call, and"
        " observe(network, **inputs) shows what that finds"
    )


def _explain_unet(root: nn.Module) -> str:
    return (
        f"{type(root).__name__} is a UNet: its blocks are not one stack that can be skipped as a"
        " whole; use deepcache or fixed-mask, which split it into a deep and a shallow part"
    )


def _name_lists(root: nn.Module) -> str:
    names = [n for n, each in root.named_modules() if isinstance(each, nn.ModuleList) and n]
    return f"its lists of modules are: {', '.join(names[:8]) or 'none'}"
