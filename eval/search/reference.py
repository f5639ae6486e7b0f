"""The size of the reference solution, where a search is given a time.

A search spends its time on three things: on the reference solution, which is where the teacher
takes all noises, on its strategies, and on the choice among what they found. A budget of time holds
for all three together, so the first and the last are sized to a share of it: fewer noises, and
where that is not enough, fewer evaluations. A folder keeps the size that it began with.
"""

import math
import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Annotated, Self

from pydantic import Field

from ...models.errors import SettingError
from ...models.files import hold_file, write_bytes
from ...models.ledger import Ledger
from ...models.reading import StrictModel, load_kept
from ...samplers.noise import Noise, draw_noise
from ...samplers.plan import make_plan
from .budget import Budget
from .identity import IDENTITY_FILE
from .problem import BLOCKS, Block, Problem
from .search import Search

SHARE = 0.5  # of the time left once the network is loaded: the reference, and the choice
MOST = 0.8  # the same of the least reference, which is refused if it takes more
PROBE = 0.02  # of the budget, in which the speed of the network is measured
LEAST_NOISES = (32, 16, 32)
LEAST_NFE, LEAST_RATIO = 12, 3  # evaluations, and how many times those of the schedules
PARTS = 1000  # in which numbers of noises shrink
RIVALS = 0.2  # of the budget, which the choice among diffusers' schedulers may take at most
LEFT = 0.02  # of the budget, which strategies have even where the reference took too long
REFERENCE_FILE, LOCK = "reference.json", "reference.lock"
Count = Annotated[int, Field(ge=1)]


class Reference(StrictModel):
    """How large a reference solution is.

    noises: of the training, the validation and the test block.
    nfe:    evaluations of the teacher for each of them.
    """

    noises: tuple[Count, Count, Count]
    nfe: Count

    @classmethod
    def of(cls, problem: Problem) -> Self:
        """Returns the one that a problem has."""
        train, validation, test = (len(problem.seeds_of(name)) for name in BLOCKS)
        nfe = make_plan(problem.network.schedule, **problem.teacher.choices()).nfe
        return cls(noises=(train, validation, test), nfe=nfe)

    def apply_to(self, problem: Problem) -> Problem:
        """Returns the problem with the first noises of each block, and these evaluations."""
        teacher = problem.teacher
        if teacher.nfe is not None:
            teacher = replace(teacher, nfe=self.nfe)
        train, validation, test = self.noises
        return replace(
            problem,
            teacher=teacher,
            train=problem.train[:train],
            validation=problem.validation[:validation],
            test=problem.test[:test],
        )

    def __str__(self) -> str:
        train, validation, test = self.noises
        return f"{self.nfe} evaluations of {train}, {validation} and {test} noises"


class SizedReference(StrictModel):
    """The size of a folder's reference: the one asked for, and the one there was time for."""

    asked: Reference
    used: Reference

    @classmethod
    def load(cls, folder: Path) -> Self | None:
        """Returns what a folder keeps, if anything; raises SettingError for a damaged file."""
        return load_kept(cls, folder / REFERENCE_FILE, "give another --log")


def fit_reference(
    asked: Reference, least: Reference, cost: Callable[[Reference], float], seconds: float
) -> Reference | None:
    """Returns the largest reference that costs no more than so many seconds; None if none does.

    Args:
        asked: the largest. Its numbers of noises shrink together, and only then its evaluations.
        least: no number falls below its own.
        cost: seconds of a reference; rises with its noises and with its evaluations.
        seconds: that it may cost.
    """

    def with_part(part: int) -> Reference:
        pairs = zip(asked.noises, least.noises, strict=True)
        noises = tuple(max(low, n * part // PARTS) for n, low in pairs)
        return Reference(noises=noises, nfe=asked.nfe)  # type: ignore[arg-type]

    def with_nfe(nfe: int) -> Reference:
        return Reference(noises=least.noises, nfe=nfe)

    parts, fewer = range(PARTS + 1), range(least.nfe, asked.nfe)
    if fit := bisect_right(parts, seconds, key=lambda part: cost(with_part(part))):
        return with_part(parts[fit - 1])
    fit = bisect_right(fewer, seconds, key=lambda nfe: cost(with_nfe(nfe)))
    return with_nfe(fewer[fit - 1]) if fit else None


def measure_speed(problem: Problem, seconds: float) -> float:
    """Returns the evaluations a second of the guided network, in batches of the problem's size.

    seconds: about as long as this takes after a first call; a slow network has a smaller batch.
    """
    problem, rows = replace(problem, ledger=Ledger()), 1
    rates: dict[int, list[float]] = {}
    _time_batch(problem, rows)  # a first call prepares much
    start = time.perf_counter()
    while not rates or time.perf_counter() - start < seconds:
        rates.setdefault(rows, []).append(rows / max(_time_batch(problem, rows), 1e-9))
        rows = min(2 * rows, problem.batch)
    return median(rates[max(rates)])


def _time_batch(problem: Problem, rows: int) -> float:
    """Returns seconds of one evaluation of so many training noises."""
    seeds = problem.seeds_of("train")
    chosen = tuple(seeds[i % len(seeds)] for i in range(rows))
    noise = draw_noise(Noise(chosen, problem.network.shape), problem.network.schedule)
    block = Block("train", chosen, problem.labels_of(chosen), noise, noise)
    start = time.perf_counter()
    problem.answers(block, noise, problem.network.schedule.at(0.5), None)
    return time.perf_counter() - start


@dataclass
class Timetable:
    """A budget of time for a whole command, shared out as the command goes on.

    budget:  of all searches of the command.
    started: when it began, as `time.perf_counter` tells it.
    speed:   evaluations of the guided network a second, once they were measured.
    count:   searches that share the budget.
    """

    budget: Budget
    started: float
    speed: float = field(init=False, default=math.inf)
    count: int = field(init=False, default=1)

    def size(self, searches: Sequence[Search]) -> Sequence[Search]:
        """Returns the searches with a reference that is small enough, and works it out.

        Raises:
            SettingError: if there is no time even for the least one.
        """
        problem, folder = searches[0].problem, searches[0].folder
        self.count = len(searches)
        self.speed = measure_speed(problem, PROBE * self.budget.amount)
        with hold_file(folder / LOCK):  # other processes wait for it, and find it
            if SizedReference.load(folder) is None and not (folder / IDENTITY_FILE).exists():
                asked = Reference.of(problem)
                body = SizedReference(asked=asked, used=self._fitting(asked, searches))
                write_bytes(folder / REFERENCE_FILE, body.model_dump_json().encode())
            searches = resize(searches)
            for name in BLOCKS:
                searches[0].problem.block(name)
        return searches

    def grant(self, searches: Sequence[Search]) -> Search:
        """Returns the first of the searches that are still to be run, with the time it may take.

        It is written down, so that a search which has spent it has spent it for good.
        """
        search = searches[0]
        path = search.folder / f"time-{search.size.mark}-{self.budget}"
        if not path.exists():
            noises = _count_noises(search.problem)
            choices = sum(self._predict_choice(each, *noises) for each in searches)
            seconds = (self._left() - choices) / len(searches)
            seconds = max(seconds, LEFT * self.budget.amount / len(searches))
            write_bytes(path, f"{seconds:.2f}".encode())
        granted = Budget("seconds", float(path.read_text()))
        return replace(search, budget=granted, rival_seconds=self._most_of_rivals)

    @property
    def _most_of_rivals(self) -> float:
        """Seconds that each search may take to choose among diffusers' schedulers."""
        return RIVALS * self.budget.amount / self.count

    def _predict_choice(self, search: Search, validation: int, test: int) -> float:
        """Returns the seconds that the choices of a search take."""
        rivals = min(search.rival_cost(validation) / self.speed, self._most_of_rivals)
        return search.choice_cost(validation, test) / self.speed + rivals

    def _left(self) -> float:
        return self.budget.amount - (time.perf_counter() - self.started)

    def _fitting(self, asked: Reference, searches: Sequence[Search]) -> Reference:
        """Returns the largest reference for which there is time."""
        problem, left = searches[0].problem, self._left()
        least = _least(asked, searches)

        def cost(reference: Reference) -> float:
            _, validation, test = reference.noises
            choices = sum(self._predict_choice(each, validation, test) for each in searches)
            return reference.nfe * sum(reference.noises) / self.speed + choices

        if cost(least) > MOST * left:
            times = 1.0 + (cost(least) / MOST - left) / self.budget.amount
            raise SettingError(
                f"the budget is too small: {least} and the final choice take about"
                f" {cost(least):.0f}s here, and {max(left, 0.0):.0f}s are left for the search; give"
                f" {math.ceil(10 * times) / 10:.1f} times as much time, or candidates=N"
            )
        reference = fit_reference(asked, least, cost, SHARE * left) or least
        while reference.nfe > least.nfe and not _is_possible(problem, reference):
            reference = reference.model_copy(update={"nfe": reference.nfe - 1})
        return reference


def resize(searches: Sequence[Search]) -> Sequence[Search]:
    """Returns the searches with the reference that their folder keeps, if it keeps one.

    Raises:
        SettingError: if another one was asked for there.
    """
    problem, folder = searches[0].problem, searches[0].folder
    sized, asked = SizedReference.load(folder), Reference.of(problem)
    if sized is None:
        return searches
    if sized.asked != asked:
        raise SettingError(
            f"the log in {str(folder)!r} is of another search: its reference was to be"
            f" {sized.asked}, not {asked}; give another --log"
        )
    problem = sized.used.apply_to(problem)
    return [replace(search, problem=problem) for search in searches]


def _least(asked: Reference, searches: Sequence[Search]) -> Reference:
    """Returns the smallest reference that is worth having, and no larger than the one asked for."""
    problem = searches[0].problem
    nfe = max(LEAST_NFE, *(LEAST_RATIO * each.evaluations for each in searches))
    train, validation, test = map(min, asked.noises, LEAST_NOISES)
    nfe = asked.nfe if problem.teacher.nfe is None else min(nfe, asked.nfe)
    return Reference(noises=(train, validation, test), nfe=nfe)


def _is_possible(problem: Problem, reference: Reference) -> bool:
    """Returns whether the teacher can spend so many evaluations."""
    try:
        reference.apply_to(problem)
    except SettingError:
        return False
    return True


def _count_noises(problem: Problem) -> tuple[int, int]:
    return len(problem.validation), len(problem.test)
