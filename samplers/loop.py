"""The one loop, from noise to samples, batch by batch. It knows no solver by name."""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ..models.denoiser import Ask, Denoiser
from ..models.devices import send
from ..models.errors import SettingError
from ..models.ledger import Ledger
from ..models.schedule import Node, TimeGrid
from ..solvers import Executor, Revisable, Revision, Solver, drive, revise_step
from ..solvers.base import Asked, Query, Span, Split, list_spans
from ..solvers.choice import Choice
from ..solvers.corrected_steps import count_multiplications
from ..solvers.table_steps import brings_guidance, count_operations
from .guidance import Guidance, Guide, History, Moment, PastBranches, Setup, Thresholded
from .guidance.nested import check_gradient, takes_gradient
from .plan import count_stage_calls

Callback = Callable[[int, Node, Tensor, Tensor, Ledger], None]


def integrate(
    denoiser: Denoiser,
    solver: Solver[Any],
    grid: TimeGrid,
    x: Tensor,
    guidance: Guidance,
    callback: Callback | None = None,
    noise: Callable[[], Tensor] | None = None,
) -> Tensor:
    """Carries x (B, *) from the first node of the grid to its last.

    noise: draws standard normal noise like x, for stochastic solvers.
    callback: called once after each step with (step, node reached, x, the last x0, ledger); of a
        solver that combines the branches itself, the x0 is that of the conditional one.

    Raises:
        SettingError: if the solver needs noise and there is none, or if a guidance stands beside a
            solver that brings its own.
        NonFiniteError: if the network returns NaN or infinity.
    """
    run = BatchRun(denoiser, solver, grid, guidance, callback, noise)
    x = drive(run.steps(x), run.answer)
    denoiser.check()
    return x


@dataclass
class BatchRun:
    """The run of one batch: its solver's questions, and their answers by the network.

    `drive(run.steps(x), run.answer)` does what `integrate` does without checking the answers, for
    which a host would wait: call `denoiser.check()` once the result is needed.

    path:    gives the noise of a span in place of `noise`, until the run is over.
    images:  the number of the batch's first image in the run, and of all images of the run.
    first, last: the steps of the grid that it takes; all by default.
    before:  the run of the steps before, whose solver's memory it goes on with; reached: after the
             last step.
    past:    collects what the run after it combines anew, if that shall be.
    x0:      the last answer; step, stage, draws: where the next question is.
    gradient: the guidance differentiates the network.
    history: the answers that a solver remembers whose memory follows the guidance.
    earlier: the `past` of the run before, until the first answer; due: what it makes of it.
    """

    denoiser: Denoiser
    solver: Solver[Any]
    grid: TimeGrid
    guidance: Guidance
    callback: Callback | None = None
    noise: Callable[[], Tensor] | None = None
    path: Callable[[Span], Tensor] | None = None
    images: tuple[int, int | None] = (0, None)
    first: int = 0
    last: int | None = None
    before: "BatchRun | None" = None
    past: PastBranches | None = None
    reached: Any = field(init=False, default=None)
    x0: Tensor = field(init=False)
    guide: Guide = field(init=False)
    history: History | None = None
    earlier: PastBranches | None = None
    due: Sequence[Revision] = ()
    gradient: bool = False
    step: int = 0
    stage: int = 0
    draws: int = 0

    def steps(self, x: Tensor) -> Generator[Query, Tensor, Tensor]:
        """Yields every question of the run that starts at x (B, *), and returns where it ends."""
        self.x0, state = x, self._begin(len(x))
        ledger, nodes = self.denoiser.ledger, self.grid.nodes[self.first : self.end + 1]
        for n, (t, s) in enumerate(pairwise(nodes), start=self.first):
            before, self.step, self.stage, self.draws = ledger.rows, n, 0, 0
            x, state = yield from revise_step(self.solver, (x, state, t, s), self._list_changes)
            ledger.count_step(n, ledger.rows - before)
            ledger.operations += len(x) * count_operations(self.solver, n)
            ledger.multiplications += len(x) * count_multiplications(self.solver, n)
            if self.callback is not None:
                self.callback(n, s, x, self.x0, ledger)
        self.reached, self.path = state, None
        return x

    @property
    def end(self) -> int:
        """The number of the first step after those that it takes."""
        return self.grid.steps if self.last is None else self.last

    def answer(self, x: Tensor, node: Asked) -> Tensor:
        """Returns noise, a choice, the branches apart or the guided x0 (B, *), as is asked."""
        if node is None:
            return self._draw_noise(x)
        if isinstance(node, Choice):
            return self._choose(x, node)
        self.denoiser.stage, stage = self.stage, self.stage
        self.stage += 1
        if isinstance(node, Split):
            outputs = self.denoiser.x0(x, node.node, node.branches)
            self.x0 = outputs[-1]
            return torch.stack(outputs)
        moment = Moment(node, self.step - self.first, stage)
        if self.gradient:
            self.x0 = self._differentiate(x, moment)
            return self.x0
        outputs = self.denoiser.x0(x, node, self.guide.ask(moment))
        self.x0 = self._combine(outputs, x, moment)
        return self.x0

    def _choose(self, candidates: Tensor, choice: Choice) -> Tensor:
        """Returns the index (B,) of the candidate of each image."""
        index = choice.pick(candidates, self.denoiser.network.decode)
        if choice.decodes:
            self.x0 = candidates[index, torch.arange(len(index), device=index.device)]
        return index

    def _differentiate(self, x: Tensor, moment: Moment) -> Tensor:
        """Returns the guided x0 (B, *) of a guide that differentiates the network by the state."""
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            outputs = self.denoiser.x0(x, moment.node, self.guide.ask(moment))
            return self._combine(outputs, x, moment)

    def _begin(self, images: int) -> Any:
        """Makes the guide, tells the cache what comes, and returns the solver's first state."""
        solver, guidance, cache = self.solver, self.guidance, self.denoiser.cache
        if brings_guidance(solver) and not (guidance.off and not isinstance(guidance, Thresholded)):
            raise SettingError(
                "this schedule or solver brings its own guidance; drop the guidance scale, interval"
                " and threshold (a solver has the scale as a setting)"
            )
        brought = solver.schedule.cache_policy if isinstance(solver, Executor) else None
        if brought is not None and (cache is None or cache.policy != brought):
            raise SettingError(
                "this schedule brings a cache; run it with Sampler, or inside"
                " `with caching(network, schedule):` and with no other cache"
            )
        whole = (self.first, self.end) == (0, self.grid.steps)
        grid = self.grid if whole else self.grid.part(self.first, self.end)
        self.guide = guidance.begin(self._set_up(grid, images))
        if guidance.rewrites and isinstance(solver, Revisable) and solver.reach:
            self.history = History(solver.reach)
        if cache is not None:
            cache.begin(count_stage_calls(solver, self.grid, self.first, self.end))
        return solver.init() if self.before is None else self._go_on(self.before)

    def _go_on(self, before: "BatchRun") -> Any:
        """Returns the solver's state after the run before, and takes over what is known of it."""
        self.earlier = before.past
        if self.history is not None and before.guidance == self.guidance:
            self.history = before.history
        return before.reached

    def _set_up(self, grid: TimeGrid, images: int) -> Setup:
        """Returns the run as its guide is shown it."""
        denoiser, (first, total) = self.denoiser, self.images
        setup = Setup(
            denoiser.network,
            self.solver,
            grid,
            images,
            cached=denoiser.cache is not None,
            first=first,
            total=total,
            evaluate=self._evaluate_further,
            draw=self.noise,
            earlier=self.grid.nodes[: self.first],
        )
        self.gradient = takes_gradient(self.guidance)
        check_gradient(self.guidance, setup)
        if self.gradient and torch.is_inference_mode_enabled():
            raise SettingError(
                f"{self.guidance.name} guidance differentiates the network, which"
                " torch.inference_mode() rules out; run it under torch.no_grad()"
            )
        return setup

    def _evaluate_further(self, x: Tensor, node: Node, asks: Sequence[Ask]) -> tuple[Tensor, ...]:
        """Returns what a guide asks for by itself: its rows count, but it answers no question."""
        ledger = self.denoiser.ledger
        answered = ledger.evaluations
        outputs = self.denoiser.x0(x, node, asks)
        ledger.evaluations = answered
        return outputs

    def _list_changes(self) -> Sequence[Revision]:
        """Returns how the solver's memory is revised after the first answer of a step."""
        due, self.due = self.due, ()
        return due or (() if self.history is None else self.history.changes())

    def _combine(self, outputs: Sequence[Tensor], x: Tensor, moment: Moment) -> Tensor:
        if self.denoiser.forecast:
            moment = replace(moment, forecast=True)
        x0 = self.guide.combine(outputs, x, moment)
        if self.gradient:
            x0, outputs = x0.detach(), [each.detach() for each in outputs]
        if self.history is not None:
            plain = partial(self.guide.conditional, outputs, x, moment)
            self.history.note(x0, self.guide.guided, plain)
        if self.past is not None:
            self.past.note(x0, outputs, x, moment)
        if self.earlier is not None:
            self.due = self.earlier.combine_anew(self.guide, x0, outputs, x, moment)
            self.earlier = None
        return x0

    def _draw_noise(self, x: Tensor) -> Tensor:
        if self.path is not None:
            ends = self.grid.nodes[self.step : self.step + 2]
            noise = self.path(list_spans(self.solver, self.step, *ends)[self.draws])
            self.draws += 1
            return send(noise, x.device, x.dtype)
        if self.noise is None:
            raise SettingError("this solver adds noise; give integrate a source of it")
        return send(self.noise(), x.device, x.dtype)
