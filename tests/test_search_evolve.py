"""Evolution, its log and the run around it: resumed or shared, the result is the same."""

import json
import math
import multiprocessing
import os
import subprocess
import sys
import time
from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path
from random import Random

import pytest
import torch
from laws import f64

from fewstep.eval.search import run as running
from fewstep.eval.search.budget import Budget, Meter
from fewstep.eval.search.choice import overfit
from fewstep.eval.search.identity import read_rivals, read_scores
from fewstep.eval.search.log import Log, Trial
from fewstep.eval.search.objective import objective
from fewstep.eval.search.problem import Problem, Teacher
from fewstep.eval.search.run import run, spans
from fewstep.eval.search.search import SHORTLIST, Search
from fewstep.eval.search.size import SearchSize
from fewstep.eval.search.space import DEFAULT, Space
from fewstep.eval.search.strategies import AUTO, STRATEGIES, Proposal, Task
from fewstep.eval.search.strategies.evolve import Pools, propose_named_seeds
from fewstep.eval.search.toy import encode_named, toy
from fewstep.eval.search.variation import draw_schedule
from fewstep.models.errors import NonFiniteError, SettingError, UnknownNameError
from fewstep.models.gaussian import GaussianMixture
from fewstep.models.probe import are_alike, sketch
from fewstep.models.schedule import EDM
from fewstep.solvers.artefact import ANSWER

LAW = GaussianMixture(
    means=f64([-0.8, 0.3], [0.6, -0.7], [0.2, 0.8]),
    stds=f64([0.15], [0.05], [0.20]),
    weights=f64(0.5, 0.3, 0.2),
)
TEACHER = Teacher(solver="unipc-3", nfe=40, grid="karras", final="sigma_min")


def small(sizes=(16, 8, 8), **fields):
    """A problem whose candidates take a millisecond."""
    return Problem.of(LAW.network(EDM(), (2,)), sizes, teacher=TEACHER, **fields)


def searching(folder, count=60, strategies=("evolve",), nfe=4, **fields):
    problem = fields.pop("problem", None) or small()
    return Search(
        problem=problem,
        objective=objective("terminal", problem.network),
        space=Space(process=EDM(), ends=(0.002,)),
        budget=Budget("candidates", count),
        folder=folder,
        strategies=strategies,
        size=SearchSize(nfe),
        **fields,
    )


def digest(folder):
    log = Log(folder)
    log.close()
    return log.digest()


def trial(schedule, score=1.0, **facts):
    return Trial.of(schedule, score, **{"strategy": "x", "seed": 0, "evals": 3, **facts})


def some_schedules(count, nfe=4):
    space, rng = Space(process=EDM(), ends=(0.002,)), Random(0)
    return [draw_schedule(space, nfe, rng) for _ in range(count)]


# --- the log


def test_a_trial_survives_the_log(tmp_path):
    log = Log(tmp_path)
    schedules = some_schedules(3)
    log.append(trial(schedules[0], 0.5, parent="abc", seconds=0.1))
    log.append(trial(schedules[1], math.inf))
    log.append(trial(schedules[2], math.nan))
    log.close()
    again = Log(tmp_path)
    assert again.own == log.own
    assert again.best()[0].schedule == schedules[0]
    assert [each.score for each in again.best()] == [0.5, None, None]
    assert again.own[0].parent == "abc"


def test_workers_have_files_of_their_own_and_read_all(tmp_path):
    first, second = Log(tmp_path), Log(tmp_path)
    assert (first.worker, second.worker) == (0, 1)
    a, b = some_schedules(2)
    first.append(trial(a))
    second.refresh()
    second.append(trial(b))
    first.refresh()
    assert first.trials.keys() == second.trials.keys() == {a.schedule_id, b.schedule_id}
    assert [each.id for each in second.own] == [b.schedule_id]
    first.close()
    assert Log(tmp_path).worker == 0


def test_a_line_cut_short_is_set_aside(tmp_path):
    log = Log(tmp_path)
    for schedule in some_schedules(2):
        log.append(trial(schedule))
    log.close()
    path = tmp_path / "worker-0.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-40])
    again = Log(tmp_path)
    assert len(again.own) == 1
    again.append(log.own[1])
    again.close()
    assert path.read_bytes() == whole
    assert (tmp_path / "worker-0.jsonl.broken").read_bytes() == whole[:-40].split(b"\n")[1] + b"\n"


def test_half_a_line_of_another_worker_is_waited_for(tmp_path):
    first = Log(tmp_path)
    line = trial(some_schedules(1)[0]).model_dump_json().encode() + b"\n"
    path = tmp_path / "worker-7.jsonl"
    path.write_bytes(line[:50])
    first.refresh()
    assert not first.trials
    path.write_bytes(line)
    first.refresh()
    assert len(first.trials) == 1


@pytest.mark.parametrize("damage", [b"{}\n", b"hello\n", None])
def test_a_damaged_line_is_named(tmp_path, damage):
    log = Log(tmp_path)
    log.append(trial(some_schedules(1)[0]))
    log.close()
    path = tmp_path / "worker-0.jsonl"
    edited = path.read_bytes().replace(b'"order":1', b'"order":1', 1)
    if damage is None:
        damage = edited.replace(b'"id":"', b'"id":"0')
    path.write_bytes(edited + damage)
    with pytest.raises(SettingError, match=r"line 2 of .*worker-0.jsonl.*delete that line"):
        Log(tmp_path)


def test_a_claim_is_exclusive_and_ends_with_its_holder(tmp_path):
    first, second = Log(tmp_path), Log(tmp_path)
    (schedule,) = some_schedules(1)
    with first.claim(schedule.schedule_id) as mine:
        assert mine
        with second.claim(schedule.schedule_id) as too:
            assert not too
        first.append(trial(schedule))
    with second.claim(schedule.schedule_id) as again:
        assert not again, "it was evaluated"
    assert list((tmp_path / "claims").iterdir()) == []


WORKS = """
import sys, time
from pathlib import Path
from fewstep.eval.search.log import Log, Trial
from fewstep.solvers import StepSchedule

log = Log(Path(sys.argv[1]))
print(log.worker, flush=True)
waiting = [StepSchedule.parse(text) for text in Path(sys.argv[2]).read_text().splitlines()]
while any(each.schedule_id not in log.trials for each in waiting):
    for each in waiting:
        with log.claim(each.schedule_id) as mine:
            if mine:
                time.sleep(0.05)
                log.append(Trial.of(each, 1.0, strategy="x", seed=0, evals=1))
    log.refresh()
"""


def test_three_processes_share_a_search_and_one_is_killed(tmp_path):
    schedules = some_schedules(30)
    (tmp_path / "work").write_text("\n".join(each.dump() for each in schedules))
    words = [sys.executable, "-c", WORKS, tmp_path / "log", tmp_path / "work"]
    workers = [subprocess.Popen(words, stdout=subprocess.PIPE) for _ in range(3)]
    numbers = {int(each.stdout.readline()) for each in workers}
    time.sleep(0.3)
    workers[0].kill()
    workers[0].wait()
    assert [each.wait(60) for each in workers[1:]] == [0, 0]
    assert numbers == {0, 1, 2}
    lines = [line for path in (tmp_path / "log").glob("*.jsonl") for line in path.open()]
    found = [json.loads(line)["id"] for line in lines if line.endswith("\n")]
    assert sorted(found) == sorted(each.schedule_id for each in schedules)


# --- the budget


@pytest.mark.parametrize(
    ("text", "kind", "amount"),
    [
        ("20m", "seconds", 1200.0),
        ("90s", "seconds", 90.0),
        ("1.5h", "seconds", 5400.0),
        ("candidates=1500", "candidates", 1500.0),
        ("evals=2e6", "evals", 2e6),
    ],
)
def test_budgets(text, kind, amount):
    assert Budget.parse(text) == Budget(kind, amount)


@pytest.mark.parametrize("text", ["", "20", "m", "0m", "-3m", "candidates=", "evals=x", "1.2.3s"])
def test_what_is_no_budget(text):
    with pytest.raises(SettingError, match="is not a budget; write a time such as 20m"):
        Budget.parse(text)


def test_the_meter_counts_by_kind_and_by_nfe(tmp_path):
    log, rows = Log(tmp_path), [0]
    a, b, c = [*some_schedules(2), *some_schedules(1, nfe=5)]
    meters = {
        kind: Meter(Budget(kind, 10), log, SearchSize(4), lambda: rows[0], 64, (0.0, 0.5))
        for kind in ("candidates", "evals", "seconds")
    }
    log.append(trial(a, evals=64, seconds=1.0))
    log.append(trial(b, evals=160, seconds=1.5))
    log.append(trial(c, evals=1000, seconds=9.0))
    assert meters["candidates"].spent() == pytest.approx(1 + 2.5)
    assert meters["evals"].spent() == 224
    assert meters["seconds"].spent() == pytest.approx(2.5, abs=0.5)
    assert meters["candidates"].used() == pytest.approx(0.7)
    rows[0] += 32
    assert meters["candidates"].spent() == pytest.approx(4.0)


def test_spans_cover_the_budget():
    assert spans(("evolve",)) == [("evolve", (0.0, 1.0))]
    assert spans(("dmn", "klub")) == [("dmn", (0.0, 0.5)), ("klub", (0.5, 1.0))]
    auto = spans(AUTO)
    assert [name for name, _ in auto] == list(AUTO)
    assert (auto[0][1][0], auto[-1][1][1]) == (0.0, 1.0)
    for (_, (_, last)), (_, (first, _)) in pairwise(auto):
        assert last == first


# --- evolution


def test_evolution_beats_what_it_starts_from(tmp_path):
    found = run(searching(tmp_path, 150, problem=small((64, 32, 64))))
    log = Log(tmp_path)
    seeds = [each.score for each in log.own if each.schedule.provenance.get("label")]
    assert log.best()[0].score < 0.6 * min(seeds)
    assert len(log.own) == len(log.trials) == 150
    assert found.scores["val"] < min(seeds)


def test_resumed_equals_uninterrupted(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run(searching(whole, 80))
    for budget in (47, 80):
        run(searching(parts, budget))
    assert digest(parts) == digest(whole)


class Killed(Exception):
    pass


def test_a_killed_search_ends_as_if_it_had_not_been(tmp_path):
    """Killed at odd places, the last time in the middle of a line."""
    strategies = ("grid", "dmn", "klub", "evolve")
    fields = {"settings": {"fine": 20, "noises": 8}, "strategies": strategies}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    wanted = run(searching(whole, 120, **fields))
    for limit in (3, 17, 40, 25):
        count = [0]

        def watch(name, task, limit=limit, count=count):
            count[0] += 1
            if count[0] == limit:
                raise Killed

        with pytest.raises(Killed):
            run(searching(parts, 120, **fields), watch)
    path = parts / "worker-0.jsonl"
    path.write_bytes(path.read_bytes()[:-33])
    found = run(searching(parts, 120, **fields))
    assert digest(parts) == digest(whole)
    assert found.schedule.schedule_id == wanted.schedule.schedule_id
    assert found.scores == wanted.scores


def test_another_seed_is_another_search(tmp_path):
    for seed in (0, 1):
        run(searching(tmp_path / str(seed), 40, seed=seed))
    assert digest(tmp_path / "0") != digest(tmp_path / "1")


def _work(folder):
    torch.set_num_threads(1)
    run(searching(Path(folder), 120, strategies=("grid", "evolve")))


def test_processes_share_a_log_without_losing_or_repeating(tmp_path):
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_work, args=(str(tmp_path),)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    lines = [
        json.loads(line)
        for path in tmp_path.glob("worker-*.jsonl")
        for line in path.read_text().splitlines()
    ]
    ids = [line["id"] for line in lines]
    assert len(ids) == len(set(ids))
    assert 120 <= len(ids) <= 122, "each worker may be at one candidate when the budget ends"
    assert len(list(tmp_path.glob("worker-*.jsonl"))) == 3
    assert Log(tmp_path).trials.keys() == set(ids)


@pytest.mark.parametrize("value", [math.nan, math.inf, NonFiniteError("the network said NaN")])
def test_scores_that_are_not_finite_are_worst(tmp_path, value):
    """Every third candidate fails; the search goes on without them."""
    count = [0]
    inner = objective("terminal", LAW.network(EDM(), (2,)))

    class Moody:
        name = "terminal"
        of = inner.of

        def __call__(self, problem, schedule, block):
            count[0] += 1
            if block.name == "train" and count[0] % 3 == 0:
                if isinstance(value, Exception):
                    return math.inf  # what objectives make of it
                return value
            return inner(problem, schedule, block)

    found = run(replace(searching(tmp_path, 60), objective=Moody()))
    log = Log(tmp_path)
    assert sum(each.score is None for each in log.own) == 20
    assert all(each.score is not None for each in log.best(count=40))
    assert math.isfinite(found.scores["test"])


def test_nothing_finite_is_an_error(tmp_path):
    class Broken:
        name = "terminal"

        def __call__(self, problem, schedule, block):
            return math.nan

    with pytest.raises(SettingError, match="no candidate gave a finite score"):
        run(replace(searching(tmp_path, 5), objective=Broken()))


def task_of(folder, **fields):
    search = searching(folder, **fields)
    return running.make_task(search, Log(folder))


def test_parents_lie_in_the_space(tmp_path):
    """A seed with another grid does not get in where times are fixed."""
    task = task_of(tmp_path)
    fixed = DEFAULT - {"times", "ends"}
    task = replace(task, space=Space(process=EDM(), ends=(0.002,), free=fixed))
    for schedule in some_schedules(5):
        task.log.append(trial(schedule, 0.0))
    own = task.space.base(4)
    task.log.append(trial(own, 9.0))
    assert [t.schedule for t in Pools(task, task.log.trials).of(4)] == [own]
    for proposal in islice(STRATEGIES.get("evolve").propose(task), 40):
        assert proposal.schedule.t == own.t
        task.log.append(trial(proposal.schedule, strategy="evolve"))


def test_a_small_space_is_tried_to_its_end(tmp_path):
    """Two predictions on the one step that is of order 2: nothing else is to be had."""
    search = searching(tmp_path, 500, nfe=3)
    search = replace(search, space=Space(process=EDM(), ends=(0.002,), free=frozenset({"pred"})))
    run(search)
    assert 2 <= len(Log(tmp_path).own) <= 4


def test_neighbouring_budgets_seed_each_other(tmp_path):
    run(searching(tmp_path, 60, nfe=4))
    run(searching(tmp_path, 60, nfe=5))
    log = Log(tmp_path)
    fives = [each for each in log.own if each.schedule.nfe == 5]
    from_four = [t for t in fives if t.parent and log.trials[t.parent].schedule.nfe == 4]
    assert 1 <= len(from_four) < len(fives) // 2


def test_seeds_are_named_solvers(tmp_path):
    labels = [p.schedule.provenance["label"] for p in propose_named_seeds(task_of(tmp_path))]
    assert "unipc-3 on logsnr" in labels
    assert "dpmpp-2m on karras" in labels


# --- the run


def test_test_block_is_looked_at_once(tmp_path):
    looks = []
    inner = objective("terminal", LAW.network(EDM(), (2,)))

    class Watched:
        name = "terminal"

        def __call__(self, problem, schedule, block):
            looks.append((block.name, schedule.schedule_id))
            return inner(problem, schedule, block)

        def of(self, ends, block):
            looks.append((block.name, float(ends.double().sum())))
            return inner.of(ends, block)

    search = replace(searching(tmp_path, 30, strategies=("grid",)), objective=Watched())
    first = run(search)
    tested = [name for block, name in looks if block == "test"]
    assert (
        4 <= len(tested) == len(read_scores(tmp_path)) <= 8
    )  # the winner, named ones, diffusers' schedulers, the default
    looks.clear()
    assert run(search).scores == first.scores
    again = [block for block, _ in looks if block != "validation"]
    assert again == ["train"], "a budget that is spent stays spent: only the chosen table is scored"


@pytest.mark.parametrize("body", ["[1, 2]", "7", "[" * 100_000, "{", '"no"'])
def test_files_of_a_folder_that_hold_no_object_are_named(tmp_path, body):
    search = searching(tmp_path, 3, strategies=("grid",))
    first = run(search)
    for name in ("search.json", "test.json"):
        path = tmp_path / name
        good = path.read_text()
        path.write_text(body)
        with pytest.raises(SettingError, match=rf"{name}' is damaged: .*give another --log"):
            run(search)
        path.write_text(good)
    path.write_text('{"a": "b"}')
    with pytest.raises(SettingError, match=r"test\.json' is damaged"):
        run(search)
    path.write_text(good)
    assert run(search).scores == first.scores


def test_an_answer_in_the_log_that_is_no_sketch_is_another_one(tmp_path):
    search = searching(tmp_path, 3, strategies=("grid",))
    run(search)
    path = tmp_path / "search.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {ANSWER: ["a", {}]}))
    with pytest.raises(SettingError, match=f"is of another search: its {ANSWER}"):
        run(search)


def test_the_winner_is_the_best_on_validation(tmp_path):
    found = run(searching(tmp_path, 80))
    problem = small()
    log, aim = Log(tmp_path), objective("terminal", problem.network)
    shortlist = [
        aim(problem, each.schedule, problem.block("validation"))
        for each in log.best(SearchSize(4), 10)
    ]
    assert found.scores["val"] == pytest.approx(min(shortlist), rel=1e-6)
    assert found.scores["test"] == pytest.approx(
        aim(problem, found.schedule, problem.block("test")), rel=1e-6
    )


def test_validation_decides_against_training(tmp_path):
    """Where validation says the opposite of training, the last of the shortlist wins."""
    inner = objective("terminal", LAW.network(EDM(), (2,)))

    class Contrary:
        name = "terminal"
        of = inner.of

        def __call__(self, problem, schedule, block):
            score = inner(problem, schedule, problem.block("train"))
            return score if block.name == "train" else 1.0 / score

    found = run(replace(searching(tmp_path, 40), objective=Contrary()))
    assert found.scores["train"] == Log(tmp_path).best(SearchSize(4), SHORTLIST)[-1].score


def test_provenance_says_it_all(tmp_path):
    search = searching(tmp_path, 60, strategies=("grid", "evolve"), seed=3)
    found = run(search)
    facts = json.loads(found.schedule.dump())["provenance"]
    assert facts["teacher"]["solver"] == "unipc-3"
    assert facts["train_seeds"] == [1_000_000, 1_000_015]
    assert facts["val_seeds"] == [1_000_016, 1_000_023]
    assert facts["test_seeds"] == [1_000_024, 1_000_031]
    assert facts["strategy_seed"] == 3
    assert facts["scores"].keys() == {"train", "val", "test"}
    assert facts["budget"]["candidates"] == 60
    assert facts["budget"]["model_evals"] == 60 * 16 * 4
    assert are_alike(facts[ANSWER], sketch(search.problem.network))
    assert facts["extras"] == []
    rivals = read_rivals(search.folder)[search.size.mark].specs
    named = ("unipc-3", "unipc-2", "dpmpp-2m", "deis-3", *(f"diffusers {each}" for each in rivals))
    assert facts["baseline"]["name"].split(" on ")[0] in named


def test_other_weights_answer_otherwise():
    other = GaussianMixture(LAW.means * 1.1, LAW.stds, LAW.weights)
    first, again, others = (sketch(law.network(EDM(), (2,))) for law in (LAW, LAW, other))
    assert first == again
    assert not are_alike(first, others)


def test_a_log_of_another_search_is_refused(tmp_path):
    run(searching(tmp_path, 14))
    with pytest.raises(SettingError, match="of another search: its train_seeds is"):
        run(searching(tmp_path, 14, problem=small((20, 8, 8))))
    other = replace(searching(tmp_path), objective=objective("log_mse", small().network))
    with pytest.raises(SettingError, match="its objective is 'terminal', not 'log_mse'"):
        run(other)


def test_overfitting_is_told(tmp_path):
    with pytest.warns(UserWarning, match="fits its training noises"):
        run(searching(tmp_path, 150, problem=small((2, 64, 64))))
    assert overfit("log_mse", {"train": -4.0, "test": -2.0}) == pytest.approx(math.e)
    assert overfit("terminal", {"train": 0.1, "test": 0.2}) == pytest.approx(2.0)


def test_what_cannot_be_searched(tmp_path):
    with pytest.raises(SettingError, match="too small for one candidate, which takes 64"):
        run(replace(searching(tmp_path), budget=Budget("evals", 63)))
    with pytest.raises(SettingError, match="too small for one candidate"):
        run(searching(tmp_path, 0.5))
    with pytest.raises(UnknownNameError, match="did you mean 'evolve'"):
        run(searching(tmp_path, strategies=("evolv",)))
    with pytest.raises(SettingError, match="nfe must be at least 1"):
        run(searching(tmp_path, nfe=0))
    assert not list(tmp_path.iterdir())


def test_a_guided_candidate_costs_two_rows(tmp_path):
    assert searching(tmp_path).candidate_rows == 16 * 4
    w = {"w": torch.ones(1, 1)}
    guided = small(cfg_scale=2.0, conditions=w, negative=w)
    assert searching(tmp_path, problem=guided).candidate_rows == 2 * 16 * 4


def test_proposals_that_were_tried_are_not_tried_again(tmp_path):
    task = task_of(tmp_path)
    proposal = Proposal(task.space.base(4))
    assert running.evaluate(task, "grid", proposal)
    assert not running.evaluate(task, "grid", proposal)
    assert isinstance(task, Task)
    assert len(task.log.own) == 1


@pytest.mark.slow
def test_toy_benchmark(tmp_path):
    """Issue 5: evolution over the full space, at least 2.5 times nearer than DPM-Solver++(2M)."""
    problem = toy()
    search = searching(tmp_path, 1500, problem=problem, nfe=5)
    found = run(search)
    base = search.objective(problem, encode_named("dpmpp-2m", "logsnr", 5), problem.block("test"))
    assert base / found.scores["test"] > 2.5
    assert os.path.getsize(tmp_path / "worker-0.jsonl") < 5e6
