"""A search from its start to its result: strategies in turn, then the choice."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate

from ...models.errors import ModelError
from .budget import Meter
from .choice import choose
from .identity import check_identity, write_identity
from .log import Log, Trial
from .search import Search, SearchResult
from .strategies import STRATEGIES, Proposal, Task, strategies_of

Watch = Callable[[str, Task], None]  # called after every trial with the strategy's name


def run(search: Search, watch: Watch | None = None) -> SearchResult:
    """Spends what is left of the budget, chooses, and looks at the test block once.

    A search that was stopped goes on from its log; one whose budget is spent gives its result
    again. Several processes may run the same search on one folder.

    Raises:
        FewstepError: for a search that cannot be, a log of another search or a damaged one.
    """
    with explore(search, watch) as task:
        return choose(search, task)


@contextmanager
def explore(search: Search, watch: Watch | None = None) -> Iterator[Task]:
    """Spends what is left of the budget, and gives the task with all that was tried in its log.

    Raises:
        FewstepError: as `run`.
    """
    search.check()
    check_identity(search)
    search.problem.block("train")  # what is wrong with it shows before there is a log
    log = Log(search.folder)
    try:
        write_identity(search)
        task = make_task(search, log)
        usual = strategies_of(search.size.unit)
        auto = search.strategies[: len(usual)] == usual
        for name, span in spans(search.strategies):
            task.meter.span = span
            _run_strategy(task, name, watch, must=not auto)
        yield task
    finally:
        log.close()


def spans(strategies: Sequence[str]) -> list[tuple[str, tuple[float, float]]]:
    """Returns which part of the budget, from 0 to 1, each strategy may spend."""
    ends = list(accumulate(STRATEGIES.get(name).share for name in strategies))
    starts = [0.0, *ends[:-1]]
    return [
        (name, (start / ends[-1], end / ends[-1]))
        for name, start, end in zip(strategies, starts, ends, strict=True)
    ]


def make_task(search: Search, log: Log) -> Task:
    problem = search.problem
    scored = problem.block("train").first(search.noises)  # the teacher is no part of the budget
    meter = Meter(
        search.budget, log, search.size, lambda: problem.evaluations, search.candidate_rows
    )
    return Task(
        problem=problem,
        objective=search.objective,
        space=search.space,
        scored=scored,
        size=search.size,
        log=log,
        meter=meter,
        seed=search.seed,
        settings=search.settings,
    )


def _run_strategy(task: Task, name: str, watch: Watch | None, must: bool) -> None:
    """One strategy until it ends or its share is spent; one that cannot run here is left out."""
    strategy = STRATEGIES.get(name)
    marker = task.log.folder / f"done-{name}-{task.size.mark}"
    if task.meter.used() >= 1.0 or (marker.exists() and not strategy.again):
        return
    try:
        for proposal in strategy.propose(task):
            if evaluate(task, name, proposal) and watch is not None:
                watch(name, task)
            task.log.refresh()  # what others did counts
            if task.meter.used() >= 1.0:
                return
    except ModelError as error:
        if must:
            raise
        warnings.warn(f"strategy {name} was left out: {error}", UserWarning, stacklevel=2)
    marker.touch()


def evaluate(task: Task, name: str, proposal: Proposal) -> bool:
    """Scores a proposal and writes it to the log; False if that was done, or is being done."""
    schedule = proposal.schedule
    with task.log.claim(schedule.schedule_id) as mine:
        if not mine:
            return False
        score = task.objective(task.problem, schedule, task.scored)
        rows, seconds = task.meter.since()
        trial = Trial.of(
            schedule,
            score,
            strategy=name,
            parent=proposal.parent,
            seed=task.seed,
            evals=rows,
            seconds=seconds,
        )
        task.log.append(trial)
        task.meter.mark()
    return True
