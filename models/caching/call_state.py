"""The state of an engine: its memory between calls, one call, and the parts that it replaces."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from ..architectures.stack import State
from .contexts import Place
from .forecast import FiniteDifferences, RowDifferences

Memory = FiniteDifferences | RowDifferences


@dataclass
class Track:
    """The memory of one branch (or a batch of them) at one stage.

    facts:    shape of a row, dtype, device and rows per branch; a change of them drops all.
    branches: the branches whose rows it stores.
    last:     index of the last full call, one for all rows or one each; empty before the first.
    errors:   of the gate since then.
    """

    facts: tuple[Any, ...]
    branches: tuple[str, ...]
    stores: dict[str, Memory] = field(default_factory=dict)
    gate: Memory | None = None
    last: list[int] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)

    def memories(self) -> list[Memory]:
        return [*self.stores.values(), *([] if self.gate is None else [self.gate])]

    def keep(self, branches: tuple[str, ...]) -> None:
        """Keeps the rows of some of the branches alone."""
        parts, of = [self.branches.index(each) for each in branches], len(self.branches)
        for memory in self.memories():
            memory.keep(parts, of)
        if len(self.last) > 1:
            size = len(self.last) // of
            self.last = [self.last[part * size + b] for part in parts for b in range(size)]
        self.branches = branches


@dataclass
class CallState:
    """The state of one call while it runs.

    full:    whether all blocks run; None until the gate has decided.
    rows:    the rows that are computed where others are forecast.
    follows: another branch of this step has decided already.
    """

    place: Place
    track: Track
    batch: int
    full: bool | None = None
    rows: tuple[int, ...] = ()
    follows: bool = False
    error: float | None = None
    entered: Tensor | None = None
    start: State | None = None
    text_rows: int = 0
    before: State | None = None


@dataclass(frozen=True, slots=True)
class Substitute:
    """The output of a module that does not run."""

    value: Any


Arguments = tuple[Sequence[Any], Mapping[str, Any]]


def pass_unchanged(out: Any) -> Any:
    return out


@dataclass(frozen=True)
class Part:
    """A module of the network that is not simply run.

    before: of its arguments, an Answer in its place, other arguments to run it with, or None.
    after:  of what it returned, the value that the network gets.
    """

    module: nn.Module
    before: Callable[[Sequence[Any], Mapping[str, Any]], Substitute | Arguments | None]
    after: Callable[[Any], Any] = pass_unchanged


@dataclass(frozen=True)
class Verdict:
    """The decision for all branches of a step."""

    index: int
    full: bool
    rows: tuple[int, ...]
