"""The space of a search: everything it makes is valid, and nothing that is not free moves."""

import math
from itertools import pairwise
from random import Random

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from laws import GAUSSIAN, PROCESSES, run, start, textbook, with_table
from torch.testing import assert_close

from fewstep.eval.search.draft import GAP, Draft, project
from fewstep.eval.search.space import DECISIONS, DEFAULT, Space, encode_solver, make_grid
from fewstep.eval.search.variation import cross, draw_schedule, mutate, resize_schedule
from fewstep.models.errors import SettingError, UnknownNameError
from fewstep.models.schedule import Cosine, VPDiscrete
from fewstep.solvers import Executor, StepSchedule, take_solver
from fewstep.solvers.mean_image import MeanImage

ALL = frozenset(DECISIONS)
SPACES = {
    **{name: Space(process=process, free=ALL) for name, process in PROCESSES.items()},
    "zero-snr": Space(process=VPDiscrete(zero_snr=True), free=ALL),
    "cosine": Space(process=Cosine(), free=ALL),
    "above zero": Space(process=PROCESSES["edm"], ends=(0.002,), free=ALL),
}


def check(space, schedule, nfe):
    """Valid, of that cost, inside the space, and with steps that are told in one way only."""
    assert StepSchedule.parse(schedule.dump()) == schedule
    assert schedule.nfe == nfe
    assert schedule.t[0] in space.starts
    assert schedule.t[-1] in space.ends
    lams = [node.lam for node in schedule.grid().nodes]
    assert all(b - a >= 0.99 * GAP for a, b in pairwise(lams))
    low, high = space.lams
    assert all(low < lam <= high + 1e-6 for lam in lams[1:-1])
    assert all(step.order <= i for i, step in enumerate(schedule.steps, start=1))
    assert all(abs(step.c) <= 1.0 for step in schedule.steps)
    assert project(space, schedule).schedule_id == schedule.schedule_id


@pytest.mark.parametrize("name", SPACES)
@given(seed=st.integers(0, 10**6), nfe=st.integers(2, 7))
@example(seed=967, nfe=5)  # a start below t_max, and a node next to it
@settings(max_examples=15, deadline=None)
def test_all_operators_give_valid_schedules(name, seed, nfe):
    space, rng = SPACES[name], Random(seed)
    a, b = (draw_schedule(space, nfe, rng) for _ in range(2))
    child = cross(space, a, b, rng)
    for schedule in (a, b, child, mutate(space, child, rng)):
        check(space, schedule, nfe)
    check(space, resize_schedule(space, child, nfe + 2, rng), nfe + 2)
    check(space, resize_schedule(space, child, nfe - 1, rng), nfe - 1)


@pytest.mark.parametrize("name", SPACES)
def test_random_schedules_run_as_the_textbook_says(name):
    space, rng = SPACES[name], Random(1)
    for count in range(10):
        schedule = draw_schedule(space, 4, rng)
        grid = schedule.grid()

        class Searched:
            def on(self, grid, schedule=schedule):
                return Executor(schedule)

        x = run(Searched(), grid, start(grid), GAUSSIAN.x0)
        assert x.isfinite().all(), (name, count)
        if grid.nodes[0].alpha > 0.0:  # the textbook integrates over lam
            wanted = textbook(schedule, start(grid), GAUSSIAN.x0)
            assert_close(x, wanted, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("process", ["edm", "vp", "vp-linear"])
@pytest.mark.parametrize(
    "solver", ["ddim", "dpmpp-2m", "dpmpp-3m", "unipc-2", "unipc-3:solver_type=bh1", "deis-3"]
)
def test_named_solvers_are_points_of_the_space(process, solver):
    space = Space(process=PROCESSES[process])
    for end in space.ends:
        grid = make_grid(space, "karras", 6, end)
        found, wanted = project(space, encode_solver(solver, grid)), encode_solver(solver, grid)
        for a, b in zip(found.steps, wanted.steps, strict=True):
            assert a == b or (a.order == b.order == 1 and not b.corr.on)  # one form for DDIM
        assert found.t == pytest.approx(wanted.t, rel=1e-12)


@pytest.mark.parametrize("grid_name", ["uniform", "logsnr"])
@pytest.mark.parametrize("solver", ["dpmpp-2m", "unipc-3"])
def test_named_solvers_on_flow_are_the_same_where_alpha_is_zero(grid_name, solver):
    """What a first step from pure noise cannot use is not written down; it changes nothing."""
    space = Space(process=PROCESSES["flow"])
    grid = make_grid(space, grid_name, 5)
    found = project(space, encode_solver(solver, grid))

    class Searched:
        def on(self, grid):
            return Executor(found)

    wanted = run(take_solver(solver), grid, start(grid), GAUSSIAN.x0)
    assert torch.equal(run(Searched(), grid, start(grid), GAUSSIAN.x0), wanted)


FIXED = {
    "times": lambda s: s.t[1:-1],
    "ends": lambda s: (s.t[0], s.t[-1]),
    "order": lambda s: [step.order for step in s.steps],
    "pred": lambda s: [step.pred for step in s.steps],
    "corr": lambda s: [step.corr for step in s.steps],
    "relax": lambda s: {step.relax for step in s.steps if step.order > 1},
    "est": lambda s: {step.est for step in s.steps},
    "afs": lambda s: s.afs,
    "xi": lambda s: s.xi,
}


@pytest.mark.parametrize("name", FIXED)
def test_what_is_not_free_never_moves(name):
    """Neither drawing, mutation, crossing nor a seed from elsewhere brings another value in."""
    space = Space(process=PROCESSES["edm"], free=ALL - {name})
    value, rng = FIXED[name], Random(3)
    for _ in range(15):
        foreign = draw_schedule(SPACES["edm"], 5, rng)
        drawn = draw_schedule(space, 5, rng)
        seed = project(space, foreign)
        for schedule in (drawn, seed, mutate(space, seed, rng), cross(space, drawn, seed, rng)):
            end = schedule.t[-1] if name == "times" else None
            assert value(schedule) == value(space.base(len(schedule.steps), end))


def test_what_is_free_does_move():
    space, rng = SPACES["flow"], Random(5)
    seen = {name: set() for name in FIXED}
    parent = project(space, encode_solver("unipc-3", make_grid(space, "uniform", 5)))
    for _ in range(150):
        child = mutate(space, parent, rng)
        for name, value in FIXED.items():
            seen[name].add(str(value(child)))
    assert [name for name, values in seen.items() if len(values) < 2] == []


def test_times_move_in_lam_by_a_few_percent_of_the_range_or_stay():
    space = Space(process=PROCESSES["edm"], free=frozenset({"times"}))
    parent, rng = space.base(5), Random(0)
    steps = [
        b.lam - a.lam
        for _ in range(300)
        for a, b in zip(parent.grid().nodes, mutate(space, parent, rng).grid().nodes, strict=True)
    ]
    moved = [step for step in steps if abs(step) > 1e-9]
    low, high = space.lams
    assert 0.15 < len(moved) / len(steps) < 0.5
    assert 0.01 < (sum(s * s for s in moved) / len(moved)) ** 0.5 / (high - low) < 0.06


def test_afs_takes_one_step_more_at_the_same_cost():
    mean = MeanImage.of([0.5], (1,))
    space = Space(process=PROCESSES["vp"], free=DEFAULT | {"afs"}, afs=("zero", mean))
    rng, parent = Random(2), Space(process=PROCESSES["vp"]).base(4)
    found = {}
    for _ in range(200):
        child = mutate(space, parent, rng)
        found[str(child.afs)] = child
        parent = child
    assert len(found) == 3
    for child in found.values():
        assert child.nfe == 4
        assert len(child.steps) == 4 + (child.afs is not None)


def test_a_child_takes_from_both_parents():
    space, rng = SPACES["edm"], Random(7)
    a = project(space, encode_solver("unipc-3", make_grid(space, "karras", 6)))
    b = project(space, encode_solver("deis-3", make_grid(space, "logsnr", 6)))
    children = [cross(space, a, b, rng) for _ in range(40)]
    assert {child.t for child in children} == {a.t, b.t}
    mixed = [child for child in children if child.steps not in (a.steps, b.steps)]
    assert len(mixed) > 10
    for child in mixed:
        for step, first, second in zip(child.steps, a.steps, b.steps, strict=True):
            assert step.pred in (first.pred, second.pred)


def test_children_differ_from_their_parents_and_repeat_with_their_seed():
    space = SPACES["vp"]
    parent = space.base(5)
    a, b = (mutate(space, parent, Random("7 evolve")) for _ in range(2))
    assert a == b
    assert a.schedule_id != parent.schedule_id


def test_a_draft_leaves_coefficients_and_tables_behind():
    space = SPACES["edm"]
    table = with_table(space.base(4))
    assert project(space, table).compiled is None
    assert Draft.of(table).build(space).schedule_id == space.base(4).schedule_id


def test_errors():
    edm = PROCESSES["edm"]
    with pytest.raises(UnknownNameError, match="did you mean 'times'"):
        Space(process=edm, free=frozenset({"time"}))
    with pytest.raises(SettingError, match="not an exponential multistep"):
        Space(process=edm, solver="heun")
    with pytest.raises(SettingError, match="cannot be the start"):
        encode_solver("heun", make_grid(Space(process=edm), "karras", 3))
    with pytest.raises(SettingError, match="free more decisions"):
        mutate(Space(process=edm, free=frozenset({"pred"})), Space(process=edm).base(1), Random(0))
    assert math.isfinite(Space(process=PROCESSES["flow"]).lams[0])
