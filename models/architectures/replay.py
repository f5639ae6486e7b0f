"""An example call of a network, made again with its blocks replaced."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .stack import LiveBlock, Stack, State


@dataclass(frozen=True, eq=False)
class Visit:
    """One call of one member of a module list.

    start: copies of the tensors that entered the list, as a block may change them in place.
    """

    path: str
    index: int
    call: dict[str, Any]
    outputs: tuple[Any, ...]
    start: dict[str, Tensor]


@dataclass(frozen=True)
class Replay:
    """The example call again, with blocks replaced.

    visits: what was recorded of the blocks. full: the output. call: makes the call.
    """

    visits: list[Visit]
    full: list[Tensor]
    call: Callable[[], Any]

    def holds(self, stack: Stack, tail: int) -> bool:
        """Tells whether the recorded state alone, put in before the tail, gives the full output."""
        rows = stack.text_rows((), self.visits[0].call)
        block, out = stack.blocks[-1 - tail], self.visits[-1 - tail].outputs
        state = block.read_output(out if len(out) > 1 else out[0], rows)

        def use_recorded(entering: State) -> State:
            return state if tail else State(state.image, entering.text)

        try:
            with torch.no_grad(), replace_blocks(stack, use_recorded, rows, tail, lead=0):
                return are_same(list_tensors(self.call()), self.full)
        except (RuntimeError, ValueError, TypeError, IndexError, KeyError):
            return False  # the shapes did not fit: a block changes them


@contextmanager
def replace_blocks(
    stack: Stack,
    forecast: Callable[[State], State],
    text_rows: int = 0,
    tail: int = 0,
    lead: int = 1,
) -> Iterator[None]:
    """Lets all blocks between the leading ones and the tail pass their inputs through.

    forecast: the state that enters the last of them -> the state that is to leave it.
    tail:     how many trailing blocks run.
    lead:     how many leading ones.
    """
    *passing, last = stack.blocks[lead : len(stack.blocks) - tail]

    def put_in(*args: Any, **kwargs: Any) -> Any:
        return last.lay_out(forecast(last.read_input(args, kwargs, text_rows)))

    def pass_block(block: LiveBlock) -> Callable[..., Any]:
        return lambda *args, **kwargs: block.pass_through(args, kwargs)

    answers = {block.module: pass_block(block) for block in passing} | {last.module: put_in}
    before = {module: vars(module).get("forward") for module in answers}
    try:
        for module, answer in answers.items():
            vars(module)["forward"] = answer
        yield
    finally:
        for module, forward in before.items():
            vars(module).pop("forward", None)
            if forward is not None:
                vars(module)["forward"] = forward


def list_tensors(out: Any) -> list[Tensor]:
    """Returns the tensors of an output: a tensor, a tuple or list, or diffusers' record."""
    if isinstance(out, Tensor):
        return [out]
    values = out.values() if isinstance(out, Mapping) else out
    nested = [list_tensors(each) for each in values if isinstance(each, Tensor | list | tuple)]
    return [each for inner in nested for each in inner]


def are_same(a: Sequence[Tensor], b: Sequence[Tensor]) -> bool:
    """Tells whether two outputs are equal to the bit, and there is something to compare."""
    return len(a) == len(b) > 0 and all(map(torch.equal, a, b))
