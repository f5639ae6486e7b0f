"""Functions of predictions in searched tables: their ranking, their start and their strategy."""

from dataclasses import replace

import pytest
import torch
from test_search_guided import searching
from test_search_newton import PROBLEM, task_of, unipc, with_afs, with_functions
from test_search_problem import QUICK, small
from torch.testing import assert_close

from fewstep.eval.requests import SearchRequest
from fewstep.eval.search import choice
from fewstep.eval.search.canonical import make_canonical, rows_of
from fewstep.eval.search.function_columns import add_functions, list_columns, rank_functions
from fewstep.eval.search.objective import rmse
from fewstep.eval.search.prepare import prepare_searches
from fewstep.eval.search.problem import Problem
from fewstep.eval.search.run import evaluate, run
from fewstep.eval.search.size import SearchSize
from fewstep.eval.search.strategies import columns, read_beyond, refine, strategies_of
from fewstep.models.errors import UnknownNameError
from fewstep.solvers import Schedule
from fewstep.solvers.prediction_functions import read_function, spell_function

TANH, CLAMP, BLUR = "tanh:gain=4.0,shift=-0.5", "clamp:low=-0.2,high=0.3", "blur:radius=1"
KNOWN = [CLAMP, BLUR, TANH]
MANY = Problem.of(PROBLEM.network, (64, 4, 4), teacher=QUICK)  # more numbers than columns


def bend(problem, schedule, function, weight):
    """The training block whose ends are those of a schedule and a function of its predictions."""
    block, table = problem.block("train"), make_canonical(schedule)
    *_, x0 = list_columns(problem, table, rows_of(table), table.functions, block)
    ends = problem.ends(schedule, block) + weight * read_function(function)(x0)
    return replace(block, ends=ends)


def test_columns_are_those_of_a_run():
    for schedule in (unipc(), with_afs(), with_functions()):
        block, table = PROBLEM.block("train"), make_canonical(schedule)
        rows = rows_of(table)
        found = list_columns(PROBLEM, table, rows, table.functions, block)
        end = sum(weight * column for weight, column in zip(rows[-1], found, strict=True))
        assert_close(end, PROBLEM.ends(schedule, block), rtol=1e-4, atol=1e-4)


def test_the_function_that_ends_were_made_with_is_ranked_first_and_fitted():
    for schedule, function in ((unipc(), TANH), (with_afs(), CLAMP), (with_functions(), CLAMP)):
        block = bend(MANY, schedule, function, 0.4)
        ranked = rank_functions(MANY, schedule, KNOWN, 2, block)
        assert ranked[0] == function
        assert len(set(ranked)) == 2
        before = rmse(MANY.ends(schedule, block), block)
        made = add_functions(MANY, schedule, ranked[:1], block)
        assert rmse(MANY.ends(made, block), block) < 0.05 * before
        old = schedule.functions if isinstance(schedule, Schedule) else ()
        assert set(made.functions) == {function, *old}
        assert (made.nfe, made.mean) == (schedule.nfe, schedule.mean)


def test_candidates_are_placed_by_the_ends():
    block = PROBLEM.block("train")
    shifted = replace(block, ends=5.0 + 3.0 * block.ends)
    for each in (block, shifted):
        low, high = torch.quantile(each.ends, 0.05), torch.quantile(each.ends, 0.95)
        functions = columns.list_candidates(each)
        clamp = next(f for f in functions if f.name == "clamp")
        assert (clamp.low, clamp.high) == pytest.approx((float(low), float(high)), abs=0.006)
        assert all(read_function(spell_function(f)) == f for f in functions)
        assert sum(f.spatial for f in functions) == 2
    for scale in (0.0, 1e-4, 1e4):  # nothing to clamp, and steps as steep as they may be, or flat
        assert columns.list_candidates(replace(block, ends=scale * block.ends))
    flat = replace(block, ends=block.ends.flatten(1), noise=block.noise.flatten(1))
    assert not any(f.spatial for f in columns.list_candidates(flat))


def proposed(task, count):
    made = []
    for proposal in columns.propose(task):
        made += [proposal] if evaluate(task, "columns", proposal) else []
        if len(made) == count:
            break
    return made


def test_the_strategy_adds_functions_and_refines_them_and_goes_on_where_it_was_stopped(tmp_path):
    whole, parts = task_of(tmp_path / "whole"), task_of(tmp_path / "parts")
    (start,) = whole.best()
    made = proposed(whole, 6)
    seeds = [each for each in made if each.parent == start.id]
    assert [len(each.schedule.functions) for each in seeds] == [1, 2, 3]
    assert all("wide" in each.schedule.provenance for each in made[3:])
    assert whole.best()[0].score < 0.5 * start.score
    assert not whole.best()[0].linear
    proposed(parts, 2)
    parts.log.close()
    again = proposed(task_of(tmp_path / "parts"), 4)
    assert [each.schedule for each in again] == [each.schedule for each in made[2:]]


def test_refine_and_the_best_linear_table_leave_them_alone(tmp_path):
    task = task_of(tmp_path)
    (start,) = task.best()
    proposed(task, 4)
    proposal = next(iter(refine.propose(task)))
    assert proposal.parent == start.id
    assert proposal.schedule.functions == ()


def test_the_linear_table_stands_beside_one_that_goes_beyond_it(tmp_path, monkeypatch):
    """Where validation chooses that; on so few noises it need not."""
    inner = choice._validate
    monkeypatch.setattr(
        choice, "_validate", lambda task: sorted(inner(task), key=lambda each: each[1].linear)
    )
    fields = {"problem": small(), "size": SearchSize(3)}
    strategies = ("grid", "refine", "columns")
    result = run(searching(tmp_path, 60, strategies=strategies, **fields))
    facts = result.schedule.provenance
    assert (result.schedule.version, facts["strategy"]) == (4, "columns")
    assert Schedule.parse(result.schedule.dump()).schedule_id == result.schedule.schedule_id
    linear = facts["columns"]["linear"]["distance"]["value"]
    assert facts["columns"]["searched"]["distance"]["value"] == result.scores["test"] != linear
    assert linear < facts["columns"]["hand_made"]["distance"]["value"]


def test_auto_leaves_them_out():
    assert "columns" not in strategies_of("nfe")
    assert "columns" in strategies_of("nfe", beyond=True)
    request = SearchRequest(network="toy", nfe=3, noises="4,4,4", beyond="columns")
    (search,) = prepare_searches(request)
    assert search.strategies == (*strategies_of("nfe"), "columns")
    assert read_beyond(None) == ()
    with pytest.raises(UnknownNameError, match="no step beyond linear tables 'column'; did you"):
        read_beyond("column")
