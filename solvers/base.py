"""The solver protocol and its registry.

A solver holds settings only; what it remembers between steps is the state it returns, so one object
can serve many runs and threads. A step is a generator: it yields (x, node) wherever it needs the
network, is sent x0 back, and returns (x_s, state); where it needs noise it yields (x, None), and
where it combines the branches of the network itself (x, `Split`), and where candidates are to be
chosen from (candidates, `Choice`). So the same code is driven by our own loop, by a pipeline that
calls the network itself, and by a dry run that only counts.
"""

from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, pairwise
from typing import Any, ClassVar, NamedTuple, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from ..models.denoiser import Branch, Network
from ..models.errors import ScheduleError
from ..models.registry import SettingsRegistry
from ..models.schedule import Node, NoiseSchedule, TimeGrid
from .choice import Choice

State = TypeVar("State")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Split:
    """A node at which branches of the network are asked for apart, before guidance combines them.

    The answer to (x, Split(node, branches)) holds one x0 per branch: (len(branches), *x.shape).
    """

    node: Node
    branches: tuple[Branch, ...]


Asked = Node | Split | Choice | None  # None: standard normal noise, shaped like the tensor
Query = tuple[Tensor, Asked]
Step = Generator[Query, Tensor, tuple[Tensor, State]]


class Solver(Protocol[State]):
    """Moves x_t to x_s, one step at a time."""

    def init(self) -> State:
        """Returns the state before the first step."""
        ...

    def step(self, x: Tensor, state: State, t: Node, s: Node) -> Step[State]:
        """Steps from node t to the cleaner node s; x (B, *) is never changed in place."""
        ...


class Revision(NamedTuple):
    """A prediction x0 (B, *) that a solver was sent, and what replaces it in its memory."""

    old: Tensor
    new: Tensor


@runtime_checkable
class Revisable(Protocol):
    """A solver that remembers predictions, in whatever form, and can have them replaced.

    Where guidance stops or starts, predictions jump, and differences across the jump cost an order.
    With the past replaced by what it would have been without the jump, the order is preserved.
    """

    @property
    def reach(self) -> int:
        """The number of earlier predictions that its state depends on."""
        ...

    def revise(self, state: Any, changes: Sequence[Revision]) -> Any:
        """Returns the state as if the last predictions, newest first, had been the new ones.

        The sample that the steps so far have led to stays as it is.
        """
        ...


@runtime_checkable
class Bound(Protocol):
    """A solver that was made for one network."""

    def check_network(self, network: Network) -> None:
        """Raises SettingError if a network is another than that."""
        ...


Clock = Callable[[Node], float]  # ln C of a node, for a clock C >= 0 that rises from noise to data
Span = tuple[float, float]  # ln C of two places, the noisier one first


@runtime_checkable
class Clocked(Protocol):
    """A solver that may say where its noise lies on a Brownian path.

    Over the clock C its noise is g dW for some g, so that the draws of fine steps add up to those
    of coarse ones.
    """

    def list_spans(self, n: int, t: Node, s: Node) -> Sequence[Span] | None:
        """Returns the span of each draw of step n, from t to s; None if it follows no path."""
        ...


def list_spans(solver: Solver[Any], n: int, t: Node, s: Node) -> Sequence[Span]:
    """Returns the span of each draw of step n on a Brownian path; none if it follows none."""
    spans = solver.list_spans(n, t, s) if isinstance(solver, Clocked) else None
    return spans or ()


def drive(work: Generator[Query, Tensor, T], answer: Callable[[Tensor, Any], Tensor]) -> T:
    """Runs a step, or all steps of a run, to the end, and returns what it returns.

    answer: answers each query.
    """
    try:
        query = next(work)
        while True:
            query = work.send(answer(*query))
    except StopIteration as done:
        result: T = done.value
        return result


def revise_step(
    solver: Solver[State],
    args: tuple[Tensor, State, Node, Node],
    changes: Callable[[], Sequence[Revision]],
) -> Step[State]:
    """Runs a step whose first answer may show that the past has to be revised.

    args: (x, state, t, s).
    changes: called once the first answer is known; empty if there is nothing to revise. Otherwise
        the step begins again from the revised state, asks the same, and is sent the same answer.
    """
    step, (x, state, t, s) = solver.step(*args), args
    try:
        query = next(step)
        answer = yield query
        if (revisions := changes()) and isinstance(solver, Revisable):  # the cheaper one first
            step = solver.step(x, solver.revise(state, revisions), t, s)
            next(step)
        while True:
            query = step.send(answer)
            answer = yield query
    except StopIteration as done:
        result: tuple[Tensor, State] = done.value
        return result


def dry_run(solver: Solver[Any], nodes: Sequence[Node]) -> tuple[tuple[Asked, ...], ...]:
    """Returns what each step between consecutive nodes asks, in order, without a network.

    Every question about a state is answered by that state itself, so the solver must ask the same
    whatever the answers are; adaptive solvers do not.
    """
    x, state, steps = torch.zeros(1, 1, 1, 1, dtype=torch.float64), solver.init(), []
    for t, s in pairwise(nodes):
        asked: list[Asked] = []
        x, state = drive(solver.step(x, state, t, s), partial(_echo, asked))
        steps.append(tuple(asked))
    return tuple(steps)


def list_queries(solver: Solver[Any], grid: TimeGrid) -> list[Node]:
    """Returns the nodes at which a run asks for x0, by a dry run; their number is its NFE."""
    asked = list_evaluations(chain.from_iterable(dry_run(solver, grid.nodes)))
    return [each.node if isinstance(each, Split) else each for each in asked]


def list_evaluations(asked: Iterable[Asked]) -> list[Node | Split]:
    """Returns the questions that the network answers."""
    return [each for each in asked if isinstance(each, Node | Split)]


def _echo(asked: list[Asked], x: Tensor, node: Asked) -> Tensor:
    asked.append(node)
    if isinstance(node, Choice):
        return torch.zeros(x.shape[1], dtype=torch.long)
    return torch.stack([x] * len(node.branches)) if isinstance(node, Split) else x


@dataclass(frozen=True, slots=True, kw_only=True)
class SolverInfo:
    """Facts about a solver; the tests hold it to every one of them.

    name:           what users type.
    order:          global order of convergence on a smooth ODE, without lowering at the end.
    source:         paper and equation of the update rule.
    calls_per_step: network evaluations in a step that is not the last.
    stochastic:     whether it adds noise.
    adaptive:       whether it chooses its own steps, so that its cost is known only afterwards.
    families:       noise schedule families it runs on; empty for all.
    guided:         whether it combines the branches of the network itself, and needs both.
    distilled:      whether it is the update of networks that were distilled to it.
    grid:           the grid that goes with it where none is chosen; empty if it is no matter.
    same_as:        the method that this is by another name, with every setting left as it is.
    """

    name: str
    order: int
    source: str
    calls_per_step: int = 1
    stochastic: bool = False
    adaptive: bool = False
    families: tuple[str, ...] = ()
    guided: bool = False
    distilled: bool = False
    grid: str = ""
    same_as: str = ""

    @property
    def kind(self) -> str:
        if self.adaptive:
            return "adaptive"
        return "stochastic" if self.stochastic else "deterministic"


class SolverSettings(Protocol):
    """A frozen value of settings that makes a solver for a grid; an entry of the registry."""

    info: ClassVar[SolverInfo]

    def on(self, grid: TimeGrid) -> Solver[Any]:
        """Returns the solver that will step over this grid, with all its coefficients computed."""
        ...


SOLVERS: SettingsRegistry[SolverSettings] = SettingsRegistry(
    "solver", SolverInfo, "unipc-2", group="fewstep.solvers"
)
register, names, take_solver = SOLVERS.register, SOLVERS.names, SOLVERS.take


def solver(name: str, /, **settings: Any) -> SolverSettings:
    """Returns the settings registered under a name; keywords are the fields of its dataclass.

    Raises:
        UnknownNameError: for an unknown name or setting.
        SettingError: for a setting that is missing or out of range; it names the setting.
    """
    return SOLVERS.make(name, **settings)


def check_family(info: SolverInfo, schedule: NoiseSchedule) -> None:
    """Raises ScheduleError if a solver does not run on a noise schedule."""
    if info.families and schedule.family not in info.families:
        raise ScheduleError(
            f"{info.name} runs on {', '.join(info.families)} schedules only, not on"
            f" {schedule.family}; ddim runs on all"
        )
