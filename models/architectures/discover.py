"""The block structure of an unknown transformer: found by running it, proved by running it again.

One example call is watched: in which order the members of its module lists run, and which outputs
are, as the same tensor, an argument of the next block. Then the claim that a cache rests on is
tried: run no block, pass the state through all of them, put the recorded last state in at the end.
If the output is the full network's to the bit, nothing but that state reaches the head.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ModelError
from ..modules import remove_hooks, unwrap_compiled
from .base import BlockGroup, BlockStructure
from .replay import Replay, Visit, list_tensors
from .stack import Stack, describe, list_parameters

CACHED = r"(?!act_|.*norm)((\w+_)?(attn|attention)\w*|ff|ffn|ff_\w+|(\w+_)?mlp|feed_forward\w*)"


@dataclass(frozen=True)
class ListRun:
    """The calls of all members of one list, in order."""

    group: BlockGroup
    visits: tuple[Visit, ...]


def observe(module: nn.Module, *args: Any, **kwargs: Any) -> Stack:
    """Finds the blocks of a transformer that no card describes, from one example call of it.

    Args:
        module: the network, in eval mode, before torch.compile.
        args, kwargs: any valid call; it is made three to five times.

    Raises:
        ModelError: if no list of blocks can be skipped as a whole; it says what was seen.
    """
    root = unwrap_compiled(module)
    if root.training:
        raise ModelError("cannot observe a network in training mode; call .eval() on it first")
    visits, full = _watch(root, args, kwargs)
    chains = _join_chains(_find_runs(visits))
    if not chains:
        raise ModelError(
            f"{_name_failure(root)}: no list of blocks hands its state from one to the next"
        )
    chain = max(chains, key=lambda each: _count_parameters(root, each))
    _check_rows(root, chain, full)
    replay = Replay(
        [visit for run in chain for visit in run.visits], full, lambda: root(*args, **kwargs)
    )
    for structure in _list_readings(root, chain):
        stack = describe(root, structure)
        if replay.holds(stack, tail=0):
            chained = len(stack.blocks) < 3 or replay.holds(stack, tail=len(stack.blocks) // 2)
            stack = replace(stack, structure=replace(structure, chained=chained))
            return _add_modules(stack, replay)
    paths = " and ".join(run.group.path for run in chain)
    raise ModelError(
        f"{_name_failure(root)}: what leaves the last block of {paths} is not all that its output"
        " depends on, so its blocks cannot be skipped as a whole"
    )


def may_have_blocks(module: nn.Module) -> bool:
    """Tells whether a network has lists of modules that may be blocks, and is no UNet."""
    return not hasattr(module, "up_blocks") and bool(_find_outer_lists(module))


def _check_rows(root: nn.Module, chain: list[ListRun], full: list[Tensor]) -> None:
    """Raises ModelError unless rows are samples: gates look at each, and batches may shrink."""
    rows = next(each.shape[0] for each in chain[-1].visits[-1].outputs if each is not None)
    if rows not in (len(full), full[0].shape[0]):
        raise ModelError(
            f"{_name_failure(root)}: its blocks take {rows} rows for {full[0].shape[0]} samples"
        )


def _name_failure(root: nn.Module) -> str:
    return f"no cache for {type(root).__name__}"


def _watch(
    root: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[list[Visit], list[Tensor]]:
    """Records all calls of members of lists, in order, and returns them with the output."""
    visits: list[Visit] = []
    starts: dict[str, dict[str, Any]] = {}

    def look(path: str) -> Callable[..., None]:
        def see(member: nn.Module, given: tuple[Any, ...], named: Any) -> None:
            call = _name_arguments(member, given, named)
            starts[path] = {n: v.clone() for n, v in call.items() if isinstance(v, Tensor)}

        return see

    def listener(path: str, index: int) -> Callable[..., None]:
        def hear(member: nn.Module, given: tuple[Any, ...], named: Any, out: Any) -> None:
            call = _name_arguments(member, given, named)
            outputs = out if isinstance(out, tuple) else (out,)
            visits.append(Visit(path, index, call, outputs, starts.get(path, {})))

        return hear

    lists = _find_outer_lists(root)
    before = (
        members[0].register_forward_pre_hook(look(path), with_kwargs=True)
        for path, members in lists
        if len(members)
    )
    hooks = (
        member.register_forward_hook(listener(path, k), with_kwargs=True)
        for path, members in lists
        for k, member in enumerate(members)
    )
    with remove_hooks(before), remove_hooks(hooks), torch.no_grad():
        return visits, list_tensors(root(*args, **kwargs))


def _name_arguments(
    member: nn.Module, given: Sequence[Any], named: Mapping[str, Any]
) -> dict[str, Any]:
    return {**dict(zip(list_parameters(member), given, strict=False)), **named}


def _find_outer_lists(root: nn.Module) -> list[tuple[str, nn.ModuleList]]:
    """Returns the module lists that are not inside a member of another one."""
    lists: list[tuple[str, nn.ModuleList]] = []
    for name, each in root.named_modules():
        inside = any(name.startswith(f"{path}.") for path, _ in lists)
        if isinstance(each, nn.ModuleList) and not inside:
            lists.append((name, each))
    return lists


def _find_runs(visits: list[Visit]) -> list[ListRun]:
    """Returns the lists whose members ran once each, in a row, and passed on their outputs."""
    by_path: dict[str, list[Visit]] = {}
    for visit in visits:
        by_path.setdefault(visit.path, []).append(visit)
    runs = []
    for path, members in by_path.items():
        start = visits.index(members[0])
        in_a_row = visits[start : start + len(members)] == members
        once = [visit.index for visit in members] == list(range(len(members)))
        streams = _find_streams(members) if in_a_row and once else ()
        if streams:
            runs.append(ListRun(BlockGroup(path, streams), tuple(members)))
    return runs


def _find_streams(visits: Sequence[Visit]) -> tuple[str, ...]:
    """Names the argument by which each output enters the next block; () if one enters by none."""
    if len(visits) < 2:
        return ()
    names = [
        tuple(_find_entry(after.call, out) for out in before.outputs)
        for before, after in pairwise(visits)
    ]
    alike = len(set(names)) == 1 and len(visits[-1].outputs) == len(names[0])
    known = all(name in visit.call for visit in visits for name in names[0])
    return names[0] if alike and known else ()


def _find_entry(call: Mapping[str, Any], out: Any) -> str:
    return next((name for name, value in call.items() if value is out and out is not None), "")


def _join_chains(runs: list[ListRun]) -> list[list[ListRun]]:
    """Joins runs to their successor where that takes their outputs."""
    chains: list[list[ListRun]] = []
    for run in runs:
        linked = _link(chains[-1][-1], run) if chains else None
        if linked is None:
            chains.append([run])
        else:
            chains[-1].append(linked)
    return chains


def _link(before: ListRun, after: ListRun) -> ListRun | None:
    """Returns `after` if it takes the state of `before`, as it is or with image and text joined."""
    outputs = dict(zip(before.group.returns, before.visits[-1].outputs, strict=True))
    taken = [after.visits[0].call[name] for name in after.group.returns]
    if len(taken) == len(outputs) and all(
        any(each is out for out in outputs.values()) for each in taken
    ):
        return after
    if len(taken) == 1 and len(outputs) == 2:
        start = after.visits[0].start.get(after.group.returns[0])
        for joint in ("first", "last"):
            if any(_is_cat(start, pair) for pair in _list_pairs(outputs, joint)):
                return replace(after, group=replace(after.group, joint=joint))
    return None


def _list_pairs(outputs: Mapping[str, Any], joint: str) -> Iterator[tuple[Any, Any]]:
    names = _sort_streams(tuple(outputs))
    image, text = outputs[names[0]], outputs[names[1]]
    yield (text, image) if joint == "first" else (image, text)


def _is_cat(whole: Any, parts: tuple[Any, Any]) -> bool:
    if not all(isinstance(each, Tensor) for each in parts) or not isinstance(whole, Tensor):
        return False
    rows = sum(each.shape[1] for each in parts)
    return whole.shape[1] == rows and torch.equal(whole, torch.cat(parts, dim=1))


def _sort_streams(streams: tuple[str, ...]) -> list[str]:
    """Sorts streams, the likeliest image first: not called text, context or encoder."""
    words = ("encoder", "text", "txt", "context", "cap", "audio")
    return sorted(streams, key=lambda name: any(word in name for word in words))


def _count_parameters(root: nn.Module, chain: list[ListRun]) -> int:
    lists = [root.get_submodule(run.group.path) for run in chain]
    return sum(parameter.numel() for each in lists for parameter in each.parameters())


def _list_readings(root: nn.Module, chain: list[ListRun]) -> Iterator[BlockStructure]:
    """Yields the chain as a structure, once for each of two streams that the image may be."""
    first = chain[0].group.returns
    if len(first) > 2:
        raise ModelError(
            f"{_name_failure(root)}: its blocks return {len(first)} streams, at most 2 can be"
        )
    likeliest, *others = _sort_streams(first)
    yield BlockStructure(tuple(_name_streams(run.group, likeliest) for run in chain))
    for image in others:
        groups = (_name_streams(_swap_ends(run.group), image) for run in chain)
        yield BlockStructure(tuple(groups))


def _swap_ends(group: BlockGroup) -> BlockGroup:
    """Returns the group with the text at the other end, where it was taken for the image."""
    return replace(group, joint={"first": "last", "last": "first", "": ""}[group.joint])


def _name_streams(group: BlockGroup, image: str) -> BlockGroup:
    """Returns the group with image and text named; a list of other names has its own image."""
    mine = image if image in group.returns else _sort_streams(group.returns)[0]
    text = next((name for name in group.returns if name != mine), group.text)
    return replace(group, image=mine, text=text)


def _add_modules(stack: Stack, replay: Replay) -> Stack:
    """Adds the usual attention and MLP modules to a stack: those that run once in each call."""
    modules = {
        f"{block.name}.{name}": module
        for block in stack.blocks
        for name, module in block.module.named_children()
        if re.fullmatch(CACHED, name)
    }
    ran: Counter[nn.Module] = Counter()

    def count(module: nn.Module, *_: Any) -> None:
        ran[module] += 1

    hooks = (each.register_forward_hook(count) for each in modules.values())
    with remove_hooks(hooks), torch.no_grad():
        replay.call()
    once = tuple(re.escape(name) for name, each in modules.items() if ran[each] == 1)
    return replace(stack, structure=replace(stack.structure, modules=once))
