"""A call of the network: its place in the run, its state while it runs, and rows of its batch.

Our own sampler announces the branch and the stage of a call. A pipeline of diffusers may name the
branch with `cache_context`. If it does not, the time of its calls tells: the same time again is a
further branch. With named branches, the same branch again at the same time is a further stage of
the solver (Heun).
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..architectures.stack import State
from ..devices import Reading, send
from .memory import Memory

if TYPE_CHECKING:
    from .gate import GateMemory

MOST = 8  # more calls at one time than branches and stages there can be: runs of a single step
POSITIONS = ("rotary", "rope", "freqs", "pos", "ids", "cos", "sin", "grid")  # in argument names


@dataclass(frozen=True, slots=True)
class Place:
    """The place of a call in its run.

    branches: the branches whose rows it carries, in their order in the batch.
    stage:    which evaluation within a step of the solver.
    index:    of the call in its run, among those of its stage.
    """

    branches: tuple[str, ...]
    stage: int
    index: int
    batched: bool = False

    @property
    def key(self) -> tuple[int, str]:
        """Calls with the same key continue one history; batched branches share one."""
        return self.stage, "" if self.batched else self.branches[0]

    @property
    def label(self) -> str:
        return "+".join(self.branches)


@dataclass(frozen=True, slots=True)
class Announced:
    """The facts that our own sampler gives of a call before it makes it.

    branches: whose rows the call carries, in their order in the batch.
    stage:    which evaluation within a step of the solver.
    level:    sigma / alpha; None if it is not said.
    """

    branches: tuple[str, ...]
    stage: int
    level: float | None


@dataclass
class CallCounter:
    """Counts the steps of one run."""

    steps: Counter[int] = field(default_factory=Counter)
    time: float | None = None
    falls: bool | None = None
    seen: Counter[str] = field(default_factory=Counter)
    stages: set[int] = field(default_factory=set)

    def count_announced(self, branches: Sequence[str], stage: int) -> Place:
        """Counts a call of our own sampler: every one is a step of its stage."""
        index = self.steps[stage]
        self.steps[stage] += 1
        return Place(tuple(branches), stage, index, batched=True)

    def is_new_run(self, name: str | None, time: float | None) -> bool:
        """Tells whether the time went back, or stood still for longer than a step can be."""
        if time is None or self.time is None:
            return False
        if time == self.time:
            return self.seen[name or ""] >= MOST
        return self.falls is not None and self.falls != (time < self.time)

    def count_heard(self, name: str | None, time: float | None) -> Place:
        """Counts a call of a pipeline."""
        known = name or ""
        if time != self.time or (time is None and (known in self.seen or name is None)):
            self._start_step(time)
        turn = self.seen[known]
        self.seen[known] += 1
        stage = turn if name is not None else 0
        branch = name if name is not None else f"call {turn}"
        if stage not in self.stages:
            self.stages.add(stage)
            self.steps[stage] += 1
        return Place((branch,), stage, self.steps[stage] - 1)

    def _start_step(self, time: float | None) -> None:
        if time is not None and self.time is not None:
            self.falls = time < self.time
        self.time = time
        self.seen.clear()
        self.stages.clear()


@dataclass
class Track:
    """The memory of one branch (or a batch of them) at one stage.

    facts:    shape of a row, dtype, device and rows per branch; a change of them drops all.
    branches: the branches whose rows it stores.
    last:     index of the last full call, one for all rows or one each; empty before the first.
    errors:   of the gate since then, of all rows or of each image.
    check:    sums of the gate that are on their way to the host, for the next call.
    """

    facts: tuple[Any, ...]
    branches: tuple[str, ...]
    stores: dict[str, Memory] = field(default_factory=dict)
    gate: "GateMemory | None" = None
    last: list[int] = field(default_factory=list)
    errors: list[list[float]] = field(default_factory=list)
    check: Reading | None = None

    def memories(self) -> list[Memory]:
        return [*self.stores.values(), *([] if self.gate is None else self.gate.memories())]

    def keep(self, branches: tuple[str, ...]) -> None:
        """Keeps the rows of some of the branches alone."""
        parts, of = [self.branches.index(each) for each in branches], len(self.branches)
        for memory in self.stores.values():
            memory.keep(parts, of)
        if self.gate is not None:
            self.gate.keep(parts, of)
        if len(self.last) > 1:
            size = len(self.last) // of
            self.last = [self.last[part * size + b] for part in parts for b in range(size)]
        self.branches = branches


@dataclass
class CallState:
    """The state of one call while it runs.

    asked:   the arguments of the network.
    length:  calls of this stage in the run; None if it is unknown.
    level:   sigma / alpha of the call; None where nobody knows it.
    full:    whether all blocks run; None until the gate has decided.
    rows:    the rows that are computed where others are forecast.
    follows: another branch of this step has decided already.
    """

    place: Place
    track: Track
    batch: int
    asked: "Arguments"
    length: int | None = None
    level: float | None = None
    full: bool | None = None
    rows: tuple[int, ...] = ()
    follows: bool = False
    error: float | None = None
    entered: Tensor | None = None
    probe: Tensor | None = None
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


def select_rows(x: Tensor, rows: Sequence[int]) -> Tensor:
    return x.index_select(0, send(torch.tensor(rows), x.device))


def scatter_rows(whole: Any, part: Any, rows: Sequence[int]) -> Any:
    if whole is None or part is None:
        return None
    return whole.index_copy(0, send(torch.tensor(rows), whole.device), part)


def select_argument(name: str, value: Any, call: CallState) -> Any:
    """Returns some rows of an argument with one per image; positions (L, d) are shared by all."""
    if isinstance(value, tuple | list):
        return type(value)(select_argument(name, each, call) for each in value)
    if not isinstance(value, Tensor) or value.ndim == 0 or len(value) != call.batch:
        return value
    shared = value.ndim < 3 and any(part in name for part in POSITIONS)
    return value if shared else select_rows(value, call.rows)
