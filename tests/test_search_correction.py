"""Learned corrections of the best table: their training, and their place in a search."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from test_search_guided import searching
from test_search_newton import task_of
from test_search_problem import ddim, small

from fewstep.eval.search import choice
from fewstep.eval.search.objective import rmse
from fewstep.eval.search.run import evaluate, run
from fewstep.eval.search.size import SearchSize
from fewstep.eval.search.strategies import correction, refine, strategies_of
from fewstep.eval.search.train_correction import FLOOR, RATE, RecordedRuns, find_rate
from fewstep.models.errors import SettingError
from fewstep.solvers import Schedule
from fewstep.solvers.correction import MOST_PARAMETERS, Correction

EMPTY = partial(Correction, shape=(2, 1, 2), width=6)


def count_to(most, done):
    return done / most


@pytest.mark.parametrize("steps", [(2,), (0, 1, 2)])
@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_training_lowers_the_distance_of_the_ends(steps, scale):
    """Of the last step on what was recorded, of inner ones through the network, guided or not."""
    problem = small(cfg_scale=scale)
    schedule, block = Schedule.of_steps(ddim(problem, 3)), problem.block("train")
    runs = RecordedRuns.of(problem, schedule, block)
    before = problem.ledger.rows
    untrained = runs.train(EMPTY(steps=steps), lambda done: 1.0, 0)
    assert torch.equal(problem.ends(untrained, block), problem.ends(schedule, block))
    rows = problem.ledger.rows
    made = runs.train(EMPTY(steps=steps), partial(count_to, 150), 0)
    asked = 150 * len(block) * (2 - steps[0]) * (1 if scale == 1.0 else 2)
    assert problem.ledger.rows - rows == asked
    assert rows > before
    far, near = (rmse(problem.ends(each, block), block) for each in (schedule, made))
    assert near < 0.85 * far
    again = runs.train(EMPTY(steps=steps), partial(count_to, 150), 0)
    assert again.schedule_id == made.schedule_id
    assert runs.train(EMPTY(steps=steps), partial(count_to, 150), 1) != made


def test_the_rate_rises_and_falls():
    assert find_rate(0.05) == pytest.approx(RATE, rel=0.01)
    assert find_rate(0.01) < find_rate(0.03) < find_rate(0.05)
    assert find_rate(0.1) > find_rate(0.5) > find_rate(1.0) == pytest.approx(RATE * FLOOR)


def test_one_step_and_then_two_are_corrected_and_validation_chooses(tmp_path, monkeypatch):
    """The file is a pair with its weights, and the linear table stands beside it."""
    inner = choice._validate
    monkeypatch.setattr(
        choice, "_validate", lambda task: sorted(inner(task), key=lambda each: each[1].linear)
    )
    strategies = ("grid", "refine", "correction")
    fields = {"problem": small(), "size": SearchSize(3), "strategies": strategies}
    result = run(searching(tmp_path / "log", 60, **fields))
    made, facts = result.schedule, result.schedule.provenance
    assert (made.version, facts["strategy"], facts["labels"]) == (5, "correction", [0, 1])
    assert "linear" in facts["columns"]
    made.write(tmp_path / "three.json")
    again = Schedule.load(tmp_path / "three.json")
    assert (again.schedule_id, again.correction) == (made.schedule_id, made.correction)


def test_other_strategies_move_the_table_and_never_a_corrected_one(tmp_path):
    task = task_of(tmp_path)
    (start,) = task.best()
    steps = []
    for proposal in correction.propose(task):
        assert proposal.parent == start.id
        evaluate(task, "correction", proposal)
        steps.append(proposal.schedule.correction.steps)
    assert steps == [(2,), (1, 2)]
    assert next(iter(refine.propose(task))).parent == start.id
    assert [each.parent for each in correction.propose(task)] == [start.id] * 2


def test_training_ends_with_its_part_of_the_budget(tmp_path):
    task = task_of(tmp_path)
    used = iter([0.2, 0.3, 0.5, 0.7])
    meter = type("Meter", (), {"used": lambda self: next(used)})()
    progress = correction._make_progress(replace(task, meter=meter), 64, 0.6)
    assert [progress(done) for done in (0, 6, 7)] == pytest.approx([0.25, 0.75, 1.25])


def test_a_correction_is_as_wide_as_its_parameters_allow():
    for shape in ((1, 32, 32), (32, 16, 16), (4,), (3, 9)):
        made = correction.describe_correction(shape, 5)
        assert made.parameters <= MOST_PARAMETERS
        assert made.steps == (4,)
    assert correction.describe_correction((32, 16, 16), 5).width < 24


def test_shapes_that_have_none_are_refused_before_any_work(tmp_path):
    problem = small()
    network = replace(problem.network, shape=(2, 1, 1, 2))
    search = searching(
        tmp_path / "log",
        problem=replace(problem, network=network),
        size=SearchSize(3),
        strategies=("grid", "correction"),
    )
    with pytest.raises(SettingError, match="leave correction out"):
        search.check()
    assert "correction" not in strategies_of("nfe")
    with pytest.raises(SettingError, match="correction cannot search network rows"):
        searching(tmp_path / "log", strategies=("grid", "correction")).check()
