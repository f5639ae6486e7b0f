"""A plan that is answered from outside, one evaluation at a time, by whoever calls the network.

A run may also begin after its first evaluation, as image to image does.
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import mode
from typing import Any

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from ...models.errors import NonFiniteError, SettingError
from ...models.prediction import combine
from ...models.schedule import Node, TimeGrid
from ...solvers import Solver, SolverSettings
from ...solvers.base import Query, Split, Step, dry_run
from ...solvers.choice import Choice
from ..plan import Plan

GUIDED = (
    "this schedule combines the branches of the network itself, and a pipeline has combined them"
    " already; use it with Sampler, or a schedule without guidance"
)
AFS = (
    "this schedule takes its first step without the network (afs), and a pipeline always calls it"
    " first; use it with Sampler, or a schedule without afs"
)
NOISE_FIRST = (
    "this solver begins by adding noise, and a pipeline asks the network first; use it with"
    " Sampler, or without noise in its first step (s_churn=0, or a smaller s_max)"
)
Draw = Callable[[Tensor], Tensor]  # a state -> standard normal noise like it


@dataclass(frozen=True, slots=True)
class PlannedCall:
    """One evaluation of a plan: in which step, as which of its calls, and at which node."""

    step: int
    stage: int
    node: Node


class Stepper:
    """Runs the steps of a solver over a grid; each call of `answer` brings it to the next question.

    It can be copied between any two calls: a generator cannot be, so it is left out and told its
    answers again.
    """

    def __init__(self, solver: Solver[Any], nodes: tuple[Node, ...]) -> None:
        self.solver, self.pairs = solver, list(pairwise(nodes))
        self.end = len(self.pairs)  # the number of the first step that is not taken
        self.n, self.state = 0, solver.init()
        self.sent: list[Tensor] = []  # the answers of this step
        self.x = self.asked = torch.zeros(())  # where the step begins; the state in question
        self.node = nodes[0]  # where that state is, and at the end the last sample
        self.begun = False
        self.live: Generator[Query, Tensor, tuple[Tensor, Any]] | None = None

    @property
    def over(self) -> bool:
        return self.n == self.end

    def begin(self, x: Tensor, noise: Draw) -> Tensor:
        """Starts from x (B, *); the state in question, which is x if nothing comes before it."""
        self.x, self.begun = x, True
        self.live = self._start_step()
        return self._run_until_asked(None, noise)

    def answer(self, x0: Tensor, noise: Draw) -> Tensor:
        """Takes x0 (B, *) at the state in question; the next such state, or the last sample."""
        if self.live is None:
            self.live = self._replay_step()
        self.sent.append(x0)
        return self._run_until_asked(x0, noise)

    def replace(self, x: Tensor) -> None:
        """Puts x (B, *) in the place of the state in question.

        Where the question is the first of its step, the step begins from x. Later ones ask about a
        state that is not carried on, so there only the answer is another.
        """
        if not self.sent:
            self.x = x if self.asked is self.x else self.x + (x - self.asked)
            self.live = self._replay_step()
        self.asked = x

    def _start_step(self) -> Step[Any]:
        return self.solver.step(self.x, self.state, *self.pairs[self.n])

    def _replay_step(self) -> Step[Any]:
        """This step from its beginning to the question that is open."""
        live = self._start_step()
        next(live)
        for answer in self.sent:
            live.send(answer)
        return live

    def _run_until_asked(self, answer: Tensor | None, noise: Draw) -> Tensor:
        assert self.live is not None
        while True:
            try:
                x, node = self.live.send(answer)  # type: ignore[arg-type]  # None begins a step
            except StopIteration as done:
                self.x, self.state = done.value
                self.n, self.sent, answer = self.n + 1, [], None
                if self.over:
                    self.live, self.node = None, self.pairs[self.n - 1][1]
                    return self.x
                self.live = self._start_step()
                continue
            if isinstance(node, Split):
                raise SettingError(GUIDED)
            assert not isinstance(node, Choice)  # rewards have no name, by which solvers come here
            if node is not None:
                self.asked, self.node = x, node
                return x
            answer = noise(x)
            self.sent.append(answer)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "live": None}


def list_calls(plan: Plan) -> list[PlannedCall]:
    """Returns the evaluations of a run, in order.

    Raises:
        SettingError: if the schedule brings its own guidance, or the run does not begin with the
            network at the first node.
    """
    asked = dry_run(plan.solver, plan.grid.nodes)
    if any(isinstance(node, Split) for step in asked for node in step):
        raise SettingError(GUIDED)
    if not asked[0]:
        raise SettingError(AFS)
    first = asked[0][0]
    if not isinstance(first, Node) or first.t != plan.grid.nodes[0].t:
        raise SettingError(NOISE_FIRST)
    return [
        PlannedCall(step, stage, node)
        for step, queries in enumerate(asked)
        for stage, node in enumerate(each for each in queries if isinstance(each, Node))
    ]


class CallsPerStep(int):
    """A number of evaluations per step that does not equal 2.

    Pipelines that take over from another one (denoising_start) compare `order` with 2, nothing else
    does. Where it is equal they expect diffusers' Heun scheduler and begin one evaluation before
    the first that is left, at a node with more noise than the state has.
    """

    def __eq__(self, other: object) -> bool:
        return int(self) != 2 and int(self) == other

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = int.__hash__


def count_calls_per_step(asked: Sequence[PlannedCall]) -> CallsPerStep:
    """Returns the evaluations that a pipeline shall count as one step, for its bar to end full.

    A bar moves at every k-th evaluation and at the last one. That is right for k calls in most
    steps and fewer in the last; where it is not, 1 moves the bar at each of the last N evaluations.
    """
    steps = [question.step for question in asked]
    k = mode(map(steps.count, dict.fromkeys(steps)))
    moves = len(steps) // k + (len(steps) % k > 0)
    regular = all(asked[n].stage == 0 for n in range(0, len(asked), k))
    return CallsPerStep(k if moves == len(dict.fromkeys(steps)) and regular else 1)


class Resumed:
    """A solver that is joined within a step.

    The calls that are left of that step take x by DDIM from node to node and on to the next step,
    which is the identity where the nodes are the same; from there it is the solver as ever.
    """

    def __init__(self, solver: Solver[Any] | None, calls: int) -> None:
        self.solver, self.calls = solver, calls

    def init(self) -> tuple[int, Any]:
        return 0, self.solver.init() if self.solver else None

    def step(self, x: Tensor, state: tuple[int, Any], t: Node, s: Node) -> Step[tuple[int, Any]]:
        n, inner = state
        if n < self.calls:
            x0 = yield x, t
            ratio = s.sigma / t.sigma if t.lam < s.lam else 1.0
            return combine((ratio, s.alpha - t.alpha * ratio), x, x0), (n + 1, inner)
        assert self.solver is not None
        x, inner = yield from self.solver.step(x, inner, t, s)
        return x, (n, inner)


def make_late_stepper(plan: Plan, settings: SolverSettings, rest: Sequence[PlannedCall]) -> Stepper:
    """Returns what runs the rest of a plan, with no memory of what came before it.

    Raises:
        SettingError: if the solver, begun anew there, does not ask what is left of the plan.
    """
    calls = next((n for n, question in enumerate(rest) if question.stage == 0), len(rest))
    joined = [question.node for question in rest[:calls]]
    nodes = plan.grid.nodes[rest[0].step + (calls > 0) :]
    falls = all(s.lam >= t.lam for t, s in pairwise([*joined, nodes[0]]))
    solver: Solver[Any] | None = None
    asked = list[Node]()
    if len(nodes) > 1:
        grid = TimeGrid(plan.grid.schedule, nodes, plan.grid.denoise)
        anew = Plan(settings.on(grid), grid)
        solver, asked = anew.solver, [question.node for question in list_calls(anew)]
    if not falls or asked != [question.node for question in rest[calls:]]:
        raise make_refusal(settings, rest[0])
    runs = solver if solver and not calls else Resumed(solver, calls)
    return Stepper(runs, (*joined, *nodes))


def make_refusal(settings: SolverSettings, first: PlannedCall) -> SettingError:
    """Returns the error of a run that cannot begin at this evaluation."""
    return SettingError(
        f"{settings.info.name} cannot start at call {first.stage + 1} of step {first.step + 1}:"
        " pipelines count on as many calls in every step; change strength, or take a solver with"
        " one evaluation per step, such as unipc-2"
    )


Generators = torch.Generator | list[torch.Generator] | None


def check_answer(output: Any, x: Tensor) -> Tensor:
    """Returns the network's output in the state's dtype and shape, without a learned sigma.

    Raises:
        SettingError: if it is no tensor, or none of this shape.
    """
    if not isinstance(output, Tensor):
        raise SettingError(
            f"step takes the network's output as a tensor, not a {type(output).__name__}; pass its"
            " .sample, or call the network with return_dict=False"
        )
    if output.shape != x.shape and output.ndim > 1 and output.shape[1] == 2 * x.shape[1]:
        output = output[:, : x.shape[1]]
    if output.shape != x.shape:
        raise SettingError(
            f"the network answered {tuple(output.shape)} to a state of {tuple(x.shape)}; they must"
            " be equal, or the answer may have twice the channels (learned sigma)"
        )
    answer: Tensor = output.to(x.dtype)
    return answer


def refuse_nonfinite(x0: Tensor, timestep: float) -> None:
    """Raises NonFiniteError for an x0 (B, *) with NaN or infinity; the host waits for it."""
    if not bool(x0.isfinite().all()):
        raise NonFiniteError(
            f"the network returned NaN or infinity at timestep {timestep:g}; try another dtype, or"
            " check that the config is that of its own scheduler"
        )


def read_version(tensor: Tensor) -> int:
    """Tells whether a tensor was changed in place; inference tensors do not, and count as not."""
    return 0 if tensor.is_inference() else tensor._version


def make_draw(generator: Generators) -> Draw:
    """Returns what draws standard normal noise from the generators handed to `step`."""

    def draw(x: Tensor) -> Tensor:
        each = generator if isinstance(generator, list) else [generator]
        if not all(one is None or isinstance(one, torch.Generator) for one in each):
            raise SettingError(
                f"generator={generator!r} must be a torch.Generator or a list of them"
            )
        if isinstance(generator, list) and len(generator) != len(x):
            raise SettingError(
                f"{len(generator)} generators for {len(x)} images; give one for each"
            )
        noise: Tensor = randn_tensor(x.shape, generator, x.device, x.dtype)
        return noise

    return draw
