"""Searches of the evaluations that run in full: what they try, and what is said of the result."""

import json
from itertools import combinations

import pytest
import torch
from tiny_pipes import pipeline
from typer.testing import CliRunner

from fewstep.cli import app
from fewstep.eval.cache_worth import PlainRun, compare_pairs, judge_cache
from fewstep.eval.search.budget import Budget
from fewstep.eval.search.log import Log
from fewstep.eval.search.mask_run import find_weights, measure_gains, measure_gram
from fewstep.eval.search.masks import list_errors
from fewstep.eval.search.objective import objective
from fewstep.eval.search.problem import Problem, Teacher
from fewstep.eval.search.run import make_task, run
from fewstep.eval.search.search import Search
from fewstep.eval.search.size import SearchSize, size_of
from fewstep.eval.search.space import Space
from fewstep.eval.search.strategies import strategies_of
from fewstep.eval.search.strategies.masks import MaskedRun, Masks
from fewstep.eval.search.uncached import UncachedEnds, drift_of, list_even
from fewstep.models.load import load
from fewstep.solvers import Schedule
from fewstep.solvers.artefact import PARTS
from fewstep.solvers.cached_calls import CachedCalls

CALLS, FULL = 7, 3


@pytest.fixture(scope="module")
def network():
    return load(pipeline("dit"))


def problem_of(network):
    return Problem.of(network, (8, 4, 8), batch=8, teacher=Teacher(nfe=20), labels=(0, 1))


def searching_masks(folder, network=None, count=40, drift=True, **fields):
    problem = problem_of(load(pipeline("dit")) if network is None else network)
    space = Space(process=problem.network.schedule, grid="uniform")
    plain = Schedule.of_steps(space.base(CALLS))
    return Search(
        problem=problem,
        objective=drift_of(problem, plain) if drift else objective("terminal", problem.network),
        space=space,
        size=SearchSize(FULL, "full", CALLS),
        strategies=fields.pop("strategies", strategies_of("full")),
        budget=Budget("candidates", count),
        folder=folder,
        **fields,
    )


def plain_of(search):
    return Schedule.of_steps(search.space.base(CALLS))


def test_inner_products_are_those_of_what_enters_the_head(network, tmp_path):
    """Against the outputs of the last block, and the errors of forecasts formed of them."""
    search = searching_masks(tmp_path, network)
    block = search.problem.block("train").first(3)
    seen, last = [], network.module.transformer_blocks[-1]
    hook = last.register_forward_hook(lambda module, args, out: seen.append(out.clone()))
    try:
        gram = measure_gram(search.problem, plain_of(search), block).numpy()
    finally:
        hook.remove()
    rows = torch.stack(seen).flatten(1).double()
    assert len(rows) == CALLS
    assert torch.allclose(torch.from_numpy(gram), rows @ rows.T, rtol=1e-12)
    errors = list_errors(gram, (0, 2, 5), find_weights("taylor:order=1", CALLS))
    forecast = rows[5] + (rows[5] - rows[2]) / 3
    direct = (forecast - rows[6]).square().sum() / rows[6].square().sum()
    assert errors[6] == pytest.approx(float(direct), rel=1e-9)
    gains = measure_gains(search.problem, plain_of(search), block, torch.from_numpy(gram))
    assert gains[0] == 0.0
    assert (gains[1:] > 0.0).all()


def test_a_search_finds_the_best_mask_of_all(network, tmp_path):
    """With a budget for all neighbours, what it finds is the best of all masks on its noises."""
    settings = {"predictors": ("taylor:order=1",), "moves": 10}
    strategies = ("mask-even", "mask-dp", "mask-climb", "mask-anneal")
    fields = {"settings": settings, "strategies": strategies}
    search = searching_masks(tmp_path, network, count=400, **fields)
    run(search)
    task = make_task(search, Log(tmp_path))
    masks = Masks(task)
    every = ((0, *rest) for rest in combinations(range(1, CALLS), FULL - 1))
    made = (masks.make(MaskedRun(mask, "taylor:order=1")) for mask in every)
    scores = [search.objective(search.problem, each, task.scored) for each in made]
    best = task.best()[0]
    assert best.score == pytest.approx(min(scores), rel=1e-6)
    assert len(task.log.trials) < len(scores) + 1
    task.log.close()


def test_one_that_was_stopped_ends_where_it_would_have(network, tmp_path):
    """Also where it was stopped within a chain."""

    def stop(strategy, task):
        if strategy == "mask-anneal":
            raise KeyboardInterrupt

    def read(name):
        log = Log(tmp_path / name)
        log.close()
        return [(trial.id, trial.score, trial.strategy) for trial in log.own]

    fields = {
        "settings": {"predictors": ("taylor:order=1", "reuse"), "moves": 4},
        "strategies": ("mask-even", "mask-dp", "mask-anneal", "mask-climb"),
    }
    whole, parts = (
        searching_masks(tmp_path / name, network, count=60, **fields) for name in ("whole", "parts")
    )
    found = run(whole)
    with pytest.raises(KeyboardInterrupt):
        run(parts, stop)
    assert run(parts).schedule.schedule_id == found.schedule.schedule_id
    assert read("parts") == read("whole")
    assert {"mask-anneal", "mask-climb"} <= {strategy for *_, strategy in read("whole")}


def test_the_result_tells_its_cost_and_stands_beside_fewer_steps(network, tmp_path):
    for drift in (True, False):
        found = run(searching_masks(tmp_path / str(drift), network, count=20, drift=drift))
        facts = found.schedule.provenance
        assert size_of(found.schedule) == SearchSize(FULL, "full", CALLS)
        assert facts["objective"] == ("drift" if drift else "terminal")
        assert facts[PARTS] == len(network.module.transformer_blocks)
        cache = facts["cache"]
        assert FULL < cache["effective"] < FULL + 1.5
        aim = cache["drift" if drift else "distance"]["value"]
        assert aim == pytest.approx(found.scores["test"], rel=1e-6)
        names = [each["name"] for each in cache["even"]]
        assert names == ["full evaluations spread evenly", "taylorseer:interval=3"]
        assert min(each["ratio"][0] for each in cache["even"]) <= 1.05
        names = [each["name"] for each in cache["beside"]]
        nfe = round(cache["effective"])
        plain = [f"dpmpp-2m, {nfe} evaluations", f"the default, {nfe} evaluations"]
        assert names == [*plain, f"a table without a cache, {nfe} evaluations, refitted alike"]
        assert Schedule.parse(found.schedule.dump()).schedule_id == found.schedule.schedule_id


def test_drift_is_the_distance_to_the_run_without_the_cache(network, tmp_path):
    search = searching_masks(tmp_path, network)
    plain, block = plain_of(search), search.problem.block("train")
    every = plain.with_cache(CachedCalls(compute=tuple(range(CALLS))))
    assert search.objective(search.problem, every, block) == 0.0
    before = search.problem.evaluations
    masked = plain.with_cache(CachedCalls(compute=(0, 1, 4)))
    ends = search.problem.ends(masked, block)
    expected = (ends - search.problem.ends(plain, block)).square().mean().sqrt()
    assert search.objective.of(ends, block) == pytest.approx(float(expected), rel=1e-6)
    assert search.problem.evaluations - before == 2 * CALLS * len(block), "the reference is free"
    once = UncachedEnds(search.problem, plain)
    part = block.pick([3, 1])
    assert torch.equal(once.ends(block)[[3, 1]], once.ends(part))


def test_even_masks():
    spread, interval = list_even(30, 9)
    assert spread[1] == (0, 3, 6, 10, 13, 16, 20, 23, 26)
    assert interval == ("taylorseer:interval=4", (0, 1, 5, 9, 13, 17, 21, 25, 29))
    assert [mask for _, mask in list_even(8, 8)] == [tuple(range(8))]


def test_pairs_are_drawn_together():
    """Noises that are hard for both do not widen the interval."""
    theirs = torch.rand(200, generator=torch.Generator().manual_seed(0)) ** 4
    ratio, low, high = compare_pairs(0.25 * theirs, theirs)
    assert (ratio, low, high) == pytest.approx((0.5, 0.5, 0.5))
    ratio, low, high = compare_pairs(theirs.flip(0), theirs)
    assert low < ratio < high
    assert ratio == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("ratio", "said"),
    [
        ((0.5, 0.4, 0.6), "the cache pays"),
        ((0.9, 0.7, 1.1), "does not pay: `sample net --nfe 3` is as near"),
        ((1.5, 1.2, 1.9), "does not pay: `sample net --nfe 3` is nearer"),
    ],
)
def test_it_is_said_whether_a_cache_pays(ratio, said):
    """Beside the best of the rows without one."""
    rows = [("--nfe 2", (0.1, 0.1, 0.1)), ("--nfe 3", ratio)]
    beside = [(PlainRun(typed, typed, {}), each) for typed, each in rows]
    assert said in judge_cache(beside, "net")


def search_command(*words, code=0):
    result = CliRunner().invoke(app, ["search", "fashion-dit", *map(str, words)])
    assert result.exit_code == code, (result.output, result.exception)
    return result.output


QUICK = ["--noises", "4,2,4", "--scored", "4", "--teacher-nfe", "6", "--budget", "candidates=6"]


def test_the_command_writes_a_schedule_that_sample_takes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    output = search_command("--full", 2, "--steps", 4, "--objective", "distance", *QUICK)
    assert "schedule.json: 2 of 4 evaluations in full, terminal" in output
    assert "drift of full evaluations spread evenly" in output
    assert "the cache pays: " in output or "the cache does not pay: `sample" in output
    result = CliRunner().invoke(
        app, ["sample", "fashion-dit", "--schedule", "schedule.json", "--seeds", "0-1", "--json"]
    )
    assert result.exit_code == 0, result.output
    cache = json.loads(result.stdout)["ledger"]["cache"]
    assert (cache["full"], cache["skipped"]) == (2, 2)


def test_several_numbers_of_steps_share_a_budget(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    output = search_command("--full", 2, "--steps", "3,4", *QUICK[:-1], "candidates=4")
    files = [tmp_path / f"schedule-full2of{steps}.json" for steps in (3, 4)]
    distances = [Schedule.load(each).provenance["cache"]["distance"]["value"] for each in files]
    best = files[distances.index(min(distances))].name
    assert f"nearest to the reference: {best}\n" in output
    assert [Schedule.load(each).nfe for each in files] == [3, 4]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--full", 5, "--steps", 4], "a run of 4 evaluations has at most 4 in full, not 5"),
        (["--full", 2, "--steps", "4,5", "--objective", "drift"], "give one number to --steps"),
        (["--full", 2, "--nfe", 4], "give --nfe, such as 5"),
        (["--nfe", 4, "--steps", 8], "--steps and --predictor belong to --full"),
        (["--nfe", 4, "--objective", "drift"], "give --full"),
        (["--full", 2, "--predictor", "tailor"], "did you mean 'taylor'"),
        (["--full", 2, "--predictor", "anchors"], "anchors does not run on every list"),
        (["--full", 2, "--predictor", "dmd"], "dmd does not run on every list"),
        (["--full", 2, "--predictor", "taylor;fitted"], "fitted does not run on every list"),
        (["--full", 2, "--strategy", "evolve"], "evolve cannot search full evaluations; mask-even"),
        (["--nfe", 4, "--strategy", "mask-dp"], "mask-dp cannot search an NFE; grid"),
        (["--full", 2, "--free", "times"], "drop free"),
        (["--full", 2, "--train-seeds", "0-9", "--test-seeds", "5-9"], "share seed 5"),
    ],
)
def test_what_cannot_be_searched_is_refused(tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    assert message in search_command(*words, *QUICK, code=2)
    assert not list(tmp_path.iterdir())
