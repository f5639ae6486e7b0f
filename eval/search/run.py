"""A search from its start to its result: strategies in turn, a choice on validation, one test."""

import json
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from ... import __version__
from ...models.errors import ModelError, SettingError
from ...models.files import write_bytes
from ...models.load import embedded_names, read_card
from ...models.probe import are_alike, sketch
from ...models.reading import first_problem, parse_json, read_bytes
from ...samplers.guidance import Moment
from ...solvers import Schedule
from ...solvers.artefact import ANSWER, Artefact
from ..teacher import compute_digest
from .budget import Budget, Meter
from .log import Log, Trial, ranked
from .objective import Objective
from .placement import check_rows
from .problem import BLOCKS, BlockName, Problem
from .size import SearchSize
from .space import Space
from .strategies import Proposal, Task, names, strategy

AUTO = ("grid", "gits", "klub", "oss", "fit", "evolve", "grow", "refine")
OF_ROWS = ("grid", "fit", "refine")  # those that can search network rows
# of the budget; these use what they get
SHARES = {"evolve": 0.15, "fit": 0.15, "grow": 0.05, "refine": 0.5}
FINITE_SHARES = {"grid": 0.15}  # at most; others that end by themselves 0.05
SHORTLIST = 10  # best by training score that are scored on validation
OF_EACH = 3  # best of each strategy that are scored there too
T = TypeVar("T")
FACTS: TypeAdapter[dict[str, Any]] = TypeAdapter(dict[str, Any])
SCORES: TypeAdapter[dict[str, float]] = TypeAdapter(dict[str, float])
OVERFIT = 1.3  # test over train above this is told
IDENTITY = "search.json"  # in a folder: what its scores mean

Watch = Callable[[str, Task], None]  # called after every trial with the strategy's name


@dataclass(frozen=True, kw_only=True)
class Search:
    """Everything that decides a search.

    problem, objective, space: see there.
    size:       of the schedule wanted.
    strategies: names, in turn.
    budget:     for this size.
    folder:     of the log; made if it does not exist.
    seed:       of everything random.
    scored:     training noises on which a candidate is scored; gradients see all of them.
    settings:   of the strategies.
    """

    problem: Problem
    objective: Objective
    space: Space
    size: SearchSize
    strategies: tuple[str, ...] = AUTO
    budget: Budget
    folder: Path
    seed: int = 0
    scored: int = 256
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def noises(self) -> int:
        """Training noises that a candidate is scored on."""
        return min(self.scored, len(self.problem.train))

    @property
    def candidate_rows(self) -> int:
        """Network rows of one candidate."""
        return self.noises * self.size.amount * (self._branches if self.size.unit == "nfe" else 1)

    @property
    def evaluations(self) -> int:
        """Evaluations of the guided network that one candidate takes for a noise, about."""
        return -(-self.size.amount // (1 if self.size.unit == "nfe" else self._branches))

    @property
    def _branches(self) -> int:
        somewhere = Moment(self.problem.network.schedule.at(0.5))
        return len(self.problem.guidance.stateless().ask(somewhere))

    def choice_cost(self, validation: int, test: int) -> int:
        """Evaluations that the choice takes at most, on blocks of so many noises."""
        shortlist = SHORTLIST + OF_EACH * (len(self.strategies) - 1)
        return self.evaluations * (shortlist * validation + (1 + OF_EACH) * test)

    def check(self) -> None:
        """Raises SettingError for what cannot be searched, before any work is done."""
        if self.size.amount < 1:
            raise SettingError(f"{self.size.unit} must be at least 1, not {self.size.amount}")
        if self.scored < 1:
            raise SettingError(f"a candidate is scored on at least 1 noise, not {self.scored}")
        for name in self.strategies:
            strategy(name)
        self._check_size()
        least = {"candidates": 1.0, "evals": float(self.candidate_rows), "seconds": 0.0}
        if self.budget.amount < least[self.budget.kind]:
            raise SettingError(
                f"a budget of {self.budget} is too small for one candidate, which takes"
                f" {self.candidate_rows} network rows at {self.size}"
            )

    def _check_size(self) -> None:
        """Rows are searched by strategies of their own, and under guidance."""
        if self.size.unit == "nfe":
            self.space.base(self.size.amount)
            return
        if wrong := [name for name in self.strategies if name not in OF_ROWS]:
            raise SettingError(f"{wrong[0]} cannot search network rows; {', '.join(OF_ROWS)} can")
        if self.problem.cfg_scale == 1.0:
            raise SettingError(
                "rows are searched under guidance; give a guidance scale other than 1, or an NFE"
            )
        check_rows(self.size.amount)


@dataclass(frozen=True)
class SearchResult:
    """The result of a search.

    schedule: the best on validation, with its provenance.
    scores:   of it on train, validation and test.
    baseline: name and test score of the best named solver on its best grid, if any was tried.
    """

    schedule: Schedule
    scores: Mapping[str, float]
    baseline: tuple[str, float] | None


def run(search: Search, watch: Watch | None = None) -> SearchResult:
    """Spends what is left of the budget, chooses, and looks at the test block once.

    A search that was stopped goes on from its log; one whose budget is spent gives its result
    again. Several processes may run the same search on one folder.

    Raises:
        FewstepError: for a search that cannot be, a log of another search or a damaged one.
    """
    search.check()
    _check_same(search)
    search.problem.block("train")  # what is wrong with it shows before there is a log
    log = Log(search.folder)
    try:
        _same_search(search)
        task = _task(search, log)
        for name, span in spans(search.strategies):
            task.meter.span = span
            _stage(task, name, watch, must=search.strategies not in (AUTO, OF_ROWS))
        return _found(search, task)
    finally:
        log.close()


def spans(strategies: Sequence[str]) -> list[tuple[str, tuple[float, float]]]:
    """Which part of the budget each strategy may spend."""
    weights = {name: SHARES.get(name, FINITE_SHARES.get(name, 0.05)) for name in strategies}
    whole, first, out = sum(weights.values()), 0.0, []
    for name, weight in weights.items():
        last = 1.0 if name == strategies[-1] else first + weight / whole
        out.append((name, (first, last)))
        first = last
    return out


def _task(search: Search, log: Log) -> Task:
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


def _stage(task: Task, name: str, watch: Watch | None, must: bool) -> None:
    """One strategy until it ends or its share is spent; one that cannot run here is left out."""
    marker = task.log.folder / f"done-{name}-{task.size.mark}"
    if task.meter.used() >= 1.0 or (marker.exists() and name not in SHARES):
        return
    try:
        for proposal in strategy(name)(task):
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


# --- the choice


def _found(search: Search, task: Task) -> SearchResult:
    validated = _validated(task)
    best_score, best = validated[0]
    scores = {
        "train": math.inf if best.score is None else best.score,
        "val": best_score,
        "test": _test_score(task, best.schedule),
    }
    named = [trial for _, trial in validated if trial.strategy == "grid"][:OF_EACH]
    tested = [_named_score(task, trial) for trial in named]
    baseline = min(tested, key=lambda each: each[1], default=None)  # the rival may choose on test
    _tell_overfit(search.objective.name, scores)
    facts = provenance(search, task, best, scores, baseline)
    found = best.schedule
    table = found if isinstance(found, Schedule) else Schedule.of_steps(found)
    return SearchResult(table.model_copy(update={"provenance": facts}), scores, baseline)


def _validated(task: Task) -> list[tuple[float, Trial]]:
    """The shortlist with its scores on validation, best first."""
    shortlist = _shortlist(task)
    if not shortlist:
        raise SettingError("no candidate gave a finite score; check the network and the objective")
    scored = [(_score(task, trial.schedule, "validation"), trial) for trial in shortlist]
    return sorted(scored, key=lambda each: (each[0], each[1].id))


def _named_score(task: Task, trial: Trial) -> tuple[str, float]:
    label = str(trial.schedule.provenance.get("label", "?"))
    return label, _test_score(task, trial.schedule)


def _tell_overfit(objective: str, scores: Mapping[str, float]) -> None:
    if overfit(objective, scores) > OVERFIT:
        warnings.warn(
            f"on test noises the score is {scores['test']:.4g}, on training noises"
            f" {scores['train']:.4g}: the schedule fits its training noises; use more of them",
            UserWarning,
            stacklevel=2,
        )


def overfit(objective: str, scores: Mapping[str, float]) -> float:
    """test / train as a ratio of errors."""
    train, test = scores["train"], scores["test"]
    if objective == "log_mse":
        return math.exp(0.5 * (test - train))
    return test / train if train > 0.0 else 1.0


def _shortlist(task: Task) -> list[Trial]:
    """The best of all, and the best few of each strategy: their training scores differ in kind."""
    usable = [trial for trial in task.best() if trial.score is not None]
    chosen = usable[:SHORTLIST]
    for name in names():
        chosen += ranked(trial for trial in usable if trial.strategy == name)[:OF_EACH]
    return list({trial.id: trial for trial in chosen}.values())


def _score(task: Task, schedule: Artefact, name: BlockName) -> float:
    """The objective on a whole block; infinite where it is not finite."""
    value = task.objective(task.problem, schedule, task.problem.block(name))
    return value if math.isfinite(value) else math.inf


def _test_score(task: Task, schedule: Artefact) -> float:
    """On the test block: once, and from then on as it was written down."""
    path = task.log.folder / "test.json"
    known = _read(path, SCORES)
    if schedule.schedule_id not in known:
        known[schedule.schedule_id] = _score(task, schedule, "test")
        write_bytes(path, json.dumps(known).encode())
    return known[schedule.schedule_id]


def provenance(
    search: Search,
    task: Task,
    best: Trial,
    scores: Mapping[str, float],
    baseline: tuple[str, float] | None,
) -> dict[str, Any]:
    """Where a schedule comes from, as the artefact holds it."""
    problem, trials = search.problem, list(task.log.trials.values())
    mine = [trial for trial in trials if search.size.fits(trial.schedule)]
    return {
        **identity(search),
        "val_seeds": _ends(problem.validation),
        "test_seeds": _ends(problem.test),
        "noises": [len(problem.seeds_of(name)) for name in BLOCKS],
        "strategy": best.strategy,
        "strategies": list(search.strategies),
        "strategy_seed": search.seed,
        **({"rows": search.size.amount} if search.size.unit == "rows" else {}),
        "budget": {
            "candidates": len(mine),
            "model_evals": sum(trial.evals for trial in mine),
            "seconds": round(sum(trial.seconds for trial in mine), 1),
        },
        "scores": dict(scores),
        "baseline": None if baseline is None else {"name": baseline[0], "test": baseline[1]},
        "extras": ["afs"] if best.schedule.nfe < len(best.schedule.steps) else [],
        "free": sorted(search.space.free),
        **name_weights(problem.network.name),
        "code_version": __version__,
    }


def name_weights(model: str) -> dict[str, str]:
    """Returns the hash of the weights of a network that comes with the package."""
    return {"weights": read_card(model)["sha256"]} if model in embedded_names() else {}


def identity(search: Search) -> dict[str, Any]:
    """What two searches must share to be compared score by score."""
    problem = search.problem
    given = {"conditions": problem.conditions, "negative": problem.negative}
    return {
        **{
            name: {key: compute_digest(value) for key, value in each.items()}
            for name, each in given.items()
            if each
        },
        "model": problem.network.name,
        ANSWER: sketch(problem.network),
        "cfg_scale": problem.cfg_scale,
        "labels": list(problem.labels),
        "teacher": problem.teacher.choices(),
        "objective": search.objective.name,
        "train_seeds": _ends(problem.train),
        "scored": search.noises,
    }


def _ends(seeds: Sequence[int]) -> list[int]:
    """The first and last of consecutive seeds, as the artefact has it; else all of them."""
    seeds = list(seeds)
    return [seeds[0], seeds[-1]] if seeds == list(range(seeds[0], seeds[-1] + 1)) else seeds


def _same_search(search: Search) -> None:
    """Writes down what the scores of a folder mean, or refuses a folder where they mean another."""
    _check_same(search)
    path = search.folder / IDENTITY
    if not path.exists():
        write_bytes(path, json.dumps(identity(search), indent=2).encode())


def _check_same(search: Search) -> None:
    """Raises SettingError for a folder whose scores mean another."""
    path = search.folder / IDENTITY
    if not path.exists():
        return
    mine, theirs = json.loads(json.dumps(identity(search))), _read(path, FACTS)
    for name in dict.fromkeys([*mine, *theirs]):
        if not _same(name, mine.get(name), theirs.get(name)):
            raise SettingError(
                f"the log in {str(search.folder)!r} is of another search: its {name} is"
                f" {theirs.get(name)!r}, not {mine.get(name)!r}; give another --log"
            )


def check_memory(folder: Path) -> None:
    """Raises SettingError if what a search has written down in a folder is damaged."""
    _read(folder / IDENTITY, FACTS)
    _read(folder / "test.json", SCORES)


def _read(path: Path, kind: TypeAdapter[dict[str, T]]) -> dict[str, T]:
    """The JSON object in a file, empty if there is no file; raises SettingError for another."""
    if not path.exists():
        return {}
    try:
        body = read_bytes(path)
        parse_json(body)
        return kind.validate_json(body)
    except SettingError as error:
        raise SettingError(f"{str(path)!r} is damaged: {error}; give another --log") from error
    except ValidationError as error:
        raise SettingError(
            f"{str(path)!r} is damaged: {first_problem(error)}; give another --log"
        ) from error


def _same(name: str, mine: Any, theirs: Any) -> bool:
    """Equal; or, of a network's answers, alike."""
    if name == ANSWER and mine and isinstance(theirs, list):
        return all(isinstance(each, float) for each in theirs) and are_alike(mine, theirs)
    return bool(mine == theirs)
