"""Tables that are refitted to a cache, row by row."""

import pytest
import torch
from tiny_pipes import pipeline

from fewstep.eval.search.budget import Budget
from fewstep.eval.search.log import Log
from fewstep.eval.search.objective import objective
from fewstep.eval.search.problem import Problem, Teacher
from fewstep.eval.search.refit import find_targets, record_states, refit
from fewstep.eval.search.run import run
from fewstep.eval.search.search import Search
from fewstep.eval.search.size import SearchSize
from fewstep.eval.search.space import Space
from fewstep.eval.search.uncached import drift_of
from fewstep.models.errors import SettingError
from fewstep.models.load import load
from fewstep.solvers import Schedule
from fewstep.solvers.cached_calls import CachedCalls

CALLS, FULL = 7, 3
MASK = CachedCalls(compute=(0, 2, 4))


@pytest.fixture(scope="module")
def problem():
    return Problem.of(load(pipeline("dit")), (8, 4, 8), teacher=Teacher(nfe=20), labels=(0, 1))


def base_of(problem):
    return Space(process=problem.network.schedule, grid="uniform")


@pytest.fixture(scope="module")
def plain(problem):
    return Schedule.of_steps(base_of(problem).base(CALLS))


def distance(problem, schedule, target):
    return float((problem.ends(schedule, problem.block("train")) - target).norm())


def test_a_table_stays_where_it_is_right_already(problem, plain):
    """Towards its own run, with every call full, there is nothing to change; nor at a large rho."""
    block = problem.block("train")
    states = record_states(problem, plain, block)
    assert torch.equal(states[-1], problem.ends(plain, block))
    every = plain.with_cache(CachedCalls(compute=tuple(range(CALLS))))
    for schedule, ridge in ((every, 1e-4), (plain, 1e-4), (plain.with_cache(MASK), 1e12)):
        made = refit(problem, schedule, block, states, ridge)
        assert (made.cache, made.t, made.nfe) == (schedule.cache, schedule.t, schedule.nfe)
        ends = problem.ends(schedule, block)
        torch.testing.assert_close(problem.ends(made, block), ends, rtol=1e-4, atol=1e-5)


def test_a_refitted_table_is_nearer_to_what_it_was_fitted_to(problem, plain):
    """In drift and in distance, by one run of the noises."""
    block, masked = problem.block("train"), plain.with_cache(MASK)
    reference = find_targets(problem, plain.grid(), block)
    assert torch.equal(reference[-1], block.ends)
    assert torch.equal(reference[0], record_states(problem, plain, block)[0])
    for targets in (record_states(problem, plain, block), reference):
        before = problem.evaluations
        made = refit(problem, masked, block, targets, 1e-4)
        assert problem.evaluations - before == CALLS * len(block)
        near, far = (distance(problem, each, targets[-1]) for each in (made, masked))
        assert near < 0.8 * far


def test_a_table_that_leaves_an_evaluation_out_is_refused(problem, plain):
    guided = plain.model_copy(update={"evaluations": (None, *plain.evaluations[1:])})
    with pytest.raises(SettingError, match="in every step"):
        refit(problem, guided, problem.block("train"), torch.zeros(CALLS + 1, 8), 1.0)


@pytest.mark.parametrize("drift", [True, False])
def test_the_search_fits_table_and_mask_in_turns(tmp_path, problem, plain, drift):
    """It is in the log, goes on from it, and stands beside a plain table that is fitted alike."""
    network = problem.network
    search = Search(
        problem=problem,
        objective=drift_of(problem, plain) if drift else objective("terminal", network),
        space=base_of(problem),
        size=SearchSize(FULL, "full", CALLS),
        strategies=("mask-even", "mask-refit"),
        budget=Budget("candidates", 400),
        folder=tmp_path,
    )
    found = run(search)
    log = Log(tmp_path)
    log.close()
    fitted = [each for each in log.own if each.strategy == "mask-refit"]
    roots = [each for each in fitted if each.parent is not None]
    assert len({each.parent for each in roots}) >= 2
    even = min(each.score for each in log.own if each.strategy == "mask-even")
    assert min(each.score for each in fitted) < even
    (tmp_path / "done-mask-refit-full3of7").unlink()
    assert run(search).schedule.schedule_id == found.schedule.schedule_id
    log = Log(tmp_path)
    log.close()
    assert len(log.own) == len(fitted) + sum(each.strategy == "mask-even" for each in log.own)
    rival = found.schedule.provenance["cache"]["beside"][-1]
    assert "refitted alike" in rival["name"]
    assert list(tmp_path.glob("plain-*.json"))
