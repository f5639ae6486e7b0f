"""Where guidance stops or starts, a multistep solver keeps its order if its memory is rewritten."""

import math
from itertools import pairwise

import pytest
import torch
from guided import EDGE, NONE, SCHEDULE, SHAPE, ends, exact, grid_of, network
from laws import FIXED, runs, solver, start, unit_noise, with_table

from fewstep.samplers.guidance import (
    CFG,
    AdaptiveGuidance,
    History,
    Interval,
    Moment,
    Setup,
    Thresholded,
)
from fewstep.solvers import Executor, Revisable, Revision, drive, revise_step
from fewstep.solvers.linear import Encoder
from fewstep.solvers.singlestep import Singlestep
from fewstep.solvers.table_steps import TableSteps

SCALE = 3.0
RUNS = {  # guidance ends, or begins, in the middle
    "stops": (EDGE, math.inf, CFG(SCALE), NONE),
    "starts": (0.0, EDGE, NONE, CFG(SCALE)),
}


def full(name):
    """A solver at its full order to the end."""
    options = {"evodiff": {"final_step": "plain", "lower_order_final": False}}
    settings = solver(name, **options.get(name, {}))
    lowers = hasattr(settings, "lower_order_final") and name != "evodiff"
    return solver(name, lower_order_final="never") if lowers else settings


def remembers(name):
    steps = full(name).on(grid_of(8))
    return isinstance(steps, Revisable) and steps.reach > 0


def runs_here(name):
    return not solver(name).info.stochastic and runs(solver(name), SCHEDULE.family)


REMEMBERING = [name for name in FIXED if runs_here(name) and remembers(name)]
MULTISTEP = [  # those of order 1 have none to lose
    n for n in REMEMBERING if not isinstance(solver(n), Singlestep) and solver(n).info.order > 1
]


def errors(settings, case, rewrite, sizes):
    low, high, first, second = RUNS[case]
    guidance = Interval(CFG(SCALE), low, high, rewrite_history=rewrite)
    true = exact(first, second)
    return [float((ends(settings, n, guidance) - true).norm()) for n in sizes]


def order(settings, case, rewrite):
    coarse, fine = errors(settings, case, rewrite, (64, 128))
    return math.log2(coarse / fine)


def test_the_multistep_solvers_are_known():
    assert {"dpmpp-2m", "dpmpp-3m", "unipc-3", "deis-tab3", "dpm-solver-v3", "lms"} <= set(
        MULTISTEP
    )
    assert "evodiff" in REMEMBERING


@pytest.mark.parametrize("case", RUNS)
@pytest.mark.parametrize("name", MULTISTEP)
def test_the_order_is_lost_and_kept(name, case):
    assert order(full(name), case, rewrite=False) < 1.25
    assert order(full(name), case, rewrite=True) > 1.7


@pytest.mark.parametrize("case", RUNS)
def test_evodiff_comes_closer_at_few_steps(case):
    naive = errors(full("evodiff"), case, False, (8, 12, 16))
    rewritten = errors(full("evodiff"), case, True, (8, 12, 16))
    assert all(b < a for a, b in zip(naive, rewritten, strict=True))


@pytest.mark.parametrize("case", RUNS)
@pytest.mark.parametrize("name", ["dpm-3s", "dpmpp-3s"])
def test_a_switch_inside_a_block_of_a_singlestep_solver(name, case):
    """128 is no multiple of 3, so the middle lies inside a block."""
    (naive,) = errors(full(name), case, False, (64,))
    (rewritten,) = errors(full(name), case, True, (64,))
    assert rewritten < naive / 4


@pytest.mark.parametrize("case", RUNS)
@pytest.mark.parametrize("name", ["dpmpp-2m", "unipc-2"])
def test_tables_do_what_their_steps_do(name, case):
    """A table weighs all past predictions and begins at z_0 each time: that is moved too."""

    class Tabled:
        def on(self, grid):
            return Executor(with_table(full(name).step_schedule(grid)))

    assert isinstance(solver(name), Encoder)
    stepwise = errors(full(name), case, True, (64,))
    assert errors(Tabled(), case, True, (64,)) == pytest.approx(stepwise, rel=1e-5)


def told(steps, answers, states=()):
    """All states visited, and the memory at the last, of a run that is given these answers.

    states: where it is taken to be, instead of where it goes.
    """
    grid = grid_of(8)
    x, memory, visited = start(grid), steps.init(), []
    for n, (t, s) in zip(range(len(answers)), pairwise(grid.nodes), strict=False):
        visited.append(states[n] if states else x)
        answer = answers[n]
        x, memory = drive(steps.step(visited[n], memory, t, s), lambda *query, a=answer: a)
    return visited, memory


@pytest.mark.parametrize("name", REMEMBERING)
def test_the_state_is_that_of_a_solver_that_was_told_otherwise(name):
    draw = torch.Generator().manual_seed(0)
    old, new = (
        [torch.randn(2, *SHAPE, generator=draw, dtype=torch.float64) for _ in range(5)]
        for _ in range(2)
    )
    steps = full(name).on(grid_of(8))
    visited, memory = told(steps, old)
    _, wanted = told(steps, new, visited)
    changes = [Revision(a, b) for a, b in zip(old[::-1], new[::-1], strict=True)]
    found = steps.revise(memory, changes)
    if isinstance(steps, TableSteps) and steps.starts[5] < 5:
        return  # a block begun earlier: its start moves, as the order tests show
    held = (lambda s: s.f) if hasattr(found, "f") else (lambda s: s.past)
    torch.testing.assert_close(held(found), held(wanted))
    if getattr(found, "probe", None) is not None:
        torch.testing.assert_close(tuple(found.probe), tuple(wanted.probe))


def test_nothing_is_rewritten_unless_asked_for():
    low, high, *_ = RUNS["stops"]
    plain = ends(full("dpmpp-2m"), 8, Interval(CFG(SCALE), low, high))
    assert torch.equal(plain, ends(full("dpmpp-2m"), 8, CFG(SCALE, (low, high))))
    rewritten = ends(full("dpmpp-2m"), 8, Interval(CFG(SCALE), low, high, rewrite_history=True))
    assert not torch.equal(plain, rewritten)


def test_without_a_switch_rewriting_changes_nothing():
    whole = Interval(CFG(SCALE), 0.0, math.inf, rewrite_history=True)
    assert torch.equal(ends(full("unipc-3"), 8, whole), ends(full("unipc-3"), 8, CFG(SCALE)))


def test_a_solver_under_a_threshold_remembers_thresholded_predictions():
    guidance = Thresholded(Interval(CFG(SCALE), 0.0, 1.0, rewrite_history=True), floor=1e-9)
    assert guidance.rewrites
    grid = grid_of(4)
    guide = guidance.begin(Setup(network(), full("lms").on(grid), grid, 2))
    outputs = [unit_noise(), unit_noise() * 3.0]
    for node in (grid.nodes[0], grid.nodes[-1]):
        guide.ask(Moment(node))
        told = guide.conditional(outputs, outputs[0], Moment(node))
        branch = outputs[-1] if node is grid.nodes[-1] else outputs[0]  # outside it asks one
        assert torch.equal(told, guidance.clip(branch))


def test_rows_switch_by_themselves():
    history = History(2)
    cond = [torch.full((3, 1), float(n)) for n in range(3)]
    for n, on in enumerate([True, (True, False, True)]):
        history.note(cond[n] + 10.0, on, lambda n=n: cond[n])
    (change,) = history.changes()
    assert change.old.flatten().tolist() == [10.0, 10.0, 10.0]
    assert change.new.flatten().tolist() == [10.0, 0.0, 10.0]
    history.note(cond[2], False, lambda: cond[2])
    newest, oldest = history.changes()
    assert newest.new.flatten().tolist() == [1.0, 11.0, 1.0]  # row 1 was told 11 unguided
    assert oldest.new.flatten().tolist() == [0.0, 0.0, 0.0]
    assert history.changes() == ()


def test_a_step_is_asked_once_and_answered_once():
    grid = grid_of(8)
    steps, x, asked = full("dpmpp-2m").on(grid), unit_noise(), []
    state = steps.init()

    def answer(x, node):
        asked.append(node)
        return x * 0.5

    for n, (t, s) in enumerate(pairwise(grid.nodes)):
        found = [Revision(x, x)] if n == 4 else ()
        x, state = drive(revise_step(steps, (x, state, t, s), lambda found=found: found), answer)
    assert asked == list(grid.nodes[:-1])


def test_adaptive_guidance_rewrites_where_it_stops():
    policy = AdaptiveGuidance(SCALE, threshold=0.5, rewrite_history=True)
    plain = AdaptiveGuidance(SCALE, threshold=0.5)
    assert policy.rewrites
    assert not plain.rewrites
    assert not torch.equal(ends(full("unipc-2"), 10, policy), ends(full("unipc-2"), 10, plain))
    assert torch.equal(ends(full("ddim"), 10, policy), ends(full("ddim"), 10, plain))
