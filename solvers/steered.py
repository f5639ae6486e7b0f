"""SVDD: each step is chosen among candidates by a reward without gradient (arXiv:2408.08252).

The target is p(x0) e^{r(x0) / T}, for a reward r and a temperature T. A step from t to s draws M
candidates by a stochastic solver of order 1, and one of them is kept with probability proportional
to e^{v / T}:

    x_s^j ~ p(x_s | x_t),   v_j = r(x0(x_s^j, s)),   j = 1..M.

v stands for T log E[e^{r(x0) / T} | x_s], with which the samples tend to the target as M and the
number of steps grow. The reward of the prediction is not that, and leaves a bias that no M cures; a
`value` of x_s that was fitted to it does not. The prediction of the candidate that is kept is that
of the next step, so N steps to sigma = 0 cost 1 + M (N - 1) evaluations, and N with a `value`.

Image i draws its candidates, in order, and then one normal number for the choice, all from its own
generator. One candidate is the solver itself, to the bit.
"""

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from ..models.arguments import as_integer
from ..models.errors import SettingError, UnknownNameError
from ..models.schedule import Node, TimeGrid
from .base import (
    Asked,
    Query,
    Revisable,
    Solver,
    SolverInfo,
    SolverSettings,
    dry_run,
    take_solver,
)
from .choice import Choice, Rate

Value = Callable[[Tensor, Node], Tensor]
SELECTS = ("softmax", "max")


@dataclass(frozen=True)
class Steered:
    """A stochastic solver of order 1 whose steps are chosen among candidates by a reward.

    reward:      takes images (B, C, H, W) in [-1, 1], decoded where the network has a VAE, or what
                 samples are, and returns (B,) finite numbers, each of its own image alone. It is
                 shown predictions of x0, which are blurred where there is much noise.
    temperature: T > 0, in the units of the reward; less is stronger.
    candidates:  M of each step.
    select:      "softmax" draws one by its probability; "max" keeps the best, as the released code
                 does, which samples no tilted law and collapses as M grows.
    solver:      ddpm, sde-dpmpp-1, or another one of order 1 that adds noise.
    value:       takes (x_s (B, *), node) and returns (B,), in place of a reward.

    >>> bright = Steered(lambda x: x.mean((1, 2, 3)), temperature=0.02, candidates=8)
    >>> sampler(range(8), solver=bright, steps=20)
    """

    info: ClassVar[SolverInfo] = SolverInfo(
        name="steered", order=1, source="arXiv:2408.08252", stochastic=True
    )
    reward: Rate | None = None
    temperature: float = 1.0
    candidates: int = 4
    select: Literal["softmax", "max"] = "softmax"
    solver: str | SolverSettings = "ddpm"
    value: Value | None = None

    def __post_init__(self) -> None:
        if (self.reward is None) == (self.value is None):
            raise SettingError("give either a reward or a value")
        if not callable(self.reward if self.value is None else self.value):
            raise SettingError("a reward is a function of images (B, C, H, W) that returns (B,)")
        if not (isinstance(self.temperature, int | float) and 0 < self.temperature < math.inf):
            raise SettingError(f"temperature={self.temperature!r} must be a number above 0")
        if as_integer(self.candidates, "candidates") < 1:
            raise SettingError(f"candidates={self.candidates} must be 1 or more; 1 makes no choice")
        if self.select not in SELECTS:
            raise UnknownNameError("select", str(self.select), SELECTS)
        inner, calls = take_solver(self.solver).info, 1 if self.reward is None else self.candidates
        if inner.order > 1 or inner.adaptive or inner.guided:
            raise SettingError(
                f"{inner.name} is not of order 1 with fixed steps, and a choice leaves no history"
                " that a higher order could use; take ddpm or sde-dpmpp-1"
            )
        info = replace(inner, name="steered", source=Steered.info.source, same_as="")
        object.__setattr__(self, "info", replace(info, calls_per_step=calls))

    def on(self, grid: TimeGrid) -> "SteeredSteps":
        """Returns the solver; raises SettingError for one that candidates cannot be drawn by."""
        inner = take_solver(self.solver)
        steps, name = inner.on(grid), inner.info.name
        asked = dry_run(steps, grid.nodes)
        own = all(
            [each for each in queries if each is not None] == [node] and queries[0] is not None
            for queries, node in zip(asked, grid.nodes, strict=False)
        )
        if not own or (isinstance(steps, Revisable) and steps.reach):
            raise SettingError(
                f"{name} does not evaluate once in each step, at its beginning; take ddpm"
            )
        if not any(None in queries for queries in asked):
            raise SettingError(
                f"{name} adds no noise, so all candidates of a step are the same; take ddpm"
            )
        return SteeredSteps(self, steps, [None in queries for queries in asked])


class SteeredMemory(NamedTuple):
    """The number of the next step, the inner solver's state, and the prediction at its start."""

    n: int
    inner: Any
    x0: Tensor | None = None


class SteeredSteps:
    """Runs the steps of a solver, several times each.

    noisy: which of them add noise.
    """

    def __init__(self, settings: Steered, inner: Solver[Any], noisy: Sequence[bool]) -> None:
        self.settings, self.inner, self.noisy = settings, inner, noisy

    def init(self) -> SteeredMemory:
        return SteeredMemory(0, self.inner.init())

    def step(
        self, x: Tensor, state: SteeredMemory, t: Node, s: Node
    ) -> Generator[Query, Tensor, tuple[Tensor, SteeredMemory]]:
        """Steps from node t to s; the last step, whose end is not evaluated, has no choice."""
        n, inner, x0 = state
        if x0 is None:
            x0 = yield x, t
        last = n + 1 == len(self.noisy)
        count = 1 if last or not self.noisy[n] else self.settings.candidates
        drawn = []
        for _ in range(count):
            x_s, after = yield from self._propose((x, inner, t, s), x0)
            drawn.append(x_s)
        if count == 1:
            return x_s, SteeredMemory(n + 1, after)
        x_s, x0 = yield from self._choose(torch.stack(drawn), s)
        return x_s, SteeredMemory(n + 1, after, x0)

    def _propose(
        self, args: tuple[Tensor, Any, Node, Node], x0: Tensor
    ) -> Generator[Query, Tensor, tuple[Tensor, Any]]:
        """Takes a step of the inner solver, whose one evaluation is answered already."""
        work = self.inner.step(*args)
        next(work)
        try:
            query = work.send(x0)
            while True:
                query = work.send((yield query))
        except StopIteration as done:
            result: tuple[Tensor, Any] = done.value
            return result

    def _choose(
        self, states: Tensor, s: Node
    ) -> Generator[Query, Tensor, tuple[Tensor, Tensor | None]]:
        """Chooses among the candidates (M, B, *) at node s."""
        settings, predictions = self.settings, None
        if settings.reward is not None:
            answers = []
            for x_s in states:
                answers.append((yield x_s, s))  # comprehensions cannot yield
            predictions = torch.stack(answers)
        shares = None
        if settings.select == "softmax":
            z = yield states[0], None
            shares = torch.special.ndtr(z.flatten(1)[:, 0].double())
        index = yield self._ask(states, predictions, s, shares)
        rows = torch.arange(states.shape[1], device=states.device)
        return states[index, rows], None if predictions is None else predictions[index, rows]

    def _ask(
        self, states: Tensor, predictions: Tensor | None, s: Node, shares: Tensor | None
    ) -> tuple[Tensor, Asked]:
        """Returns the question, about predictions for a reward and states for a value."""
        temperature, value = self.settings.temperature, self.settings.value
        if value is not None:
            return states, Choice(lambda x: value(x, s), "the value", False, temperature, shares)
        assert predictions is not None
        reward: Any = self.settings.reward
        return predictions, Choice(reward, "the reward", True, temperature, shares)
