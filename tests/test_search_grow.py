"""Starts with one more evaluation: they end where the smaller schedule did."""

from dataclasses import replace

import pytest
from laws import measure_violations
from test_search_newton import task_of, unipc, with_afs
from test_search_problem import small
from torch.testing import assert_close

from fewstep.eval.search.budget import Meter
from fewstep.eval.search.canonical import times_of
from fewstep.eval.search.log import Trial
from fewstep.eval.search.run import evaluate
from fewstep.eval.search.size import SearchSize
from fewstep.eval.search.space import DEFAULT
from fewstep.eval.search.strategies import STRATEGIES, Proposal
from fewstep.eval.search.strategies.grow import insert_evaluation, prepend_constant
from fewstep.models.schedule import EDM, RectifiedFlow, VPLinear
from fewstep.samplers.grid import time_grid
from fewstep.solvers import solver
from fewstep.solvers.mean_image import MeanImage

PROBLEM = small(cfg_scale=1.0)


@pytest.mark.parametrize("schedule", [unipc(), with_afs()], ids=["plain", "afs"])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_grown_schedule_ends_where_it_did(schedule, place):
    block, made = PROBLEM.block("train"), insert_evaluation(schedule, place)
    assert made.nfe == schedule.nfe + 1
    assert_close(PROBLEM.ends(made, block), PROBLEM.ends(schedule, block), rtol=1e-5, atol=1e-6)
    tau = times_of(made)
    assert tau[: place + 1] + tau[place + 2 :] == times_of(schedule)
    assert tau[place] > tau[place + 1] > (*tau, schedule.t[-1])[place + 2]


@pytest.mark.parametrize("afs", ["zero", MeanImage.of([0.3, -0.2, 0.1, 0.4], (2, 1, 2))])
def test_a_first_step_that_costs_nothing_leaves_the_end(afs):
    block, made = PROBLEM.block("train"), prepend_constant(unipc(), afs)
    assert (made.nfe, len(made.steps), made.stand_in) == (3, 4, afs)
    assert made.evaluations[0] is None
    assert_close(PROBLEM.ends(made, block), PROBLEM.ends(unipc(), block), rtol=1e-5, atol=1e-6)


def test_where_it_is_free_it_is_a_start(tmp_path):
    task = task_of(tmp_path, free=DEFAULT | {"afs"})
    task = replace(task, space=replace(task.space, afs=("zero",)))
    (proposal,) = STRATEGIES.get("grow").propose(task)
    assert (proposal.schedule.evaluations[0], proposal.schedule.stand_in) == (None, "zero")
    assert proposal.parent == task.best()[0].id
    assert evaluate(task, "grow", proposal)
    assert task.best()[0].score == pytest.approx(task.best()[1].score, rel=1e-4)
    assert {task.size.fits(trial.schedule) for trial in task.best()} == {True}


@pytest.mark.parametrize("process", [RectifiedFlow(), EDM(), VPLinear()], ids=lambda p: p.family)
def test_the_new_state_is_that_of_its_time(process):
    """Where the table was exact for constant predictions, it still is."""
    base = solver("unipc-2").step_schedule(time_grid("uniform", process, 3))
    made = insert_evaluation(base, 1)
    nodes = [process.at(t) for t in (*times_of(made), made.t[-1])]
    found = measure_violations(replace(made.table(), nodes=nodes))
    assert found.state < 1e-12
    assert found.predictions < 1e-12


def larger(folder, nfe):
    """A task of more evaluations on a log that knows one schedule of three."""
    task = task_of(folder)
    return replace(
        task,
        size=SearchSize(nfe),
        meter=Meter(task.meter.budget, task.log, SearchSize(nfe), lambda: PROBLEM.evaluations, 18),
    )


@pytest.mark.parametrize(("nfe", "places"), [(4, 3), (5, 4), (7, 6)])
def test_starts_are_as_good_as_what_they_were_made_of(tmp_path, nfe, places):
    task = larger(tmp_path, nfe)
    (parent,) = task.log.trials.values()
    for proposal in STRATEGIES.get("grow").propose(task):
        assert evaluate(task, "grow", proposal)
    assert len(task.best()) == places
    assert {trial.parent for trial in task.best()} == {parent.id}
    assert {trial.schedule.nfe for trial in task.best()} == {nfe}
    assert [t.score for t in task.best()] == pytest.approx([parent.score] * places, rel=1e-4)


def test_behind_a_first_step_that_costs_nothing_there_is_no_room(tmp_path):
    """Its two evaluations have the same time."""
    task = larger(tmp_path, 4)
    made = prepend_constant(unipc(), "zero")
    task.log.append(Trial.of(made, -1.0, strategy="grow", seed=0, evals=18))
    made_of = [proposal.parent for proposal in STRATEGIES.get("grow").propose(task)]
    assert made_of == [made.schedule_id] * 3


def test_without_anything_smaller_there_are_none(tmp_path):
    assert list(STRATEGIES.get("grow").propose(task_of(tmp_path))) == []


def test_it_takes_the_best_of_the_largest_that_is_smaller(tmp_path):
    task = larger(tmp_path, 6)
    nodes = time_grid("uniform", PROBLEM.network.schedule, 5)
    of_five = [solver(name).step_schedule(nodes) for name in ("unipc-2", "ddim")]
    for schedule in of_five:
        evaluate(replace(task, size=SearchSize(5)), "grid", Proposal(schedule))
    best = min((task.log.trials[s.schedule_id] for s in of_five), key=lambda trial: trial.rank)
    assert {proposal.parent for proposal in STRATEGIES.get("grow").propose(task)} == {best.id}
