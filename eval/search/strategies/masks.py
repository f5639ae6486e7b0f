"""Masks: which evaluations of a run of named steps are full, and how the others are forecast.

`mask-even` spreads the full calls as anyone would; `mask-dp` takes the best by the inner products
of one full run, with and without the measured growth of errors; `mask-anneal` and `mask-climb`
score masks on the ends of runs, where every call counts as it does in the end.

A step of annealing or climbing depends on the seed and on scores alone, and these stand in the log:
so a search that goes on walks the same way again, without asking the network, to where it stopped.
"""

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from random import Random
from statistics import median, stdev

import numpy as np
from torch import Tensor

from ....models.caching.predictors import Taylor, take_predictor
from ....solvers import Schedule
from ....solvers.cached_calls import CachedCalls
from ..log import Trial
from ..mask_run import find_weights, measure_gains, measure_gram
from ..masks import Array, find_best_mask, list_errors, sum_gaps, tabulate_errors
from ..trajectories import keep_tensors
from ..uncached import list_even
from .base import Proposal, Task

PREDICTORS = ("taylor:order=1", "foca", "newton:order=2")  # of `auto`
NOISES, GAIN_NOISES = 16, 4  # of the full run, and of the runs that skip one call
DEEPEST = 2  # values that a predictor of the dynamic programme looks at
POWERS = (1.0, 0.5)  # of local errors in the sum that is made least
MOVES = 100  # of a chain
SAMPLED = 8  # neighbours whose scores set the first temperature,
HOTTER, COOLER = 1.0, 1e2  # times their median change; and the last is so much lower
NEAR, NEARBY = 3, 0.7  # calls that one is moved at most, and how often no further
TWICE, OTHER = 0.1, 0.1  # shares of moves of two calls, and to another predictor
NEXT = 2  # calls that one is moved at most in the swaps that are tried first
APART = 4  # calls that differ between starts
STARTS = 6  # of climbs, at most
REFITTED = "mask-refit"  # a strategy, whose masks are on other tables
PARTS, WORTH, PATIENCE = 8, 2.0, 2  # two climbs in a row that gain less than two standard errors

Scored = Generator[Proposal, None, float]


@dataclass(frozen=True)
class MaskedRun:
    """Full calls and the predictor of the others."""

    mask: tuple[int, ...]
    predictor: str


class Masks:
    """The masks of a task on its base, or on another table: schedules of them, and their scores."""

    def __init__(self, task: Task, plain: Schedule | None = None) -> None:
        self.task, self.calls, self.full = task, task.size.nfe, task.size.amount
        self.plain = plain or Schedule.of_steps(task.space.base(self.calls))
        self.predictors: Sequence[str] = task.settings.get("predictors", PREDICTORS)

    def make(self, candidate: MaskedRun, label: str = "") -> Schedule:
        """Returns the schedule of a candidate; the label is what a person calls it."""
        cache = CachedCalls(compute=candidate.mask, predictor=candidate.predictor)
        facts = {"label": label} if label else {}
        return self.plain.model_copy(update={"provenance": facts}).with_cache(cache)

    def score(self, candidate: MaskedRun) -> Scored:
        """Proposes a candidate that was not tried yet, and returns its score."""
        schedule, trials = self.make(candidate), self.task.log.trials
        if schedule.schedule_id not in trials:
            yield Proposal(schedule)
        trial = trials.get(schedule.schedule_id)  # none if another process is at it
        return math.inf if trial is None or trial.score is None else trial.score

    def list_known(self, without: Sequence[str]) -> list[MaskedRun]:
        """Returns what other strategies have tried, best first."""
        return [_read(each) for each in self.task.best() if each.strategy not in without]

    @property
    def mark(self) -> str:
        """In names of files of what is measured on the table and the scored noises."""
        return f"{self.plain.schedule_id[:12]}-{len(self.task.scored)}"

    def gram(self) -> tuple[Array, Array]:
        """Returns the inner products of a full run and the gains of its errors."""
        gram, gains = keep_tensors(self.task, f"mask-{self.mark}", self._measure)
        return gram.numpy(), gains.numpy()

    def _measure(self) -> tuple[Tensor, Tensor]:
        problem, scored = self.task.problem, self.task.scored
        few, fewer = (scored.first(min(n, len(scored))) for n in (NOISES, GAIN_NOISES))
        gram = measure_gram(problem, self.plain, few)
        return gram, measure_gains(problem, self.plain, fewer, gram)


def _read(trial: Trial) -> MaskedRun:
    schedule = trial.schedule
    assert isinstance(schedule, Schedule)
    assert schedule.cache is not None
    return MaskedRun(schedule.cache.compute, schedule.cache.predictor)


def propose_even(task: Task) -> Iterator[Proposal]:
    """Full calls at even distances: from the start to the end, and after the first two."""
    masks = Masks(task)
    for predictor, (name, mask) in product(masks.predictors, list_even(masks.calls, masks.full)):
        yield Proposal(masks.make(MaskedRun(mask, predictor), f"{name}, {predictor}"))


def propose_best(task: Task) -> Iterator[Proposal]:
    """The best masks by the sums of local errors, for every predictor of two values at most."""
    masks = Masks(task)
    gram, gains = masks.gram()
    for predictor in masks.predictors:
        weigh, depth = find_weights(predictor, masks.calls), take_predictor(predictor).depth
        if weigh is None or depth is None or depth > DEEPEST:
            continue
        errors = tabulate_errors(gram, weigh)
        for power, weights in product(POWERS, (np.ones_like(gains), gains)):
            mask = find_best_mask(sum_gaps((errors * weights) ** power), masks.full)
            yield from _once(masks.score(MaskedRun(mask, predictor)))


def _once(scored: Scored) -> Iterator[Proposal]:
    yield from scored


def anneal(task: Task) -> Iterator[Proposal]:
    """One chain of moves from the best mask so far, with the temperature falling geometrically.

    It starts at the median change of score by a move and ends at a hundredth of that: ten times as
    hot, as in arXiv:2609.39343, a chain of so few moves only strays. Moves are those of
    arXiv:2606.13496: one swap or two, most of them near.
    """
    masks = Masks(task)
    known = masks.list_known(("mask-anneal", REFITTED))
    if not known or masks.full in (1, masks.calls):
        return
    here = known[0]
    score = yield from masks.score(here)
    changes = []
    for n in range(SAMPLED):
        other = yield from masks.score(_move(masks, here, Random(f"{task.seed} first {n}")))
        changes.append(abs(other - score))
    hottest = HOTTER * median(changes)
    moves = int(task.settings.get("moves", MOVES))
    for n in range(moves):
        rng = Random(f"{task.seed} move {n}")
        child = _move(masks, here, rng)
        theirs = yield from masks.score(child)
        heat = hottest * COOLER ** (-n / max(moves - 1, 1))
        if theirs <= score or rng.random() < math.exp((score - theirs) / max(heat, 1e-300)):
            here, score = child, theirs


def _move(masks: Masks, candidate: MaskedRun, rng: Random) -> MaskedRun:
    """Returns a neighbour: with one call swapped or two, or with another predictor."""
    others = [each for each in masks.predictors if each != candidate.predictor]
    if others and rng.random() < OTHER:
        return MaskedRun(candidate.mask, rng.choice(others))
    mask = candidate.mask
    for _ in range(2 if rng.random() < TWICE else 1):
        swaps = list_swaps(mask, masks.calls)
        near = [(a, b) for a, b in swaps if abs(a - b) <= NEAR]
        mask = swap(mask, *rng.choice(near if near and rng.random() < NEARBY else swaps))
    return MaskedRun(mask, candidate.predictor)


def list_swaps(mask: tuple[int, ...], calls: int) -> list[tuple[int, int]]:
    """Returns every full call but the first with every skipped one."""
    skipped = [call for call in range(calls) if call not in mask]
    return list(product(mask[1:], skipped))


def swap(mask: tuple[int, ...], old: int, new: int) -> tuple[int, ...]:
    """Returns the mask with one full call in another place."""
    return tuple(sorted({*mask, new} - {old}))


def climb(task: Task) -> Iterator[Proposal]:
    """Climbs from the best masks, from several that differ, each to where no swap is better.

    Near swaps are tried first, and those of low predicted cost; the first that is better is taken.
    Two climbs in a row that gain less than two standard errors end it (arXiv:2609.39343).
    """
    masks = Masks(task)
    known = masks.list_known(("mask-climb", "mask-anneal", REFITTED))
    if not known or masks.full in (1, masks.calls):
        return
    predict = make_guess(masks)
    best, done, idle = math.inf, list[MaskedRun](), 0
    for start in _list_apart(known)[:STARTS]:
        if any(_distance(start, each) < APART for each in done):
            continue
        end, score = yield from _climb(masks, start, predict)
        done.append(end)
        gained = best - score > WORTH * _standard_error(masks, end)
        best, idle = min(best, score), 0 if gained else idle + 1
        if idle == PATIENCE:
            return


def _climb(
    masks: Masks, here: MaskedRun, predict: Callable[[MaskedRun], float]
) -> Generator[Proposal, None, tuple[MaskedRun, float]]:
    """Returns a candidate that none of its neighbours is better than, and its score."""
    score = yield from masks.score(here)
    better = True
    while better:
        better = False
        for child in list_neighbours(masks, here, predict):
            theirs = yield from masks.score(child)
            if theirs < score:
                here, score, better = child, theirs, True
                break
    return here, score


def list_neighbours(
    masks: Masks, here: MaskedRun, predict: Callable[[MaskedRun], float]
) -> list[MaskedRun]:
    """Returns near swaps by predicted cost, then the other predictors, then all other swaps."""
    near, far = list[MaskedRun](), list[MaskedRun]()
    for old, new in list_swaps(here.mask, masks.calls):
        group = near if abs(old - new) <= NEXT else far
        group.append(MaskedRun(swap(here.mask, old, new), here.predictor))
    others = [MaskedRun(here.mask, each) for each in masks.predictors]
    return [*sorted(near, key=predict), *others, *sorted(far, key=predict)]


def make_guess(masks: Masks) -> Callable[[MaskedRun], float]:
    """Returns the sum of local errors, weighted by how they grow, as a guess of a score."""
    gram, gains = masks.gram()
    usual = partial(Taylor().weights, calls=masks.calls)

    def predict(candidate: MaskedRun) -> float:
        weigh = find_weights(candidate.predictor, masks.calls) or usual
        errors = list_errors(gram, candidate.mask, weigh)
        return float((np.sqrt(errors * gains)).sum())

    return predict


def _list_apart(known: Sequence[MaskedRun]) -> list[MaskedRun]:
    """Returns the best of them, each at least so many calls from the others."""
    apart: list[MaskedRun] = []
    for each in known:
        if all(_distance(each, other) >= APART for other in apart):
            apart.append(each)
    return apart


def _distance(a: MaskedRun, b: MaskedRun) -> int:
    """Returns how many calls are full in one mask alone."""
    return len({*a.mask} ^ {*b.mask})


def _standard_error(masks: Masks, candidate: MaskedRun) -> float:
    """Returns that of a score, from its values on parts of the training noises."""
    task = masks.task
    block, schedule = task.scored, masks.make(candidate)
    size = len(block) // PARTS
    if not size:
        return 0.0
    ends = task.problem.ends(schedule, block)
    rows = [range(part * size, (part + 1) * size) for part in range(PARTS)]
    scores = [task.objective.of(ends[list(each)], block.pick(each)) for each in rows]
    return stdev(scores) / math.sqrt(PARTS)
