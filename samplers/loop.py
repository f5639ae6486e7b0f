"""The one loop. It knows no solver by name, no network by type and no policy's insides."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, pairwise
from typing import Any

import torch
from torch import Tensor

from ..models.denoiser import Denoiser
from ..models.devices import send
from ..models.errors import SettingError
from ..models.ledger import Ledger
from ..models.schedule import Node, TimeGrid
from ..solvers import Revision, Rewritable, Solver, drive, dry_run, retold
from ..solvers.base import Asked, Split
from ..solvers.table_steps import brings_guidance
from .guidance import Guidance, Guide, History, Moment, Setup, Thresholded

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
        SettingError: if noise is wanted and there is none, or if a guidance stands beside a solver
            that brings its own.
    """
    x = carry(denoiser, solver, grid, x, guidance, callback, noise)
    denoiser.check()
    return x


def carry(
    denoiser: Denoiser,
    solver: Solver[Any],
    grid: TimeGrid,
    x: Tensor,
    guidance: Guidance,
    callback: Callback | None = None,
    noise: Callable[[], Tensor] | None = None,
) -> Tensor:
    """Does what `integrate` does without checking the network's answers, for which a host waits.

    Call `denoiser.check()` once the result is wanted.
    """
    _check_guidance(solver, guidance)
    guide = guidance.begin(Setup(denoiser.network, solver, grid, len(x)))
    answers, state = Answers(denoiser, guide, noise, x), solver.init()
    if guidance.rewrites and isinstance(solver, Rewritable) and solver.reach:
        answers.history = History(solver.reach)
    for n, (t, s) in enumerate(pairwise(grid.nodes)):
        before = denoiser.ledger.rows
        answers.step, answers.stage = n, 0
        x, state = drive(retold(solver, (x, state, t, s), answers.changes), answers)
        denoiser.ledger.count_step(n, denoiser.ledger.rows - before)
        if callback is not None:
            callback(n, s, x, answers.x0, denoiser.ledger)
    return x


@dataclass
class Answers:
    """Answers the queries of a run.

    x0:      the last one; step, stage: where the next query is.
    history: what a solver was told whose memory follows the guidance.
    """

    denoiser: Denoiser
    guide: Guide
    noise: Callable[[], Tensor] | None
    x0: Tensor
    step: int = 0
    stage: int = 0
    history: History | None = None

    def __call__(self, x: Tensor, node: Asked) -> Tensor:
        if node is None:
            return _draw_noise(self.noise, x)
        self.denoiser.stage, stage = self.stage, self.stage
        self.stage += 1
        if isinstance(node, Split):
            outputs = self.denoiser.x0(x, node.node, node.branches)
            self.x0 = outputs[-1]
            return torch.stack(outputs)
        moment = Moment(node, self.step, stage)
        outputs = self.denoiser.x0(x, node, self.guide.ask(moment))
        self.x0 = self._combine(outputs, x, moment)
        return self.x0

    def changes(self) -> Sequence[Revision]:
        """Returns how the solver's memory is revised after the first answer of a step."""
        return () if self.history is None else self.history.changes()

    def _combine(self, outputs: Sequence[Tensor], x: Tensor, moment: Moment) -> Tensor:
        if self.denoiser.forecast:
            moment = replace(moment, forecast=True)
        x0 = self.guide.combine(outputs, x, moment)
        if self.history is not None:
            plain = partial(self.guide.conditional, outputs, x, moment)
            self.history.note(x0, self.guide.guided, plain)
        return x0


def adds_noise(solver: Solver[Any], grid: TimeGrid) -> bool:
    """Returns whether a run asks for noise, by a dry run."""
    return any(None in step for step in dry_run(solver, grid.nodes))


def count_stage_calls(solver: Solver[Any], grid: TimeGrid) -> Counter[int]:
    """Returns how often a run asks for x0 as the first, second, .. call of its step."""
    counts = (len(step) - step.count(None) for step in dry_run(solver, grid.nodes))
    return Counter(chain.from_iterable(map(range, counts)))


def _check_guidance(solver: Solver[Any], guidance: Guidance) -> None:
    off = guidance.off and not isinstance(guidance, Thresholded)
    if brings_guidance(solver) and not off:
        raise SettingError(
            "this schedule brings its own guidance; drop the guidance scale, interval and threshold"
        )


def _draw_noise(noise: Callable[[], Tensor] | None, x: Tensor) -> Tensor:
    if noise is None:
        raise SettingError("this solver adds noise; give integrate a source of it")
    return send(noise(), x.device, x.dtype)
