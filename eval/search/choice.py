"""The choice among what was found: on validation, and one look at the test block."""

import math
import warnings
from collections.abc import Mapping
from typing import Any

from ... import __version__
from ...models.errors import SettingError
from ...models.load import embedded_names, read_card
from ...solvers import Schedule
from ...solvers.artefact import Artefact
from .identity import describe_search, find_ends, read_scores, write_scores
from .log import Trial, rank_trials
from .problem import BLOCKS, BlockName
from .search import OF_EACH, SHORTLIST, Search, SearchResult
from .strategies import HAND_MADE, Task

OVERFIT = 1.3  # test over train above this is told


def choose(search: Search, task: Task) -> SearchResult:
    """Returns the best on validation, with its scores and where it comes from.

    Raises:
        SettingError: if no candidate has a finite score.
    """
    validated = _validate(task)
    best_score, best = validated[0]
    scores = {
        "train": math.inf if best.score is None else best.score,
        "val": best_score,
        "test": _score_on_test(task, best.schedule),
    }
    named = [trial for _, trial in validated if trial.strategy in HAND_MADE][:OF_EACH]
    tested = [_score_named(task, trial) for trial in named]
    baseline = min(tested, key=lambda each: each[1], default=None)  # the rival may choose on test
    _warn_of_overfit(search.objective.name, scores)
    facts = _find_provenance(search, task, best, scores, baseline)
    chosen = best.schedule
    table = chosen if isinstance(chosen, Schedule) else Schedule.of_steps(chosen)
    return SearchResult(table.model_copy(update={"provenance": facts}), scores, baseline)


def _validate(task: Task) -> list[tuple[float, Trial]]:
    """Returns the shortlist with its scores on validation, best first."""
    shortlist = _make_shortlist(task)
    if not shortlist:
        raise SettingError("no candidate gave a finite score; check the network and the objective")
    scored = [(_score_block(task, trial.schedule, "validation"), trial) for trial in shortlist]
    return sorted(scored, key=lambda each: (each[0], each[1].id))


def _score_named(task: Task, trial: Trial) -> tuple[str, float]:
    label = str(trial.schedule.provenance.get("label", "?"))
    return label, _score_on_test(task, trial.schedule)


def _warn_of_overfit(objective: str, scores: Mapping[str, float]) -> None:
    if overfit(objective, scores) > OVERFIT:
        warnings.warn(
            f"on test noises the score is {scores['test']:.4g}, on training noises"
            f" {scores['train']:.4g}: the schedule fits its training noises; use more of them",
            UserWarning,
            stacklevel=2,
        )


def overfit(objective: str, scores: Mapping[str, float]) -> float:
    """Returns test / train as a ratio of errors."""
    train, test = scores["train"], scores["test"]
    if objective == "log_mse":
        return math.exp(0.5 * (test - train))
    return test / train if train > 0.0 else 1.0


def _make_shortlist(task: Task) -> list[Trial]:
    """Returns the best of all and of each strategy: their training scores differ in kind."""
    usable = [trial for trial in task.best() if trial.score is not None]
    chosen = usable[:SHORTLIST]
    for name in {trial.strategy for trial in usable}:
        chosen += rank_trials(trial for trial in usable if trial.strategy == name)[:OF_EACH]
    return list({trial.id: trial for trial in chosen}.values())


def _score_block(task: Task, schedule: Artefact, name: BlockName) -> float:
    """Returns the objective on a whole block; infinite where it is not finite."""
    value = task.objective(task.problem, schedule, task.problem.block(name))
    return value if math.isfinite(value) else math.inf


def _score_on_test(task: Task, schedule: Artefact) -> float:
    """On the test block: once, and from then on as it was written down."""
    known = read_scores(task.log.folder)
    if schedule.schedule_id not in known:
        known[schedule.schedule_id] = _score_block(task, schedule, "test")
        write_scores(task.log.folder, known)
    return known[schedule.schedule_id]


def _find_provenance(
    search: Search,
    task: Task,
    best: Trial,
    scores: Mapping[str, float],
    baseline: tuple[str, float] | None,
) -> dict[str, Any]:
    """Returns where a schedule comes from, as the artefact holds it."""
    problem, trials = search.problem, list(task.log.trials.values())
    mine = [trial for trial in trials if search.size.fits(trial.schedule)]
    return {
        **describe_search(search),
        "val_seeds": find_ends(problem.validation),
        "test_seeds": find_ends(problem.test),
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
