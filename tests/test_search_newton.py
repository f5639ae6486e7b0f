"""Gauss-Newton on tables: sensitivities, steps and its strategy."""

import math
from dataclasses import replace
from itertools import islice
from types import SimpleNamespace

import pytest
import torch
from laws import f64
from test_search_problem import QUICK, ddim, small
from torch.testing import assert_close

from fewstep.eval.search import newton
from fewstep.eval.search.budget import Budget, Meter
from fewstep.eval.search.canonical import make_canonical, rows_of, times_of
from fewstep.eval.search.guided import guide_schedule
from fewstep.eval.search.log import Log, Trial
from fewstep.eval.search.newton import Sensitivities, TablePoint, solve_damped, sum_products
from fewstep.eval.search.objective import objective, rmse
from fewstep.eval.search.problem import Problem
from fewstep.eval.search.run import evaluate
from fewstep.eval.search.size import SearchSize
from fewstep.eval.search.space import DEFAULT, Space
from fewstep.eval.search.strategies import Proposal, Task, refine
from fewstep.eval.search.strategies.refine import FACTORS, PATIENCE, Line
from fewstep.models.denoiser import Network
from fewstep.models.schedule import EDM
from fewstep.samplers.grid import time_grid
from fewstep.samplers.plan import make_plan
from fewstep.solvers import Schedule, StepSchedule, solver
from fewstep.solvers.mean_image import MeanImage

PROBLEM = small(cfg_scale=1.0)


def unipc(steps=3):
    grid = time_grid("uniform", PROBLEM.network.schedule, steps)
    return solver("unipc-2", coordinate="lam").step_schedule(grid)


def with_afs():
    mean = MeanImage.of([0.3, -0.2, 0.1, 0.4], (2, 1, 2))
    return StepSchedule.model_validate({**unipc().model_dump(), "afs": mean, "nfe": 2})


def with_functions():
    made = Schedule.of_steps(unipc())
    weights = (("tanh:gain=2.0,shift=0.3", 0, 0.2), ("blur:radius=1", 1, -0.1))
    steps = [*made.steps[:2], (*made.steps[2], *weights)]
    return Schedule.model_validate({**dict(made), "version": 4, "steps": steps})


CASES = {
    "plain": (1.0, unipc()),
    "with functions": (1.0, with_functions()),
    "with functions under guidance": (3.0, with_functions()),
    "afs": (1.0, with_afs()),
    "under guidance": (3.0, unipc()),
    "with guidance of its own": (3.0, guide_schedule(unipc(), 3.0, (0, 2))),
}


@pytest.fixture(params=CASES.values(), ids=CASES)
def case(request):
    """A problem and a schedule."""
    scale, schedule = request.param
    return small(cfg_scale=scale), schedule


def test_a_point_is_the_schedules_table(case):
    _, schedule = case
    made = TablePoint.of(schedule).schedule()
    assert rows_of(made.table()) == rows_of(make_canonical(schedule))
    assert (made.nfe, made.rows, made.stand_in) == (
        schedule.nfe,
        schedule.rows,
        schedule.mean or "zero",
    )
    assert times_of(made)[-2:] == pytest.approx(times_of(schedule)[-2:], rel=1e-12)


def test_a_run_ends_where_the_executor_does(case):
    problem, schedule = case
    block = problem.block("train")
    run = Sensitivities(problem, TablePoint.of(schedule), block)
    assert_close(run.x, problem.ends(schedule, block), rtol=1e-5, atol=1e-5)


def measure_move(up, down):
    """Returns how far two points are apart; a first time at t_max can only fall."""
    pairs = zip((up.u, *up.rows), (down.u, *down.rows), strict=True)
    return sum(float((a - b).abs().sum()) for a, b in pairs)


def test_sensitivities_are_differences_of_runs(case, monkeypatch):
    monkeypatch.setattr(newton, "NUDGE", 2e-3)  # the networks of small() bend within more
    problem, schedule = case
    block, point = problem.block("train"), TablePoint.of(schedule)
    run = Sensitivities(problem, point, block)
    count = len(point.asks) + sum(map(len, point.rows))
    assert len(run.moves) == count
    for i in range(count):
        step = torch.zeros(count, dtype=torch.float64)
        step[i] = 2e-3
        points = [point.move(m) for m in (step, -step)]
        up, down = (problem.ends(each.schedule(), block) for each in points)
        wanted = (up - down) / measure_move(*points)
        assert float((run.moves[i] - wanted).norm()) < 0.05 * float(wanted.norm()) + 2e-3, i


def test_the_network_is_asked_in_its_range_alone():
    """Also for the difference by a time that is at the end of the range."""
    problem, point, asked = small(cfg_scale=1.0), TablePoint.of(unipc()), []
    high = point.coordinate.ends[1]
    point.u[-1] = high
    inner = problem.answers

    def telling(block, x, node, branches):
        asked.append(point.coordinate.of(node))
        return inner(block, x, node, branches)

    object.__setattr__(problem, "answers", telling)
    Sensitivities(problem, point, problem.block("train"))
    assert max(asked) == pytest.approx(high, rel=1e-9)


def test_products_in_parts_are_the_whole(monkeypatch):
    block, point = PROBLEM.block("train"), TablePoint.of(unipc())
    whole = sum_products(PROBLEM, point, block)
    monkeypatch.setattr(newton, "NUMBERS", 1)
    for part, all_ in zip(sum_products(PROBLEM, point, block), whole, strict=True):
        assert_close(part, all_, rtol=1e-2, atol=1e-2)


def test_an_undamped_step_solves_a_linear_problem():
    jacobian, wanted = f64([1.0, 2.0, 0.0], [0.0, 1.0, 1.0], [3.0, 0.0, 1.0]), f64(0.5, -1.0, 2.0)
    step = solve_damped(jacobian.T @ jacobian, jacobian.T @ (jacobian @ -wanted), 0.0)
    assert_close(step, wanted)
    shorter = solve_damped(jacobian.T @ jacobian, jacobian.T @ (jacobian @ -wanted), 1.0)
    assert 0.0 < float(shorter.norm()) < float(wanted.norm())


def test_numbers_that_do_nothing_stay():
    gram = f64([2.0, 0.0], [0.0, 0.0])
    assert solve_damped(gram, f64(1.0, 0.0), 0.1)[1] == 0.0
    assert torch.isfinite(solve_damped(gram, f64(1.0, 0.0), 0.1)).all()


def test_times_stay_in_reach_and_inside():
    point = TablePoint.of(unipc())
    low, high = point.coordinate.ends
    moved = point.move(torch.full((len(point.asks) + 9,), 1e3, dtype=torch.float64))
    assert float((moved.u - point.u).max()) <= newton.REACH * (high - low) + 1e-12
    assert float(moved.u.max()) <= high


def test_the_start_moves_below_t_max():
    """On EDM the noise is scaled anew there; no start passes the node after it."""
    network = replace(PROBLEM.network, schedule=EDM())
    problem = Problem.of(network, (6, 4, 4), teacher=QUICK)
    grid = time_grid("karras", network.schedule, 3)
    block, point = problem.block("train"), TablePoint.of(solver("unipc-2").encode(grid))
    run = Sensitivities(problem, point, block)
    assert point.schedule().t[0] == network.schedule.t_max
    step = torch.zeros(len(run.moves), dtype=torch.float64)
    step[0] = 0.02
    made = point.move(step).schedule()
    assert made.t[0] == made.evaluations[0].t == pytest.approx(80.0 * math.exp(-0.02))
    there = (problem.ends(made, block) - run.x) / 0.02
    back = (problem.ends(point.move(-step).schedule(), block) - run.x) / 0.02
    assert float(back.norm()) < 1e-3  # it started at the end of the process
    assert float((run.moves[0] - there).norm()) < 0.05 * float(there.norm()) + 2e-3
    for _ in range(60):
        point = point.move(1e3 * step)
    assert point.schedule().t[0] > made.t[1]


def test_a_step_lowers_the_error(case):
    problem, schedule = case
    block, point = problem.block("train"), TablePoint.of(schedule)
    made = point.move(solve_damped(*sum_products(problem, point, block), 0.1)).schedule()
    before, after = (rmse(problem.ends(each, block), block) for each in (schedule, made))
    assert after < 0.8 * before


# The strategy


def task_of(folder, free=None):
    """A search of three evaluations on the small problem, with one trial in its log."""
    problem, log = small(), Log(folder)
    aim = objective("terminal", problem.network)
    if not log.trials:
        start = ddim(problem, 3)
        score = aim(problem, start, problem.block("train"))
        log.append(Trial.of(start, score, strategy="grid", seed=0, evals=18))
    budget = Budget("candidates", 1e6)
    return Task(
        problem=problem,
        objective=aim,
        space=Space(process=problem.network.schedule, free=DEFAULT if free is None else free),
        scored=problem.block("train"),
        size=SearchSize(3),
        log=log,
        meter=Meter(budget, log, SearchSize(3), lambda: problem.evaluations, 18),
    )


def refined(task, count):
    """So many proposals, evaluated as a search does; one that is in the log does not count."""
    done = (evaluate(task, "refine", proposal) for proposal in refine.propose(task))
    for _ in islice(filter(None, done), count):
        pass
    return [trial.id for trial in task.log.own if trial.strategy == "refine"]


def test_it_betters_the_best_of_the_log(tmp_path):
    task = task_of(tmp_path)
    (start,) = task.best()
    refined(task, 4)
    best = task.best()[0]
    assert best.score < 0.5 * start.score
    assert best.schedule.nfe == 3
    assert best.schedule.provenance["label"].startswith("refine from")
    assert best.schedule.provenance["damping"] > 0.0


@pytest.mark.parametrize("first", [1, 2, 3])
def test_a_search_that_was_broken_off_goes_on_as_if_it_had_not_been(tmp_path, first):
    whole = refined(task_of(tmp_path / "whole"), 4)
    task = task_of(tmp_path / "parts")
    refined(task, first)
    task.log.close()
    assert refined(task_of(tmp_path / "parts"), 4 - first) == whole


def test_it_ends_when_nothing_gets_better(tmp_path, monkeypatch):
    task = task_of(tmp_path)
    monkeypatch.setattr(type(task.objective), "__call__", lambda *_: 1e3)
    refined(task, 100)
    assert len(task.log.own) == 1 + PATIENCE


def test_two_processes_take_other_noises(tmp_path):
    one = task_of(tmp_path)
    two = task_of(tmp_path)
    assert (one.log.worker, two.log.worker) == (0, 1)
    ids = [next(iter(refine.propose(task))).schedule.schedule_id for task in (one, two)]
    assert ids[0] != ids[1]


def test_times_that_are_not_free_stay(tmp_path):
    task = task_of(tmp_path, free=frozenset({"order"}))
    (start,) = task.best()
    refined(task, 1)
    best = task.best()[0]
    assert best.score < start.score
    assert times_of(best.schedule) == pytest.approx(times_of(start.schedule), rel=1e-9)


def test_the_first_rounds_start_from_others(tmp_path):
    task = task_of(tmp_path)
    for grid in ("uniform", "beta", "logsnr"):
        nodes = time_grid(grid, task.problem.network.schedule, 3)
        for name in ("dpmpp-2m", "unipc-2"):  # with the same times: one of them is a start
            made = solver(name).step_schedule(nodes)
            assert evaluate(task, "grid", Proposal(made))
    refined(task, 4)
    parents = [trial.parent for trial in task.log.own if trial.strategy == "refine"]
    first = [task.log.trials[parent] for parent in parents[:3]]
    assert {trial.strategy for trial in first} == {"grid"}
    assert len({trial.schedule.t for trial in first}) == 3
    assert task.log.trials[parents[3]].strategy == "refine"


def test_the_steps_of_a_round_are_told_apart_on_more_noises(tmp_path, monkeypatch):
    """The one that is kept is the best there, with what it was and became."""
    task, told = task_of(tmp_path), []
    inner = refine._score_widely

    def telling(task, schedule):
        told.append(inner(task, schedule))
        return told[-1]

    monkeypatch.setattr(refine, "_score_widely", telling)
    (start,) = task.best()
    refined(task, 1)
    facts = task.log.own[-1].schedule.provenance
    assert len(told) == len(FACTORS) + 1
    assert (facts["wide"], facts["before"]) == (min(told[:-1]), told[-1])
    train = task.problem.block("train")
    assert told[-1] == pytest.approx(task.objective(task.problem, start.schedule, train), rel=1e-6)
    refined(task, 1)
    assert len(told) == 2 * len(FACTORS) + 1  # what is known is not measured again
    assert task.log.own[-1].schedule.provenance["before"] == facts["wide"]


def test_every_strategy_has_a_start(tmp_path, monkeypatch):
    """What one of them gives may score worse and have the better valley behind it."""
    monkeypatch.setattr(refine, "LADDER", ((2, 1), (2, 4)))
    task = task_of(tmp_path)
    for i, grid in enumerate(("uniform", "beta", "quadratic", "karras")):
        nodes = make_plan(task.problem.network.schedule, "ddim", steps=3, grid=grid).grid
        name = "fit" if grid == "karras" else "grid"
        task.log.append(
            Trial.of(
                solver("unipc-2").step_schedule(nodes), 0.01 * i, strategy=name, seed=0, evals=18
            )
        )
    refined(task, 2)
    parents = [trial.parent for trial in task.log.own if trial.strategy == "refine"]
    assert {task.log.trials[parent].strategy for parent in parents} == {"grid", "fit"}


@pytest.mark.parametrize(
    ("found", "tried"), [([0.9, 0.8], 0), ([0.9, 0.899], 1), ([0.9, 0.95, 0.899], 2), ([1.0], 1)]
)
def test_a_round_that_gains_next_to_nothing_does_not_count(found, tried):
    """Else small steps would go on for ever."""
    before, made = 1.0, []
    for wide in found:
        facts = {"before": before, "wide": wide}
        made.append(SimpleNamespace(schedule=SimpleNamespace(provenance=facts)))
        before = min(before, wide)
    line = Line(SimpleNamespace(id="root"), tuple(made))
    assert line.tried == tried
    kept = len(made) - tried
    assert line.best is (made[kept - 1] if kept else line.root)


def test_the_ladder_of_starts(tmp_path, monkeypatch):
    """Each start has a round, the best ones have four, the best goes on alone."""
    monkeypatch.setattr(refine, "LADDER", ((6, 1), (3, 4)))
    task = task_of(tmp_path)
    for grid in ("uniform", "beta", "logsnr", "beta:alpha=2.0", "uniform"):
        nodes = make_plan(task.problem.network.schedule, "ddim", steps=3, grid=grid).grid
        evaluate(task, "grid", Proposal(solver("dpmpp-2m").step_schedule(nodes)))
    roots = list(task.log.own)
    refined(task, len(roots) + 3 * 3 + 3)
    line_of = {trial.id: trial.id for trial in roots}
    for trial in task.log.own[len(roots) :]:
        line_of[trial.id] = line_of[trial.parent]
    rounds = [line_of[trial.id] for trial in task.log.own[len(roots) :]]
    assert set(rounds[: len(set(rounds))]) == set(rounds)
    counts = sorted((rounds.count(line) for line in set(rounds)), reverse=True)
    assert counts[:3] >= [4, 4, 4]
    assert set(counts[3:]) <= {1}


def test_alone_it_starts_from_the_base_of_the_space(tmp_path):
    task = task_of(tmp_path)
    task.log.trials.clear()
    task.log.own.clear()
    first, second, *_ = islice(strategy_run(task), 4)
    assert first.parent is None
    assert second.parent == first.schedule.schedule_id


def strategy_run(task):
    for proposal in refine.propose(task):
        evaluate(task, "refine", proposal)
        yield proposal


def test_it_needs_no_gradients(tmp_path):
    task = task_of(tmp_path)

    def forward(x, node, conditions):
        return PROBLEM.network.forward(x.detach(), node, conditions).detach()

    assert isinstance(task.problem.network, Network)
    object.__setattr__(task.problem.network, "forward", forward)
    assert next(iter(refine.propose(task))).schedule.nfe == 3
