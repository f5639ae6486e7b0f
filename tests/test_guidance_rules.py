"""Rules of guidance against hand-made numbers: those of two branches, and those that ask again."""

import math

import pytest
import torch
from guided import SCALED, denoiser, ends, grid_of
from laws import GAUSSIAN, PROCESSES, f64, solver, unit_noise

from fewstep import (
    CFGMP,
    EDM,
    FDG,
    REG,
    TCFG,
    FeedbackGuidance,
    RectifiedCFGPlusPlus,
    RectifiedFlow,
    SlidingModeCFG,
)
from fewstep.models.denoiser import Ask, Branch
from fewstep.models.gaussian import GaussianMixture
from fewstep.models.schedule import TimeGrid
from fewstep.samplers.guidance import (
    CFG,
    CFGPlusPlus,
    Guide,
    Interval,
    Moment,
    Setup,
    parse_guidance,
)
from fewstep.samplers.guidance.base import format_guidance
from fewstep.samplers.guidance.fbg import compare_distances
from fewstep.samplers.guidance.fdg import weigh_bands
from fewstep.samplers.guidance.tcfg import project_to_common

OTHER = GaussianMixture.single(f64(0.0, 0.1, -0.2, 0.3), f64(1.0, 0.8, 1.2, 0.9).sqrt())
FLOW = TimeGrid.of(RectifiedFlow(), [0.6, 0.4, 0.1])
X = f64([0.3, -0.2, 0.4, 0.5])
DRAW = torch.Generator().manual_seed(0)
U, C = (torch.randn(3, 2, 9, 6, generator=DRAW, dtype=torch.float64) for _ in range(2))


def guide_of(policy, grid=FLOW) -> Guide:
    network = GAUSSIAN.network(grid.schedule, (1, 2, 2))
    return policy.begin(Setup(network, solver("ddim").on(grid), grid, images=1, evaluate=evaluate))


def evaluate(x, node, asks):
    """The two laws as a network."""
    return tuple((GAUSSIAN if ask.branch is Branch.COND else OTHER).x0(x, node) for ask in asks)


def answer(guide, grid=FLOW, n=0, x=X):
    """Returns the x0 that a guide makes of the two laws at node n."""
    node = grid.nodes[n]
    moment = Moment(node, n)
    return guide.combine(evaluate(x, node, guide.ask(moment)), x, moment)


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (CFG(3.0), (1.641081626, -1.115245902, 0.903678930, 2.238961039)),
        (SlidingModeCFG(3.0), (1.461081626, -0.935245902, 0.723678930, 2.058961039)),
        (TCFG(3.0), (1.534588962, -0.847081231, 0.542690877, 2.431277223)),
        (TCFG(3.0, space="eps"), (1.529565612, -1.053602047, 1.068803678, 2.133866854)),
        (TCFG(3.0, space="x0"), (1.511204566, -0.909195049, 0.939132200, 2.365670935)),
    ],
    ids=repr,
)
def test_golden_numbers_on_two_gaussians(policy, expected):
    torch.testing.assert_close(answer(guide_of(policy)), f64(expected), rtol=0, atol=1e-9)


# TCFG


def test_the_projection_is_that_of_a_singular_value_decomposition():
    for u, c in ((U, C), (C, U), (U, 0.01 * C), (U, U + 1e-3 * C), (0.01 * U, C)):
        projected = project_to_common(u, c)
        for a, b, made in zip(u, c, projected, strict=True):
            v = torch.linalg.svd(torch.stack([b.flatten(), a.flatten()]))[2][0]
            torch.testing.assert_close(made.flatten(), (a.flatten() @ v) * v, rtol=0, atol=1e-13)


def test_branches_that_agree_or_are_zero_are_left_alone():
    torch.testing.assert_close(project_to_common(U, U), U)
    zero = torch.zeros_like(U)
    assert torch.equal(project_to_common(zero, zero), zero)
    torch.testing.assert_close(project_to_common(U, zero), U)


# SMC-CFG


def differences(policy, gaps):
    """The e'' of evaluations in v whose branches are so far apart."""
    guide, node = guide_of(policy), FLOW.nodes[0]
    made = []
    for gap in gaps:
        u = f64([0.0])
        guided = guide.combine([u, u - gap * node.sigma], u, Moment(node))
        made.append(float(guided / -node.sigma / policy.scale))
    return made


def test_small_differences_alternate_and_larger_ones_lose_k():
    for rate in (5.0, 6.0):
        policy = SlidingModeCFG(3.0, rate=rate)
        assert differences(policy, [0.05] * 4) == pytest.approx([-0.05, 0.15, -0.05, 0.15])
        assert differences(policy, [0.3] * 4) == pytest.approx([0.2] * 4)


def test_the_soft_switch_shrinks_what_exceeds_the_conditional():
    guide, node = guide_of(SlidingModeCFG(3.0, switch="soft")), FLOW.nodes[0]
    u, c = f64([0.0, 0.0, 0.0]), f64([0.05, 0.3, -0.3]) * node.sigma
    guided = guide.combine([u, c], u, Moment(node))
    torch.testing.assert_close(guided / node.sigma, f64([0.05, 0.3 + 2 * 0.2, -0.3 - 2 * 0.2]))


# FDG


def test_bands_add_up_and_equal_scales_are_one():
    for shape in ((2, 1, 8, 8), (2, 3, 7, 5), (1, 2, 3, 9, 16), (2, 1, 1, 2)):
        x = torch.randn(shape, generator=DRAW, dtype=torch.float64)
        halvings = 3 if min(shape[-2:]) > 4 else 1
        for n in range(halvings + 1):
            torch.testing.assert_close(weigh_bands(x, [3.0] * (n + 1)), 3.0 * x)


def test_a_flat_picture_is_all_in_the_coarsest_band_and_a_chessboard_in_the_finest():
    flat = torch.full((1, 1, 8, 8), 2.0)
    torch.testing.assert_close(weigh_bands(flat, [100.0, 10.0, 3.0]), 3.0 * flat)
    rows, columns = torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij")
    board = (1.0 - 2.0 * ((rows + columns) % 2)).reshape(1, 1, 16, 16)
    inside = (..., slice(4, -4), slice(4, -4))
    torch.testing.assert_close(weigh_bands(board, [5.0, 1.0])[inside], 5.0 * board[inside])


def test_the_published_scales_are_the_default_at_scale_5():
    node, x = FLOW.nodes[0], torch.zeros_like(U)
    made = guide_of(FDG(5.0)).combine([U, C], x, Moment(node))
    torch.testing.assert_close(made, U + weigh_bands(C - U, [10.0, 5.0]))


# Feedback guidance


EDM_GRID = TimeGrid.of(EDM(), [2.0, 1.0, 0.5])
START = f64([0.9, -0.5, 0.6, 1.2])


def test_feedback_by_hand():
    policy = FeedbackGuidance(10.0, temperature=0.1, offset=-0.02)
    guide = guide_of(policy, EDM_GRID)
    guided = answer(guide, EDM_GRID, 0, START)
    node = EDM_GRID.nodes[0]
    u, c = OTHER.x0(START, node), GAUSSIAN.x0(START, node)
    torch.testing.assert_close(guided, torch.lerp(u, c, 1.052631579), rtol=0, atol=1e-9)
    x = (START + guided) / 2  # an Euler step from 2 to 1
    distance = compare_distances(*EDM_GRID.nodes[:2], (START, u, c, x))
    assert float(distance) == pytest.approx(-0.676829394, abs=1e-9)
    guided = answer(guide, EDM_GRID, 1, x)
    assert float(guide.log_p) == pytest.approx(0.025121960, abs=1e-9)
    u, c = OTHER.x0(x, EDM_GRID.nodes[1]), GAUSSIAN.x0(x, EDM_GRID.nodes[1])
    torch.testing.assert_close(guided, torch.lerp(u, c, 1.051258910), rtol=0, atol=1e-9)


@pytest.mark.parametrize("process", ["vp", "edm", "flow"])
def test_distances_are_those_of_their_definition(process):
    t, s = grid_of(6, schedule=PROCESSES[process]).nodes[2:4]
    x = U + C
    r = (s.kappa / t.kappa) ** 2
    sizes = [
        (x / s.alpha - r * X[0, 0] / t.alpha - (1.0 - r) * branch).flatten(1).square().sum(1)
        for branch in (C, U)
    ]
    found = compare_distances(t, s, (torch.full_like(U, float(X[0, 0])), U, C, x))
    torch.testing.assert_close(found, sizes[0] - sizes[1])


def test_the_first_step_may_come_from_pure_noise():
    grid = TimeGrid.of(RectifiedFlow(), [1.0, 0.5, 0.2])
    guide = guide_of(FeedbackGuidance(10.0), grid)
    for n in range(2):
        assert torch.isfinite(answer(guide, grid, n)).all()
    assert float(guide.log_p) != 0.0


def test_offsets_and_temperatures_follow_the_number_of_steps():
    policy = FeedbackGuidance(10.0)
    assert policy.choose_offset(64) == pytest.approx(-0.0809, abs=5e-5)
    assert policy.choose_offset(10) == pytest.approx(-0.518, abs=5e-4)
    assert FeedbackGuidance(10.0, offset=0.5).choose_offset(10) == 0.5
    grid = TimeGrid.of(EDM(), [8.0, 4.0, 2.0, 1.0, 0.5, 0.0])
    variances = [(t * t - s * s) * s * s / (t * t) for t, s in ((8, 4), (4, 2), (2, 1), (1, 0.5))]
    for t1, variance in ((0.4, variances[2]), (0.5, (variances[1] + variances[2]) / 2)):
        policy = FeedbackGuidance(10.0, t1=t1, offset=-0.5)
        assert policy.choose_temperature(grid) == pytest.approx(2 * variance / 10 * 0.5)
    assert FeedbackGuidance(10.0, temperature=0.25).choose_temperature(grid) == 0.25


def test_the_scale_of_feedback_stays_within_its_bounds():
    for offset, bound in ((-50.0, 4.0), (50.0, 1.0 / (1.0 - 0.05 * math.exp(-3.0)))):
        guide = guide_of(FeedbackGuidance(4.0, offset=offset, temperature=0.0))
        answer(guide)
        node = FLOW.nodes[1]
        expected = torch.lerp(OTHER.x0(X, node), GAUSSIAN.x0(X, node), bound)
        torch.testing.assert_close(answer(guide, n=1), expected)
    at_once = answer(guide_of(FeedbackGuidance(1.01)))  # below 1 / prior
    node = FLOW.nodes[0]
    torch.testing.assert_close(at_once, torch.lerp(OTHER.x0(X, node), GAUSSIAN.x0(X, node), 1.01))


def test_further_evaluations_of_a_step_take_its_scale():
    guide = guide_of(FeedbackGuidance(10.0))
    answer(guide)
    before = guide.log_p
    node = FLOW.nodes[1]
    guide.combine([X, 2.0 * X], X, Moment(node, 0, stage=1))
    assert guide.log_p is before
    guide.combine([X, 2.0 * X], X, Moment(node, 1))
    assert float(guide.log_p) != float(before)


# REG


def test_weights_by_the_slopes_of_the_conditional_prediction():
    rho = f64((0.017467249, 0.1, 0.307692308, 0.181818182))
    guided = f64((0.717296214, -0.480524590, 0.586930795, 1.329397875))
    made = answer(guide_of(REG(3.0)), x=X.clone().requires_grad_()).detach()
    torch.testing.assert_close(made, guided, rtol=0, atol=1e-9)
    u, c = evaluate(X, FLOW.nodes[0], (Ask(Branch.UNCOND), Ask(Branch.COND)))
    torch.testing.assert_close((made - c) / (2.0 * (c - u)), rho, rtol=0, atol=1e-8)


def test_at_pure_noise_it_is_the_conditional_and_its_backward_passes_are_counted():
    grid = TimeGrid.of(RectifiedFlow(), [1.0, 0.5])
    who, other = (denoiser(2, grid.schedule) for _ in range(2))
    guided = ends(solver("ddim"), 0, REG(3.0), grid, unit_noise(), who)
    assert torch.equal(guided, ends(solver("ddim"), 0, CFG(1.0), grid, unit_noise(), other))
    assert (who.ledger.rows, who.ledger.backwards, who.ledger.evaluations) == (4, 4, 2)


# Rules that ask again within a step


def euler(policy):
    """Where the step from 0.6 to 0.4 leads."""
    t, s = FLOW.nodes[:2]
    x0 = answer(guide_of(policy))
    return X + (s.sigma - t.sigma) * (X - x0) / t.sigma


def test_half_a_step_ahead_by_hand():
    ahead = f64((0.567416863, -0.374266667, 0.476923077, 0.871387560))
    torch.testing.assert_close(euler(RectifiedCFGPlusPlus(2.0)), ahead, rtol=0, atol=1e-9)
    here = f64((0.590325831, -0.387540984, 0.491638796, 0.894372294))
    torch.testing.assert_close(euler(CFG(2.0)), here, rtol=0, atol=1e-9)
    weaker = euler(RectifiedCFGPlusPlus(2.0, power=2.0))
    none = euler(CFG(1.0))
    torch.testing.assert_close(weaker - none, 0.36 * (ahead - none), rtol=0, atol=1e-8)


MOVED = {
    1: (0.376511589, -0.255799180, 0.436956522, 0.593722944),
    2: (0.443301811, -0.307424856, 0.473264141, 0.682982890),
}


@pytest.mark.parametrize("iterations", MOVED)
def test_the_state_moves_before_the_step(iterations):
    policy, (t, s) = CFGMP(2.0, iterations=iterations), FLOW.nodes[:2]
    guide = guide_of(policy)
    z = guide.move(X, OTHER.x0(X, t), t, s)
    torch.testing.assert_close(z, f64(MOVED[iterations]), rtol=0, atol=1e-9)
    guided = torch.lerp(OTHER.x0(z, t), GAUSSIAN.x0(z, t), 2.0)
    torch.testing.assert_close(euler(policy), z + (s.sigma - t.sigma) * (z - guided) / t.sigma)
    assert torch.equal(euler(CFGMP(2.0, iterations=0)), euler(CFG(2.0)))
    assert torch.equal(euler(CFGMP(2.0, share=0.0)), euler(CFG(2.0)))


def test_a_mixed_move_goes_on_by_at_most_the_one_before():
    """The residuals of the first two iterates are nearly alike, and g is at its bound."""
    t, s = FLOW.nodes[:2]
    plain, mixed = (
        guide_of(CFGMP(2.0, iterations=2, anderson=on)).move(X, OTHER.x0(X, t), t, s)
        for on in (False, True)
    )
    first = f64(MOVED[1])
    torch.testing.assert_close(mixed, plain + (plain - first), rtol=0, atol=1e-8)
    part = guide_of(CFGMP(2.0, iterations=1, anderson=True, beta=0.5)).move(X, OTHER.x0(X, t), t, s)
    torch.testing.assert_close(part, (X + first) / 2, rtol=0, atol=1e-9)


@pytest.mark.parametrize("process", ["vp", "edm", "flow"])
def test_with_shorter_steps_both_become_full_guidance(process):
    """On any process, as they are written in the time of rectified flow; moves add up."""
    for policy, scale in ((RectifiedCFGPlusPlus(2.0), 2.0), (CFGMP(2.0, share=1.0), 3.0)):
        true = near_end(CFG(scale), 400, process)
        far, near = (float((near_end(policy, n, process) - true).norm()) for n in (10, 40))
        assert near < far / 3.0


def near_end(policy, steps, process):
    grid = grid_of(steps, schedule=PROCESSES[process])
    x = unit_noise() * grid.schedule.noise_scale(grid.nodes[0])
    return ends(solver("ddim"), 0, policy, grid, x, denoiser(2, grid.schedule))


def test_every_row_is_counted_and_no_further_evaluation():
    for policy, rows in (
        (RectifiedCFGPlusPlus(2.0), [3] * 8),
        (CFGMP(2.0), [6] * 4 + [2] * 4),
        (CFGMP(2.0, iterations=3, share=0.25), [8] * 2 + [2] * 6),
    ):
        who = denoiser(2)
        ends(solver("ddim"), 8, policy, who=who)
        assert [who.ledger.steps[n] for n in range(8)] == [2 * each for each in rows]
        assert (who.ledger.rows, who.ledger.evaluations) == (2 * sum(rows), 16)


# All of them


ALL = [  # adaptive with batch=all decides for a whole batch
    *(parse_guidance(name, 3.0) for name in SCALED if name != "adaptive"),
    CFGMP(3.0, iterations=3, anderson=True),
    CFGPlusPlus(),
    FeedbackGuidance(4.0, prior=0.5),
    SlidingModeCFG(3.0, switch="soft"),
]


@pytest.mark.parametrize("policy", ALL, ids=format_guidance)
def test_an_image_does_not_know_the_others_of_its_batch(policy):
    grid = grid_of(8)
    x = unit_noise((4, 2, 1, 2)) * grid.schedule.noise_scale(grid.nodes[0])
    together = ends(solver("ddim"), 0, policy, grid, x, denoiser(4))
    for row in range(4):
        alone = ends(solver("ddim"), 0, policy, grid, x[row : row + 1], denoiser(1))
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("policy", ALL, ids=format_guidance)
def test_inside_an_interval_it_is_itself_and_outside_it_is_not_asked(policy):
    whole = ends(solver("ddim"), 8, Interval(policy, 0.0, math.inf))
    assert torch.equal(whole, ends(solver("ddim"), 8, policy))
    who = denoiser(2)
    ends(solver("ddim"), 8, Interval(policy, 0.25, 0.5, "step"), who=who)
    rows = [who.ledger.steps[n] for n in range(8)]
    assert rows[:2] + rows[4:] == [2] * 6
    assert max(rows[2:4]) >= 4
