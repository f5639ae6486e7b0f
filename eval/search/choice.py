"""The choice among what was found: on validation, and one look at the test block."""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

from torch import Tensor

from ... import __version__
from ...models.errors import SettingError
from ...models.probe import hash_loaded
from ...models.weights import hash_weights
from ...samplers.grid import choose_default_grid
from ...samplers.plan import make_plan
from ...solvers import Schedule
from ...solvers.artefact import LOADED, PARTS, Artefact
from ...solvers.linear import Encoder
from ..cache_worth import list_plain_runs
from .columns import judge_ends, reach_ends
from .identity import TestScore, describe_search, find_ends, read_scores, write_scores
from .last_row import choose_last_row, describe_choice, judge_last_rows
from .log import Trial, rank_trials
from .plain_rival import fit_plain_run
from .problem import BLOCKS, Block, BlockName, Problem
from .rivals import choose_search_rivals, reach_rival_ends
from .search import OF_EACH, SHORTLIST, Search, SearchResult
from .strategies import HAND_MADE, Task
from .strategies.masks import REFITTED
from .uncached import describe_cache, measure_cost

OVERFIT = 1.3  # test over train above this is told


def choose(search: Search, task: Task) -> SearchResult:
    """Returns the best on validation, with its scores and where it comes from.

    The last step of a table is chosen there too; see `last_row`.

    Raises:
        SettingError: if no candidate has a finite score.
    """
    validated = _validate(task)
    best = validated[0][1]
    chosen, row_facts = _choose_last_row(search, best)
    scores = {
        "train": _score_block(task, chosen, "scored"),
        "val": _score_block(task, chosen, "validation"),
    }
    rivals = choose_search_rivals(search)
    rival, looked = None, dict[str, Any]()
    if search.looks:
        tested = _score_on_test(search, task, chosen)
        linear = _score_linear(search, task, chosen, validated)
        rival = _find_best_hand_made(search, task, validated, rivals.specs)
        scores["test"] = tested.score
        _warn_of_overfit(search.objective.name, scores)
        looked = {
            "baseline": None if rival is None else {"name": rival[0], "test": rival[1].score},
            "columns": _describe_columns(search, task, {"searched": tested, **linear}, rival),
        }
    facts = {
        **_find_provenance(search, task, best, scores),
        "rivals_left_out": rivals.left_out,
        "last_row": row_facts,
        "reference_end": None if search.end is None else search.end.model_dump(mode="json"),
        **looked,
        **_describe_cache(search, chosen),
    }
    baseline = None if rival is None else (rival[0], rival[1].score)
    return SearchResult(chosen.model_copy(update={"provenance": facts}), scores, baseline)


def _find_best_hand_made(
    search: Search,
    task: Task,
    validated: Sequence[tuple[float, Trial]],
    specs: Sequence[str],
) -> tuple[str, TestScore] | None:
    """Returns the best of named solvers and of diffusers' schedulers; it may be chosen on test."""
    named = [trial for _, trial in validated if trial.strategy in HAND_MADE][:OF_EACH]
    scored = [(_label(each), _score_on_test(search, task, _make_table(each))) for each in named]
    for spec in specs:
        name, reach = f"diffusers {spec}", partial(reach_rival_ends, search, spec)
        written = f"{name}, {search.size.mark}"  # other sizes may stand in the same folder
        scored.append((name, _score_ends_on_test(search, task, written, reach)))
    return min(scored, key=lambda each: each[1].score, default=None)


def _make_table(trial: Trial) -> Schedule:
    """Returns the table of a trial, so that one run has one id whatever made it."""
    schedule = trial.schedule
    return schedule if isinstance(schedule, Schedule) else Schedule.of_steps(schedule)


def _choose_last_row(search: Search, best: Trial) -> tuple[Schedule, dict[str, Any] | None]:
    """Returns a table with the last step that is best on validation, and what is said of it.

    Steps whose decisions were searched, or named, are left as they are; so are those of a mask, and
    those that a correction was learnt for.
    """
    table = _make_table(best)
    if not isinstance(best.schedule, Schedule) or table.cache or table.correction:
        return table, None
    problem = search.problem
    block = problem.block("validation")
    rows = judge_last_rows(problem, best.schedule, block, search.features)
    chosen = choose_last_row(rows)
    return chosen.schedule, describe_choice(rows, chosen)


def _score_linear(
    search: Search, task: Task, chosen: Schedule, validated: Sequence[tuple[float, Trial]]
) -> dict[str, TestScore]:
    """Returns the score of the best linear table beside one that goes beyond, if it does."""
    tables = (trial for _, trial in validated if trial.linear and trial.strategy not in HAND_MADE)
    best = next(tables, None)
    if not (chosen.functions or chosen.correction) or best is None:
        return {}
    return {"linear": _score_on_test(search, task, _choose_last_row(search, best)[0])}


def _describe_columns(
    search: Search,
    task: Task,
    scores: dict[str, TestScore],
    rival: tuple[str, TestScore] | None,
) -> dict[str, Any]:
    """Returns both columns on test noises: of scores, the best hand-made and the default."""
    names = {}
    if rival is not None:
        names["hand_made"], scores["hand_made"] = rival
    if task.size.unit == "nfe":
        label, default = _encode_default(search.problem, task.nfe)
        names["default"], scores["default"] = label, _score_on_test(search, task, default)
    seer = search.features
    return {
        "noises": len(search.problem.test),
        "extractor": None if seer is None else seer.extractor.name,
        **{name: _write_columns(each, names.get(name)) for name, each in scores.items()},
    }


def _describe_cache(search: Search, chosen: Schedule) -> dict[str, Any]:
    """Returns the facts of the cache that a schedule brings, if it brings one."""
    if chosen.cache is None:
        return {}
    problem = search.problem
    effective, parts = measure_cost(problem, chosen)
    base, nfe = search.space.solver, round(effective)
    beside = list_plain_runs(problem.network.name, base, nfe, problem.guidance)
    if REFITTED in search.strategies:
        beside.append(fit_plain_run(problem, base, nfe, search.folder))
    plain = Schedule.of_steps(search.space.base(chosen.nfe))
    facts = {"effective": round(effective, 3), **describe_cache(problem, chosen, plain, beside)}
    return {PARTS: parts, LOADED: hash_loaded(problem.network), "cache": facts}


def _write_columns(score: TestScore, name: str | None) -> dict[str, Any] | None:
    if score.columns is None:
        return None
    return {**({} if name is None else {"name": name}), **score.columns.model_dump(mode="json")}


def _encode_default(problem: Problem, nfe: int) -> tuple[str, Schedule]:
    """Returns what `sample` draws with where nothing but an NFE is asked for, and its name."""
    plan = make_plan(problem.network.schedule, nfe=nfe)
    assert isinstance(plan.settings, Encoder)
    grid = choose_default_grid(problem.network.schedule, nfe)
    return f"{plan.settings.info.name} on {grid}", plan.settings.encode(plan.grid)


def _validate(task: Task) -> list[tuple[float, Trial]]:
    """Returns the shortlist with its scores on validation, best first."""
    shortlist = _make_shortlist(task)
    if not shortlist:
        raise SettingError("no candidate gave a finite score; check the network and the objective")
    scored = [(_score_block(task, trial.schedule, "validation"), trial) for trial in shortlist]
    return sorted(scored, key=lambda each: (each[0], each[1].id))


def _label(trial: Trial) -> str:
    return str(trial.schedule.provenance.get("label", "?"))


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
    """Returns the best of all and of each kind: their training scores differ in kind.

    Kinds are strategies and predictors of caches, of which one may suit the few training noises.
    """
    usable = [trial for trial in task.best() if trial.score is not None]
    chosen = usable[:SHORTLIST]
    for find_kind in (lambda trial: trial.strategy, _name_predictor):
        for kind in {find_kind(trial) for trial in usable}:
            chosen += rank_trials(each for each in usable if find_kind(each) == kind)[:OF_EACH]
    return list({trial.id: trial for trial in chosen}.values())


def _name_predictor(trial: Trial) -> str:
    """Returns the predictor of a candidate's cache; nothing where there is none."""
    cache = trial.schedule.cache if isinstance(trial.schedule, Schedule) else None
    return "" if cache is None else cache.predictor


def _score_block(task: Task, schedule: Artefact, name: BlockName | Literal["scored"]) -> float:
    """Returns the objective on a whole block; infinite where it is not finite."""
    block = task.scored if name == "scored" else task.problem.block(name)
    value = task.objective(task.problem, schedule, block)
    return value if math.isfinite(value) else math.inf


def _score_on_test(search: Search, task: Task, schedule: Artefact) -> TestScore:
    reach = partial(reach_ends, task.problem, schedule)
    return _score_ends_on_test(search, task, schedule.schedule_id, reach)


def _score_ends_on_test(
    search: Search, task: Task, name: str, reach: Callable[[Block], Tensor | None]
) -> TestScore:
    """On the test block: once, and from then on as it was written down under its name."""
    known = read_scores(task.log.folder)
    if name not in known:
        block = task.problem.block("test")
        ends = reach(block)
        score = math.inf if ends is None else task.objective.of(ends, block)
        columns = None if ends is None else judge_ends(ends, block, search.features)
        known[name] = TestScore(score=score, columns=columns)
        write_scores(task.log.folder, {**known})
    return known[name]


def _find_provenance(
    search: Search,
    task: Task,
    best: Trial,
    scores: Mapping[str, float],
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
        "extras": ["afs"] if best.schedule.nfe < len(best.schedule.steps) else [],
        "free": sorted(search.space.free),
        **name_weights(problem.network.name),
        "code_version": __version__,
    }


def name_weights(model: str) -> dict[str, str]:
    """Returns the hash of the weights of a network, where it can be had."""
    weights = hash_weights(model)
    return {} if weights is None else {"weights": weights}
