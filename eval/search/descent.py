"""Gradient descent on a schedule: the loop of `grad`."""

import hashlib
import io
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from ...models.errors import FewstepError, NonFiniteError, SettingError
from ...models.files import write_bytes
from ...models.seeds import make_generator
from ...solvers import StepSchedule
from .guided import parameters_of
from .objective import rmse
from .problem import Block, Problem
from .student import Student

Progress = Callable[[int, float], float]  # (iterations, validation RMSE) -> share of budget gone


@dataclass(frozen=True, kw_only=True)
class Descent:
    """Settings of a gradient search.

    iterations: of Adam, at most; the rates fall as a cosine over them, or over the budget if that
                ends sooner.
    batch:      noises in each; drawn without repeats from the training block until it is used up.
    times:      rate of the times, 0 leaves them where they are; weights: of the weights.
    clip:       the norm that gradients are cut to.
    average:    of the moving average (EMA) that is judged and kept.
    every:      iterations between two looks at the validation block and the checkpoint.
    patience:   looks without a new best after which it stops; many, since the best often comes
                only when the rates have fallen.
    rows:       noises of the validation block that are looked at; None for all.
    seed:       of the order of the noises.
    """

    iterations: int = 2000
    batch: int = 32
    times: float = 2e-2
    weights: float = 1e-2
    clip: float = 1.0
    average: float = 0.98
    every: int = 25
    patience: int = 40
    rows: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("iterations", "batch", "every", "patience"):
            if getattr(self, name) < 1:
                raise SettingError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not (self.weights > 0.0 and self.clip > 0.0 and self.times >= 0.0):
            raise SettingError("the rates of the weights and the clip must be above 0")
        if not 0.0 <= self.average < 1.0:
            raise SettingError(f"average lies in [0, 1), not {self.average:g}; 0 is off")


@dataclass
class _State:
    """Where a descent is: what a checkpoint holds."""

    iteration: int = 0
    values: list[Tensor] = field(default_factory=list)
    average: list[Tensor] = field(default_factory=list)
    best: list[Tensor] = field(default_factory=list)
    score: float = math.inf
    stale: int = 0
    queue: list[int] = field(default_factory=list)
    share: float = 0.0
    adam: dict[str, Any] = field(default_factory=dict)
    generator: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.uint8))


@dataclass(frozen=True)
class DescentResult:
    """What a descent ends with.

    schedule:   the best on the validation block, of the moving average.
    validation: its RMSE there; start: that of what it started from.
    iterations: that were made.
    """

    schedule: StepSchedule
    validation: float
    start: float
    iterations: int


def descend(
    problem: Problem,
    start: StepSchedule,
    descent: Descent,
    checkpoint: Path | None = None,
    progress: Progress = lambda iterations, score: 0.0,
) -> DescentResult:
    """Lowers ln of the mean square error to the teacher's ends, from a schedule.

    Args:
        problem: its training block is learnt from, its validation block decides.
        start: fixes the number of steps, their orders, predictions and correctors, and AFS.
        checkpoint: a file that is written at every look, and gone on from if it is there.
        progress: called at every iteration; the search ends when it returns 1 or more.

    Raises:
        ModelError: for a network without gradients, before anything else is done.
        SettingError: for a checkpoint of something else.
    """
    run = _Run(problem, start, descent, checkpoint)
    while not run.done(progress):
        run.iterate()
    return run.found()


class _Run:
    """One descent."""

    def __init__(
        self, problem: Problem, start: StepSchedule, descent: Descent, checkpoint: Path | None
    ) -> None:
        start.check_process(problem.network.schedule)
        self.descent, self.checkpoint = descent, checkpoint
        self.parameters = parameters_of(start, problem)
        self.student = Student(problem, self.parameters)
        self.train, self.validation = problem.block("train"), problem.block("validation")
        if descent.rows is not None:
            self.validation = self.validation.first(descent.rows)
        groups = [
            {"params": self.parameters.times(), "lr": descent.times},
            {"params": self.parameters.weights(), "lr": descent.weights},
        ]
        self.adam = torch.optim.Adam(groups)
        self.generator = make_generator(descent.seed)
        self.key = self._key(start)
        values = self.parameters.values()
        self.state = _State(average=values, best=self.parameters.values())
        self.start = self._judged(values)
        self.state.score = self.start
        self._resume()

    def iterate(self) -> None:
        """One step of Adam, and of the average."""
        state, descent = self.state, self.descent
        gone = min(max(state.iteration / descent.iterations, state.share), 1.0)
        fall = 0.5 * (1.0 + math.cos(math.pi * gone))
        for group, rate in zip(
            self.adam.param_groups, (descent.times, descent.weights), strict=True
        ):
            group["lr"] = rate * (0.01 + 0.99 * fall)
        self.adam.zero_grad()
        if self._backward():
            torch.nn.utils.clip_grad_norm_(self.parameters.all(), descent.clip)
            self.adam.step()
            self.parameters.project()
        state.iteration += 1
        keep = min(descent.average, state.iteration / (state.iteration + 10.0))
        for mean, value in zip(state.average, self.parameters.values(), strict=True):
            mean.lerp_(value, 1.0 - keep)

    def done(self, progress: Progress) -> bool:
        """Looks at the validation block where it is time to, and says whether to stop."""
        state, descent = self.state, self.descent
        state.share = min(progress(state.iteration, state.score), 1.0)
        over = state.iteration >= descent.iterations or state.share >= 1.0
        if state.iteration and (over or state.iteration % descent.every == 0):
            self._look()
            over = over or state.stale >= descent.patience
        return over

    def found(self) -> DescentResult:
        state = self.state
        schedule = self.parameters.assign(state.best).schedule()
        return DescentResult(schedule, state.score, self.start, state.iteration)

    def _backward(self) -> bool:
        """Gradients of one batch; whether they are finite."""
        block = self._next()
        try:
            ends = self.student.ends(block)
        except NonFiniteError:
            return False
        error = (ends - block.ends.to(ends)).square().mean()
        error.log().backward()  # type: ignore[no-untyped-call]
        return all(
            bool(torch.isfinite(each.grad).all())
            for each in self.parameters.all()
            if each.grad is not None
        )

    def _next(self) -> Block:
        """The next batch of the training block."""
        size = min(self.descent.batch, len(self.train))
        if len(self.state.queue) < size:
            self.state.queue = torch.randperm(len(self.train), generator=self.generator).tolist()
        picked, self.state.queue = self.state.queue[:size], self.state.queue[size:]
        return self.train.pick(picked)

    def _look(self) -> None:
        """Judges the average, keeps it if it is the best, writes the checkpoint."""
        state = self.state
        score = self._judged(state.average)
        state.stale = 0 if score < state.score else state.stale + 1
        if score < state.score:
            state.score, state.best = score, [each.clone() for each in state.average]
        self._save()

    def _judged(self, values: list[Tensor]) -> float:
        """RMSE of values on the validation block, as the executor runs them."""
        held = self.parameters.values()
        try:
            schedule = self.parameters.assign(values).schedule()
            return rmse(self.student.problem.ends(schedule, self.validation), self.validation)
        except (FewstepError, ValueError):  # times that fell together
            return math.inf
        finally:
            self.parameters.assign(held)

    def _key(self, start: StepSchedule) -> str:
        """What a checkpoint belongs to."""
        problem = self.student.problem
        parts = [start.schedule_id, asdict(self.descent), problem.network.name, problem.cfg_scale]
        seeds = [self.train.seeds, self.validation.seeds, asdict(problem.teacher)]
        return hashlib.sha256(repr([parts, seeds]).encode()).hexdigest()

    def _save(self) -> None:
        if self.checkpoint is None:
            return
        state = self.state
        state.values, state.adam = self.parameters.values(), self.adam.state_dict()
        state.generator = self.generator.get_state()
        buffer = io.BytesIO()
        torch.save({"key": self.key, "start": self.start, **vars(state)}, buffer)
        write_bytes(self.checkpoint, buffer.getvalue())

    def _resume(self) -> None:
        if self.checkpoint is None or not self.checkpoint.exists():
            return
        try:
            body = torch.load(self.checkpoint, weights_only=True)
            key, self.start = body.pop("key"), body.pop("start")
        except (OSError, RuntimeError, EOFError, KeyError, UnpicklingError) as error:
            raise SettingError(
                f"{str(self.checkpoint)!r} is no checkpoint of a gradient search; move it away"
            ) from error
        if key != self.key:
            raise SettingError(
                f"{str(self.checkpoint)!r} belongs to another search; give each its own folder"
            )
        self.state = _State(**body)
        self.parameters.assign(self.state.values)
        self.adam.load_state_dict(self.state.adam)
        self.generator.set_state(self.state.generator)
