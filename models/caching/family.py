"""What a network is made of, as a cache sees it: blocks in a row, then a head.

A cache skips blocks. For that it must know which modules are the blocks, in which order they run,
where the image is in what a block takes and returns, and what the head reads. `Family` says so as
data, one value per architecture (`families.py`); `describe` holds it against a live network and
gives a `Stack` whose blocks speak one language: `State(image, text)`.
"""

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import ModelError
from ..modules import uncompiled

IMAGE = "hidden_states"
TEXT = "encoder_hidden_states"

Call = Mapping[str, Any]
Modulate = Callable[[Any, Call], Tensor]


class State(NamedTuple):
    """What flows from block to block.

    image: (B, L, d) tokens that the head reads.
    text:  (B, T, d) tokens that run along; None where there are none, or the block drops them.
    """

    image: Tensor
    text: Tensor | None = None


@dataclass(frozen=True)
class BlockGroup:
    """One ModuleList of blocks that run one after the other.

    path:    its name in the network, such as "transformer_blocks".
    returns: the streams that a block returns, in that order; of one alone it returns a tensor, of
             several a tuple. A stream has the name of the block's argument that takes it.
    joint:   where the image stream carries the text too: "" (nowhere), "first" (text rows, then
             image rows) or "last". Only where an earlier group has both apart; a network whose
             every block sees the joint rows has one stream and no text.
    image:   the stream of the image.
    text:    the stream of the text.
    """

    path: str
    returns: tuple[str, ...] = (IMAGE,)
    joint: str = ""
    image: str = IMAGE
    text: str = TEXT


@dataclass(frozen=True)
class Family:
    """An architecture.

    classes: names of the diffusers classes (or of their subclasses) that it stands for.
    groups:  the block lists in the order they run; the head begins after the last one.
    modules: patterns (`re.fullmatch` on the full name) of the sub-modules whose output TaylorSeer
             caches: before the gate and the residual addition (arXiv:2503.06923).
    idle:    patterns of sub-modules whose output feeds nothing but a cached module; when that one
             is forecast they need not run. `blank` is what they return then.
    signal:  where TeaCache looks (arXiv:2411.19108): the name of a module that runs before the
             blocks and whose output it is, or a function of the first block and its call; None if
             unknown.
    chained: whether a block reads nothing of the other blocks but the state that the one before
             returns. If not (long skips, as in HunyuanDiT), no block may run after a skipped one.
    """

    classes: tuple[str, ...]
    groups: tuple[BlockGroup, ...]
    modules: tuple[str, ...] = ()
    idle: tuple[str, ...] = ()
    signal: str | Modulate | None = None
    chained: bool = True

    @property
    def name(self) -> str:
        return self.classes[0]


@dataclass(frozen=True)
class Block:
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
        """The arguments of one call by name; those left to their default are not there."""
        return {**dict(zip(self.parameters, args, strict=False)), **kwargs}

    def takes(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Tensor, ...]:
        """The streams that a call brings, in the order in which the block returns them."""
        call = self.call(args, kwargs)
        return tuple(call[stream] for stream in self.group.returns)

    def pass_through(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """What the block would return if it did nothing: its inputs, laid out as its output."""
        return self._pack(self.takes(args, kwargs))

    def entering(self, args: Sequence[Any], kwargs: Mapping[str, Any], text_rows: int = 0) -> State:
        """The state before the block. text_rows: see `Stack.text_rows`."""
        return self._split(self.takes(args, kwargs), text_rows)

    def leaving(self, output: Any, text_rows: int = 0) -> State:
        """The state after the block, of what it returned."""
        return self._split(output if isinstance(output, tuple) else (output,), text_rows)

    def layout(self, state: State) -> Any:
        """A state in the form in which this block returns it; the inverse of `leaving`."""
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
    """A live network, resolved.

    root:   the network.
    family: what it was recognised as.
    blocks: all blocks in the order they run.
    """

    root: nn.Module
    family: Family
    blocks: tuple[Block, ...]

    @cached_property
    def modules(self) -> dict[str, nn.Module]:
        """The sub-modules that a module-level cache forecasts, by name; at least one.

        Raises:
            ModelError: if the family names none, or its patterns match none here.
        """
        found = _matching(self.root, self.family.modules)
        if not found:
            patterns = ", ".join(self.family.modules) or "any (none are known for it)"
            raise ModelError(
                f"{type(self.root).__name__} has no sub-module that matches {patterns}; "
                "use a cache of whole blocks, such as taylorseer:level=last-block or cg-taylor"
            )
        return found

    @cached_property
    def idle(self) -> dict[str, nn.Module]:
        """The sub-modules that need not run when the cached ones are forecast, by name."""
        return _matching(self.root, self.family.idle)

    def text_rows(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> int:
        """How many text rows a joint group carries, from the arguments of the first block."""
        first = self.blocks[0]
        if not any(group.joint for group in self.family.groups):
            return 0
        return int(first.call(args, kwargs)[first.group.text].shape[1])

    @property
    def signal_module(self) -> nn.Module | None:
        """The module whose output is TeaCache's signal, if the family names one."""
        path = self.family.signal
        return self.root.get_submodule(path) if isinstance(path, str) else None

    def signal(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
        """TeaCache's signal, computed from the arguments of the first block's call.

        Raises:
            ModelError: if the family has none; `signal_module` may give it then.
        """
        modulate, first = self.family.signal, self.blocks[0]
        if modulate is None or isinstance(modulate, str):
            raise ModelError(f"no modulated input is known for {type(self.root).__name__}")
        return modulate(first.module, first.call(args, kwargs))


def describe(module: nn.Module, family: Family | None = None) -> Stack:
    """The stack of blocks of a live network.

    Args:
        module: a diffusers transformer, compiled or not.
        family: what it is; None looks its class up in `families()`.

    Raises:
        ModelError: if the class is not known, or the network lacks a block list of its family.
    """
    root = uncompiled(module)
    family = family or known_family(root)
    if family is None:
        raise ModelError(_unet(root) if hasattr(root, "up_blocks") else _unknown(root))
    blocks = tuple(block for group in family.groups for block in _blocks(root, group))
    if not blocks:
        paths = " and ".join(group.path for group in family.groups)
        raise ModelError(f"{type(root).__name__} has no block in {paths}; {_lists(root)}")
    return Stack(root, family, blocks)


def known_family(module: nn.Module) -> Family | None:
    """The family that lists the class of a network or one of its bases; None if none does."""
    from .families import families

    bases = [base.__name__ for base in type(uncompiled(module)).__mro__]
    found = {name: each for each in families() for name in each.classes}
    return next((found[name] for name in bases if name in found), None)


def blank(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """What an idle module returns: its streams at width zero, which cost nothing to concatenate.

    A tensor for one stream, a pair (image, text) if the call brings both.
    """
    image = kwargs[IMAGE] if IMAGE in kwargs else args[0]
    text = kwargs.get(TEXT)
    return image[..., :0] if text is None else (image[..., :0], text[..., :0])


def _matching(root: nn.Module, patterns: tuple[str, ...]) -> dict[str, nn.Module]:
    whole = re.compile("|".join(f"(?:{pattern})" for pattern in patterns) or "(?!)")
    return {name: each for name, each in root.named_modules() if whole.fullmatch(name)}


def _blocks(root: nn.Module, group: BlockGroup) -> list[Block]:
    held = dict(root.named_modules()).get(group.path)
    if not isinstance(held, nn.ModuleList):
        raise ModelError(
            f"{type(root).__name__} has no list of blocks {group.path!r}; {_lists(root)}"
        )
    return [
        Block(f"{group.path}.{k}", each, group, parameters(each)) for k, each in enumerate(held)
    ]


def parameters(module: nn.Module) -> tuple[str, ...]:
    """Names of the forward arguments of a module; of its class, as hooks may have wrapped it."""
    return tuple(inspect.signature(type(uncompiled(module)).forward).parameters)[1:]


def _unknown(root: nn.Module) -> str:
    from .families import families

    known = ", ".join(sorted(name for each in families() for name in each.classes))
    return (
        f"no block structure is known for {type(root).__name__}; known: {known}; "
        "caching(network, policy) finds and verifies it by the first call, and"
        " observe(network, **inputs) shows what that finds"
    )


def _unet(root: nn.Module) -> str:
    return (
        f"{type(root).__name__} is a UNet: its blocks are not one stack that can be skipped as a"
        " whole; use deepcache or fixed-mask, which split it into a deep and a shallow part"
    )


def _lists(root: nn.Module) -> str:
    found = [n for n, each in root.named_modules() if isinstance(each, nn.ModuleList) and n]
    return f"its lists of modules are: {', '.join(found[:8]) or 'none'}"
