"""Search at a number of network rows: placements, fitted rows, the command."""

import json
import multiprocessing
import re
from dataclasses import replace
from itertools import combinations, islice
from pathlib import Path
from random import Random

import pytest
import torch
from laws import compiled
from test_search_problem import small
from torch.testing import assert_close
from typer.testing import CliRunner

from fewstep.cli import app, sample_app
from fewstep.eval.search import run as running
from fewstep.eval.search.budget import Budget
from fewstep.eval.search.canonical import rows_of
from fewstep.eval.search.fitting import fit_schedule, fit_weights
from fewstep.eval.search.identity import read_scores
from fewstep.eval.search.log import Log, Trial
from fewstep.eval.search.objective import objective, rmse
from fewstep.eval.search.placement import (
    Judge,
    Placement,
    list_guided_steps,
    mutate,
    search_placements,
    spread_evenly,
)
from fewstep.eval.search.run import run
from fewstep.eval.search.search import Search
from fewstep.eval.search.size import SearchSize, size_of
from fewstep.eval.search.space import Space
from fewstep.eval.search.strategies import STRATEGIES, strategies_of
from fewstep.eval.search.trajectories import make_fine_grid, record_branches
from fewstep.models.denoiser import Branch
from fewstep.models.errors import SettingError
from fewstep.samplers.grid import time_grid
from fewstep.solvers import Schedule, solver

SIX = SearchSize(6, "rows")
QUICK = {"fine": 12}


def searching(folder, count=40, rows=6, **fields):
    problem = fields.pop("problem", None) or small(cfg_scale=3.0)
    return Search(
        problem=problem,
        objective=objective("terminal", problem.network),
        space=fields.pop("space", None) or Space(process=problem.network.schedule),
        size=fields.pop("size", SearchSize(rows, "rows")),
        budget=Budget("candidates", count),
        folder=folder,
        settings=QUICK,
        **{"strategies": strategies_of("rows"), **fields},
    )


def task_of(folder, **fields):
    return running.make_task(searching(folder, **fields), Log(folder))


# Sizes


def test_a_schedule_has_rows_if_it_brings_its_guidance(tmp_path):
    task = task_of(tmp_path)
    (first, *_) = STRATEGIES.get("grid").propose(task)
    assert size_of(first.schedule) == SearchSize(6, "rows")
    assert first.schedule.nfe != 6
    plain = solver("ddim").step_schedule(time_grid("uniform", task.space.process, 6))
    assert plain.rows == 6
    assert size_of(plain) == SearchSize(6)
    assert not SearchSize(6, "rows").fits(plain)
    assert not SearchSize(first.schedule.nfe).fits(first.schedule)


def test_a_log_keeps_sizes_apart(tmp_path):
    """A search at NFE 3 and one at 6 rows share a folder and see only their own trials."""
    plain = searching(tmp_path, 4, size=SearchSize(3), strategies=("grid",))
    guided = searching(tmp_path, 4, strategies=("grid",))
    three, six = run(plain), run(guided)
    assert size_of(three.schedule) == SearchSize(3)
    assert size_of(six.schedule) == SearchSize(6, "rows")
    assert [six.schedule.provenance[name] for name in ("rows", "cfg_scale")] == [6, 3.0]
    assert "rows" not in three.schedule.provenance
    assert three.schedule.provenance["budget"]["candidates"] == 4
    assert six.schedule.provenance["budget"]["candidates"] == 4
    assert len(Log(tmp_path).trials) == 8
    assert guided.candidate_rows == plain.candidate_rows == 6 * 6


# Placements


def test_guided_steps_spend_the_rows():
    found = list(list_guided_steps(16))
    assert (8, tuple(range(8))) in found
    assert (10, (0, 1, 2, 3, 4, 5)) in found
    assert {steps for steps, _ in found} == {8, 9, 10, 11, 12}
    assert all(steps + len(guided) == 16 for steps, guided in found)
    assert len(set(found)) == len(found)
    with pytest.raises(SettingError, match="at least 2 network rows"):
        list(list_guided_steps(1))


@pytest.mark.parametrize("rows", [2, 3, 7, 16])
def test_mutants_are_placements_of_the_same_rows(rows):
    rng, seen = Random(0), set(spread_evenly(SearchSize(rows, "rows"), 20))
    for _ in range(2000):
        child = mutate(rng.choice(sorted(seen, key=str)), 20, rng)
        if child is None:
            continue
        assert child.rows == rows
        assert child.nodes[0] == 0
        assert child.nodes[-1] < 20
        assert list(child.nodes) == sorted(set(child.nodes))
        assert set(child.both) <= set(child.nodes)
        assert [child.nodes[step] for step in child.guided] == list(child.both)
        seen.add(child)
    if rows == 7:
        assert {len(each.nodes) for each in seen} >= {4, 5, 6}
    with pytest.raises(SettingError, match="16 rows cannot be placed on a grid of 1 steps"):
        spread_evenly(SearchSize(16, "rows"), 1)


def test_mutants_of_an_nfe_only_move():
    rng, (placed,) = Random(0), spread_evenly(SearchSize(4), 20)
    assert placed == Placement((0, 5, 10, 15), ())
    children = {mutate(placed, 20, rng) for _ in range(500)} - {None}
    assert len(children) > 10
    assert all((len(child.nodes), child.both) == (4, ()) for child in children)


def columns_of(task):
    """What the teacher sees on the fine grid, found by other means: states and both answers."""
    states, _ = record_branches(task)
    nodes = make_fine_grid(task).nodes[:-1]
    denoiser = task.problem.denoiser(task.scored)
    pairs = [
        denoiser.x0(x, node, (Branch.COND, Branch.UNCOND))
        for x, node in zip(states, nodes, strict=False)
    ]
    return states, [c for c, _ in pairs], [u for _, u in pairs]


def test_the_judge_says_what_least_squares_leaves(tmp_path):
    """Against lstsq on the teacher's own columns."""
    task = task_of(tmp_path)
    states, cond, uncond = columns_of(task)
    judge = Judge(record_branches(task)[1])
    assert judge.steps == 12
    placed = Placement((0, 2, 5, 9), (0, 5))
    columns, wanted, size = [states[0]], [], states[-1].double().square().sum()
    for node, after in zip(placed.nodes, (2, 5, 9, 12), strict=True):
        columns += [cond[node], uncond[node]] if node in placed.both else [cond[node]]
        matrix = torch.stack([each.flatten() for each in columns], 1).double()
        target = states[after].flatten().double()
        left = target - matrix @ torch.linalg.lstsq(matrix, target).solution
        wanted.append(left.square().sum() / size)
    assert_close(judge.errors(placed), torch.stack(wanted), rtol=0.02, atol=1e-6)
    assert judge(placed) == pytest.approx(float(sum(wanted)), rel=0.02)
    assert float(sum(wanted)) > 1e-4


def test_the_search_of_placements_betters_what_it_starts_from(tmp_path):
    judge = Judge(record_branches(task_of(tmp_path))[1])
    found = search_placements(judge, SIX, 400, Random(0))
    assert found[0] in search_placements(judge, SIX, 400, Random(0))[:1]
    assert judge(found[0]) < 0.7 * min(map(judge, spread_evenly(SIX, 12)))
    assert [judge(each) for each in found] == sorted(judge(each) for each in found)


# Fitted rows


def test_fit_is_least_squares():
    g = torch.Generator().manual_seed(0)
    columns = [torch.randn(5, 2, 3, generator=g) for _ in range(4)]
    target = 2.0 * columns[0] - 0.5 * columns[3]
    assert_close(
        fit_weights(columns, target).float(), torch.tensor([2.0, 0.0, 0.0, -0.5]), atol=1e-5, rtol=0
    )


def test_a_fitted_schedule_runs_as_it_was_fitted(tmp_path):
    """Its first state is the projection of the teacher's; its last beats other last rows."""
    task = task_of(tmp_path)
    problem, block, grid = task.problem, task.scored, make_fine_grid(task)
    states, _ = record_branches(task)
    placed = Placement((0, 3, 6, 9), (0, 6))
    before = problem.evaluations
    made = fit_schedule(problem, block, states, grid, placed)
    assert problem.evaluations - before == 6 * len(block)
    assert [len(each.branches) for each in made.evaluations] == [2, 1, 2, 1]
    assert made.t == tuple(grid.nodes[i].t for i in (0, 3, 6, 9, 12))
    assert made.rows == 6
    error = rmse(problem.ends(made, block), block)
    for column in range(len(made.steps[-1])):
        *steps, last = made.steps
        moved = tuple((k, n, w + 0.02 * (i == column)) for i, (k, n, w) in enumerate(last))
        other = made.model_copy(update={"steps": (*steps, moved)})
        assert rmse(problem.ends(other, block), block) > error


def test_a_fitted_schedule_betters_its_theory(tmp_path):
    """On noises that it was not fitted to."""
    task = task_of(tmp_path)
    made = fit_schedule(
        task.problem,
        task.scored,
        record_branches(task)[0],
        make_fine_grid(task),
        Placement((0, 4, 8), (0, 4, 8)),
    )
    theory = solver("dpmpp-2m").step_schedule(time_grid("beta", task.space.process, 3))
    block = task.problem.block("test")
    aim = objective("terminal", task.problem.network)
    assert aim(task.problem, made, block) < 0.8 * aim(task.problem, theory, block)


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_a_fitted_schedule_of_an_nfe_leaves_the_guidance_outside(tmp_path, scale):
    """Its first row is the projection of the teacher's state on the noise and the prediction."""
    task = task_of(
        tmp_path, problem=small(cfg_scale=scale), size=SearchSize(3), strategies=("fit",)
    )
    problem, block, (states, _) = task.problem, task.scored, record_branches(task)
    made = fit_schedule(problem, block, states, make_fine_grid(task), Placement((0, 4, 8), ()))
    assert (made.nfe, made.rows, made.guided) == (3, 3, False)
    node = make_fine_grid(task).nodes[0]
    u, c = problem.answers(block, states[0], node, (Branch.UNCOND, Branch.COND))
    guided = u + scale * (c - u)
    assert_close(problem.answers(block, states[0], node, None)[0], guided, rtol=1e-4, atol=1e-5)
    assert rows_of(made.table())[0] == pytest.approx(
        fit_weights([states[0], guided], states[4]).tolist(), abs=1e-4
    )
    theory = solver("dpmpp-2m").step_schedule(time_grid("beta", task.space.process, 3))
    test = problem.block("test")
    assert rmse(problem.ends(made, test), test) < 0.9 * rmse(problem.ends(theory, test), test)


# The strategies


def test_placements_of_an_nfe_are_proposed(tmp_path):
    search = searching(tmp_path, 20, size=SearchSize(3), strategies=("fit",))
    run(search)
    found = Log(tmp_path).own
    assert len(found) >= 6
    assert {size_of(trial.schedule) for trial in found} == {SearchSize(3)}
    assert len({trial.schedule.t for trial in found}) == len(found)
    times = [node.t for node in make_fine_grid(task_of(tmp_path)).nodes]
    placed = [[times.index(t) for t in trial.schedule.t] for trial in found[:3]]
    assert all(
        max(abs(i - j) for i, j in zip(*pair, strict=True)) >= 3 for pair in combinations(placed, 2)
    )


def test_fits_in_a_log_of_an_older_search_are_known(tmp_path):
    """Their tables stand beside steps, as version 1 has them."""
    task = task_of(tmp_path, problem=small(), size=SearchSize(3), strategies=("fit",))
    first, second = (p.schedule for p in islice(STRATEGIES.get("fit").propose(task), 2))
    steps = solver("ddim").step_schedule(first.grid())
    older = steps.model_copy(update={"compiled": compiled(first.table())})
    task.log.append(Trial.of(older, 1.0, strategy="fit", seed=0, evals=18))
    assert next(iter(STRATEGIES.get("fit").propose(task))).schedule == second


def test_times_that_are_not_free_are_not_placed(tmp_path):
    space = Space(process=small().network.schedule, free=frozenset({"order"}))
    task = task_of(tmp_path, size=SearchSize(3), space=space)
    assert list(STRATEGIES.get("fit").propose(task)) == []


def test_a_search_at_rows_betters_full_guidance_at_equal_rows(tmp_path):
    problem = small(cfg_scale=3.0)
    found = run(searching(tmp_path, 60, problem=problem))
    assert found.schedule.rows == 6
    written = [name for name in read_scores(tmp_path) if name.startswith("diffusers ")]
    named = [name.removesuffix(", rows6") for name in written]
    assert len(named) == 3
    label = r"[\w-]+ on \S+, both branches at [\d,]+"
    assert found.baseline[0] in named or re.fullmatch(label, found.baseline[0])
    assert found.scores["test"] < 0.9 * found.baseline[1]
    by = {trial.strategy for trial in Log(tmp_path).own}
    assert {"grid", "fit"} <= by
    again = run(searching(tmp_path, 60))
    assert again.schedule == found.schedule
    assert again.scores == found.scores


def lines(folder):
    return [t.id for t in Log(folder).own]


class Killed(Exception):
    pass


def test_killed_and_started_again_is_as_uninterrupted(tmp_path):
    """Candidates, in order; the kill comes while a fitted one is scored."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run(searching(whole, 30, strategies=("grid", "fit")))
    search = searching(broken, 30, strategies=("grid", "fit"))
    inner, calls = search.objective, []

    class Dying:
        name = "terminal"

        def __call__(self, problem, schedule, block):
            calls.append(schedule)
            if len(calls) == 15:
                raise Killed
            return inner(problem, schedule, block)

    with pytest.raises(Killed):
        run(replace(search, objective=Dying()))
    assert len(lines(broken)) == 14
    run(search)
    assert lines(broken) == lines(whole)


def test_neighbours_of_the_best_are_tried_and_none_twice(tmp_path):
    search = searching(tmp_path, 60, strategies=("fit",))
    run(search)
    log = Log(tmp_path)
    labels = [trial.schedule.provenance["label"] for trial in log.own]
    assert len(labels) == len(set(labels)) >= 8
    assert all(label.startswith("fitted, nodes 0") for label in labels)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rows": 1}, "at least 2 network rows, not 1"),
        ({"rows": 0}, "rows must be at least 1, not 0"),
        ({"strategies": ("grid", "evolve")}, "evolve cannot search network rows; grid, fit"),
        ({"problem": small()}, "rows are searched under guidance"),
        ({"count": 0.5}, "too small for one candidate, which takes 36 network rows at 6 rows"),
    ],
)
def test_what_cannot_be_searched(tmp_path, fields, message):
    with pytest.raises(SettingError, match=message):
        run(searching(tmp_path, **fields))
    assert not list(tmp_path.iterdir())


# Several processes


def search_there(folder, barrier, fields):
    torch.set_num_threads(1)
    barrier.wait(60)
    run(searching(folder, **fields))


def in_two_processes(folder, **fields):
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(2)
    args = (folder, barrier, fields)
    workers = [context.Process(target=search_there, args=args) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
        assert worker.exitcode == 0


def test_two_processes_fit_different_placements(tmp_path):
    in_two_processes(tmp_path, count=60, strategies=("fit",))
    files = sorted(tmp_path.glob("worker-*.jsonl"))
    lines = [line for path in files for line in path.read_text().splitlines()]
    labels = [Trial.model_validate_json(line).schedule.provenance["label"] for line in lines]
    assert len(set(labels)) == len(labels) >= 8
    assert len(files) == 2


# The command


@pytest.fixture
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def search(*words, code=0):
    result = CliRunner().invoke(app, ["search", *map(str, words)])
    assert result.exit_code == code, (result.output, result.exception)
    return result.output


NET = ["fashion-unet", "--cfg-scale", 3, "--noises", "3,2,2", "--teacher-nfe", 6]


@pytest.mark.usefixtures("_folder")
def test_the_command_finds_a_schedule_of_so_many_rows():
    out = search(
        *NET, "--rows", 5, "--strategy", "grid", "--budget", "candidates=3", "--out", "g.json"
    )
    assert re.search(r"g.json: 5 rows, terminal [\d.]+ on test .* by grid from 3 candidates", out)
    facts = Schedule.load("g.json").provenance
    assert (facts["rows"], facts["cfg_scale"]) == (5, 3.0)
    assert Path("g.search/progress-rows5.svg").exists()
    words = ["fashion-unet", "--schedule", "g.json", "--seeds", "0-1", "--json"]
    result = CliRunner().invoke(sample_app, words)
    assert result.exit_code == 0, result.output
    ledger = json.loads(result.stdout)["ledger"]
    assert ledger["rows_per_image"] == 5
    assert ledger["nfe"] == 3


@pytest.mark.usefixtures("_folder")
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            (*NET, "--rows", 5, "--nfe", 5),
            "give --nfe, such as 5, or --nfe-range, such as 3-10, or",
        ),
        (NET, "under guidance, --rows"),
        ((*NET, "--rows", 1), "at least 2 network rows, not 1"),
        ((*NET[:1], *NET[3:], "--rows", 5), "give a guidance scale other than 1, or an NFE"),
        (
            (*NET, "--rows", 5, "--afs", "zero"),
            "--rows frees all that guided schedules have; drop afs",
        ),
        ((*NET, "--rows", 5, "--free", "times"), "drop free"),
        ((*NET, "--rows", 5, "--strategy", "evolve"), "evolve cannot search network rows"),
        ((*NET, "--rows", 5, "--budget", "evals=9"), "which takes 15 network rows at 5 rows"),
        (("toy", "--rows", 5), "give a guidance scale other than 1"),
    ],
)
def test_the_command_refuses(tmp_path, words, message):
    out = search(*words, code=2).strip()
    assert out.startswith("error: ")
    assert "\n" not in out
    assert message in out
    assert not list(tmp_path.glob("schedule.search/worker-*"))


def test_rows_that_a_killed_process_spent_are_charged_to_the_one_that_goes_on(tmp_path):
    first = task_of(tmp_path, strategies=("fit",))
    record_branches(first)  # and no trial is written
    rows, _ = first.meter.since()
    again = task_of(tmp_path, strategies=("fit",))
    record_branches(again)
    assert again.meter.since()[0] == rows > 0
