"""Solvers that call the network several times a step, or keep a slope: against the rules written
out in the straight coordinate, in both directions, and Heun's churn against EDM's algorithm."""

import math
from functools import cache
from itertools import pairwise

import pytest
import torch
from diffusers import KDPM2DiscreteScheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import GAUSSIAN, MIXTURE, PROCESSES, even_in_lam, f64, run, runs, start, unit_noise, walk
from torch.testing import assert_close

from fewstep.models.errors import ScheduleError, SettingError
from fewstep.models.gaussian import GaussianMixture
from fewstep.models.schedule import EDM, Cosine, RectifiedFlow, TimeGrid, VPDiscrete
from fewstep.samplers.budget import fit_grid, predict_nfe
from fewstep.samplers.grid import Final, time_grid
from fewstep.solvers import drive, list_queries, solver
from fewstep.solvers.coordinates import Straight

NAMES = ["dpm2", "fireflow", "heun", "res-2s", "res-3s", "rf-solver", "rf-solver-3", "uni-inv"]
STRAIGHT = ["dpm2", "fireflow", "heun", "rf-solver", "rf-solver-3", "uni-inv"]
SOFT = GaussianMixture(  # far from linear, and smooth enough for slopes
    means=f64([-0.8, 0.3, 0.5, -0.2], [0.6, -0.7, 0.1, 0.9]),
    stds=f64([0.6], [0.9]),
    weights=f64(0.6, 0.4),
)


def homes(name):
    return [p for p in PROCESSES if runs(solver(name), PROCESSES[p].family)]


CASES = [(name, process) for name in NAMES for process in homes(name)]


def grid_on(process, *kappas):
    schedule = PROCESSES[process]
    return TimeGrid.of(schedule, [schedule.at_lam(-math.log(kappa)).t for kappa in kappas])


def uneven(process):
    return grid_on(process, 20.0, 9.0, 5.0, 1.5, 0.8, 0.1)


def to_zero(process):
    grid = uneven(process)
    return TimeGrid.of(grid.schedule, [*(node.t for node in grid), 0.0])


# The straight coordinate


def scale(node, process):
    return node.alpha + node.sigma if process == "flow" else node.alpha


def slope(y, tau, process, law=MIXTURE.x0):
    """dy/dtau, from the definitions; also what tells x from y, and tau from sigma, in the rest."""
    node = node_of(tau, process)
    return (y - law(y * scale(node, process), node)) / tau


def node_of(tau, process):
    kappa = tau / (1 - tau) if process == "flow" else tau
    return PROCESSES[process].at_lam(-math.log(kappa) if kappa else math.inf)


def by_rule(rule, grid, process):
    """x at the last node of a run whose step is y_s = rule(y, tau_t, tau_s, process)."""
    nodes = grid.nodes
    y = start(grid) / scale(nodes[0], process)
    for t, s in pairwise(nodes):
        y = rule(y, t.sigma / scale(t, process), s.sigma / scale(s, process), process)
    return y * scale(nodes[-1], process)


def euler(y, a, b, process):
    return y + (b - a) * slope(y, a, process)


def midpoint(y, a, b, process):
    half = y + (b - a) / 2 * slope(y, a, process)
    return y + (b - a) * slope(half, (a + b) / 2, process)


def taylor(y, a, b, process):
    """RF-Solver as its paper writes it."""
    h, d = b - a, slope(y, a, process)
    change = (slope(y + h / 2 * d, a + h / 2, process) - d) / (h / 2)
    return y + h * d + h * h / 2 * change


def ralston(y, a, b, process):
    h, d = b - a, slope(y, a, process)
    return y + h * (d / 4 + slope(y + 2 * h / 3 * d, a + 2 * h / 3, process) * 3 / 4)


def trapezoid(y, a, b, process):
    if b == 0.0:
        return euler(y, a, b, process)
    d = slope(y, a, process)
    return y + (b - a) * (d + slope(y + (b - a) * d, b, process)) / 2


def ralston_3(y, a, b, process):
    h, d = b - a, slope(y, a, process)
    d2 = slope(y + h / 2 * d, a + h / 2, process)
    d3 = slope(y + h * 3 / 4 * d2, a + h * 3 / 4, process)
    return y + h * (2 * d + 3 * d2 + 4 * d3) / 9


def log_midpoint(y, a, b, process):
    if b == 0.0:
        return euler(y, a, b, process)
    m = math.exp((math.log(a) + math.log(b)) / 2)
    return y + (b - a) * slope(y + (m - a) * slope(y, a, process), m, process)


@pytest.mark.parametrize("end", [uneven, to_zero])
@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize(
    ("name", "settings", "rule"),
    [
        ("rf-solver", {}, midpoint),
        ("rf-solver", {}, taylor),
        ("rf-solver", {"theta": 2 / 3}, ralston),
        ("rf-solver", {"theta": 1.0}, trapezoid),
        ("heun", {}, trapezoid),
        ("rf-solver-3", {}, ralston_3),
        ("dpm2", {}, log_midpoint),
    ],
)
def test_step_is_the_rule_written_out(name, settings, rule, process, end):
    grid = end(process)
    x = run(solver(name, **settings), grid, start(grid), MIXTURE.x0)
    assert_close(x, by_rule(rule, grid, process), rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize("process", PROCESSES)
def test_fireflow_reuses_the_slope_of_the_last_midpoint(process):
    grid, held = to_zero(process), []

    def rule(y, a, b, process):
        d = held.pop() if held else slope(y, a, process)
        held.append(slope(y + (b - a) / 2 * d, (a + b) / 2, process))
        return y + (b - a) * held[0]

    x = run(solver("fireflow"), grid, start(grid), MIXTURE.x0)
    assert_close(x, by_rule(rule, grid, process), rtol=1e-12, atol=1e-11)


def test_uni_inv_takes_the_slope_at_the_far_end():
    grid, held = to_zero("flow"), []

    def rule(y, a, b, process):
        if b == 0.0:
            return euler(y, a, b, process)
        ahead = y + (b - a) * (held.pop() if held else slope(y, a, process))
        held.append(slope(ahead, b, process))
        return y + (b - a) * held[0]

    x = run(solver("uni-inv"), grid, start(grid), MIXTURE.x0)
    assert_close(x, by_rule(rule, grid, "flow"), rtol=1e-12, atol=1e-11)


@given(kappa=st.floats(1e-3, 100.0), share=st.floats(0.0, 1.0))
@pytest.mark.parametrize("process", [*PROCESSES, "cosine"])
def test_nodes_are_found_by_their_tau(process, kappa, share):
    schedule = Cosine() if process == "cosine" else PROCESSES[process]
    lam = max(-math.log(kappa), schedule.at(schedule.t_max).lam)
    node, other = schedule.at_lam(lam), schedule.at_lam(lam + 1.0)
    line = Straight(schedule, other, denoise=False, flow=process == "flow")
    found = line.node_at(line.tau(node))
    assert found.t == pytest.approx(node.t, rel=1e-9)
    assert found.lam == pytest.approx(node.lam, abs=1e-9)
    wanted = line.tau(node) + share * (line.tau(other) - line.tau(node))
    assert line.tau(line.node_between(node, other, share)) == pytest.approx(wanted, rel=1e-9)
    assert line.node_between(node, other, 1.0) is other


def test_ends_are_found_by_their_tau():
    for schedule in PROCESSES.values():
        assert Straight(schedule, None, False, False).node_at(0.0) == schedule.at(schedule.t_zero)
    flow = RectifiedFlow(shift=3.0)
    assert Straight(flow, None, False, True).node_at(1.0) == flow.at(1.0)


# Order


@pytest.mark.parametrize(
    ("name", "settings", "order"),
    [
        ("rf-solver", {}, 2),
        ("rf-solver", {"theta": 0.3}, 2),
        ("rf-solver", {"theta": 1.0}, 2),
        ("rf-solver-3", {}, 3),
        ("fireflow", {}, 2),
        ("dpm2", {}, 2),
        ("res-2s", {}, 2),
        ("res-2s", {"c2": 0.8}, 2),
        ("res-3s", {}, 3),
        ("res-3s", {"c2": 1 / 3, "c3": 2 / 3}, 3),
        ("res-3s", {"c2": 0.6, "c3": 0.8}, 3),
    ],
)
@pytest.mark.parametrize("process", ["vp-linear", "edm", "flow"])
def test_order_on_a_mixture(name, settings, order, process):
    """On one Gaussian the ODE is linear, which hides the conditions that a third order needs."""
    coarse, fine = (apart(solver(name, **settings), process, steps) for steps in (128, 256))
    assert math.log2(coarse / fine) == pytest.approx(order, abs=0.1)


def apart(settings, process, steps):
    """How far from a run of another family of methods on a fine grid."""
    grid = even_in_lam(PROCESSES[process], steps, 5.0, 0.05)
    wrong = run(settings, grid, mixed(grid), SOFT.x0) - fine_end(process)
    return float(wrong.abs().max()) / grid.nodes[-1].alpha


def mixed(grid):
    return unit_noise() * math.hypot(grid.nodes[0].alpha, grid.nodes[0].sigma)


@cache
def fine_end(process):
    grid = even_in_lam(PROCESSES[process], 2048, 5.0, 0.05)
    return run(solver("unipc-3", lower_order_final="never"), grid, mixed(grid), SOFT.x0)


def test_midpoint_gains_an_order_on_a_gaussian():
    """f'' / 24 + f f' / 4 + f^3 / 6 = 0 for f = tau / (S + tau^2): there is no error of order 2."""

    def wrong(steps):
        grid = even_in_lam(EDM(), steps)
        x = start(grid)
        exact = GAUSSIAN.flow_map(x, grid.nodes[0], grid.nodes[-1])
        return (run(solver("rf-solver"), grid, x, GAUSSIAN.x0) - exact).abs().max()

    assert math.log2(wrong(256) / wrong(512)) == pytest.approx(3, abs=0.05)


# Exact answers, in either direction

LEVEL = st.floats(math.log(0.05), math.log(50.0))


@settings(max_examples=30, deadline=None)
@given(
    levels=st.lists(LEVEL, min_size=2, max_size=5).filter(
        lambda v: all(abs(a - b) > 0.1 for a, b in pairwise(v))
    )
)
@pytest.mark.parametrize(("name", "process"), CASES)
def test_constant_x0_is_exact_between_any_nodes(name, process, levels):
    schedule = PROCESSES[process]
    nodes = [schedule.at_lam(-level) for level in levels]
    x0 = unit_noise().flip(0)
    x, (first, last) = unit_noise() * nodes[0].sigma, (nodes[0], nodes[-1])
    exact = last.sigma / first.sigma * (x - first.alpha * x0) + last.alpha * x0
    got = along(solver(name), schedule, nodes, x, lambda x, node: x0)
    assert_close(got, exact, rtol=1e-9, atol=1e-9)


def along(settings, schedule, nodes, x, law):
    """x after steps over any nodes, falling or rising."""
    steps = settings.on(TimeGrid.of(schedule, [schedule.t_max, schedule.t_zero]))
    state = steps.init()
    for t, s in pairwise(nodes):
        x, state = drive(steps.step(x, state, t, s), law)
    return x


class Euler:
    """Both ways, which the registered one is not: its table holds the steps of one grid."""

    def on(self, grid):
        return self

    def init(self):
        return None

    def step(self, x, state, t, s):
        x0 = yield x, t
        return x + (s.sigma - t.sigma) * (x - x0) / t.sigma, None


@pytest.mark.parametrize(
    ("there", "back", "order"),
    [
        ("euler", "euler", 1),
        ("rf-solver", "rf-solver", 3),
        ("fireflow", "fireflow", 3),
        ("uni-inv", "euler", 2),
        ("heun", "heun", 3),
        ("rf-solver-3", "rf-solver-3", 3),
    ],
)
def test_order_of_a_round_trip(there, back, order):
    """From data to noise and back: the errors of even order cancel between the two ways."""
    schedule, x = RectifiedFlow(), unit_noise()

    def missed(steps):
        taus = [0.02 + 0.98 * i / steps for i in range(steps + 1)]
        nodes = [schedule.at(tau) for tau in taus]
        one, other = (Euler() if name == "euler" else solver(name) for name in (there, back))
        noise = along(one, schedule, nodes, x, SOFT.x0)
        return (along(other, schedule, nodes[::-1], noise, SOFT.x0) - x).abs().max()

    assert math.log2(missed(256) / missed(512)) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize(
    ("name", "settings"),
    [("res-2s", {}), ("res-2s", {"c2": 0.3}), ("res-3s", {}), ("res-3s", {"c2": 0.2, "c3": 0.7})],
)
@pytest.mark.parametrize("process", ["vp-linear", "edm", "flow"])
def test_x0_linear_in_lam_is_integrated_exactly(name, settings, process):
    """x = alpha (p - p') + C sigma has x0 = p = a + b lam."""
    a, b = f64([0.3, -0.5]), f64([0.2, 0.7])

    def exact(node):
        return node.alpha * (a + b * node.lam - b) + 0.6 * node.sigma

    for t, s in pairwise(uneven(process).nodes):
        x = along(
            solver(name, **settings),
            PROCESSES[process],
            [t, s],
            exact(t),
            lambda x, node: a + b * node.lam,
        )
        assert_close(x, exact(s), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("c2", "c3"), [(0.5, 1.0), (0.5, 2 / 3), (0.2, 0.8)])
def test_third_order_conditions_hold_for_any_step(c2, c3):
    """sum b = phi_1, sum b c = phi_2, and sum_i b_i (c_i^2 phi_2(-c_i h) - sum_j a_ij c_j) = 0.

    The weights are read off a step whose x0 are unit vectors.
    """
    h, units, asked = 1.7, iter(torch.eye(3, dtype=torch.float64)), []

    def law(x, node):
        asked.append((x, node))
        return next(units)

    nodes = [EDM().at_lam(lam) for lam in (0.2, 0.2 + h)]
    x = along(solver("res-3s", c2=c2, c3=c3), EDM(), nodes, torch.zeros(3).double(), law)
    places = [(node.lam - 0.2) / h for _, node in asked]
    assert places == pytest.approx([0.0, c2, c3])
    rows, c, b = [state / h for state, _ in asked], f64(*places), x / h

    def phi_2(z):
        return (math.exp(z) - 1 - z) / z**2

    assert float(b.sum()) == pytest.approx(math.expm1(-h) / -h, rel=1e-12)
    assert float(b @ c) == pytest.approx(phi_2(-h), rel=1e-12)
    for row, place in zip(rows[1:], places[1:], strict=True):
        assert float(row.sum()) == pytest.approx(math.expm1(-place * h) / -h, rel=1e-12)
    inner = zip(rows[1:], (c2, c3), strict=True)
    defects = [place**2 * phi_2(-place * h) - float(row @ c) for row, place in inner]
    assert abs(float(b[1]) * defects[0] + float(b[2]) * defects[1]) < 1e-15
    assert abs(defects[0]) > 1e-3  # each alone is not zero


def test_res_2s_is_exact_in_the_weights_of_hochbruck_and_ostermann():
    x0, x1, h = f64([0.4]), f64([-1.1]), math.log(6.0)
    answers = iter([x0, x1])
    x = along(
        solver("res-2s"),
        EDM(),
        [EDM().at(3.0), EDM().at(0.5)],
        f64([2.0]),
        lambda x, node: next(answers),
    )
    phi_1 = (1 - 1 / 6) / h
    phi_2 = (1 / 6 - 1 + h) / h**2
    assert_close(x, f64([2.0 / 6]) + h * ((phi_1 - 2 * phi_2) * x0 + 2 * phi_2 * x1))


# Ends


@pytest.mark.parametrize("name", STRAIGHT)
def test_start_at_alpha_zero_is_the_limit(name):
    def end(first):
        grid = TimeGrid.of(RectifiedFlow(), [first, 0.8, 0.5, 0.2, 0.0])
        return run(solver(name), grid, unit_noise(), MIXTURE.x0)

    # dpm2's midpoint stands at a square root, which moves like the distance from the end
    assert_close(end(1.0), end(1 - 1e-9), rtol=0, atol=1e-7)


@pytest.mark.parametrize("name", ["res-2s", "res-3s"])
@pytest.mark.parametrize("ends", [(1.0, 0.6), (0.6, 0.0), (1.0, 0.0)])
def test_infinite_exponential_steps_are_ddim(name, ends):
    grid = TimeGrid.of(RectifiedFlow(), ends)
    a, b = (run(solver(n), grid, unit_noise(), MIXTURE.x0) for n in (name, "ddim"))
    assert torch.equal(a, b)
    assert len(list_queries(solver(name).on(grid), grid)) == 1


@pytest.mark.parametrize("name", NAMES)
def test_denoising_step_is_one_evaluation(name):
    schedule = PROCESSES["flow"]
    grid = time_grid("uniform", schedule, 4, Final.DENOISE)
    assert grid.denoise
    asked = []

    def law(x, node):
        asked.append((x, node, MIXTURE.x0(x, node)))
        return asked[-1][-1]

    *_, (before, _), (after, _) = walk(solver(name).on(grid), grid, start(grid), law)
    x, node, x0 = asked[-1]
    assert node == grid.nodes[-2]
    assert_close(x, before, rtol=0, atol=0)
    assert_close(after, x0, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_no_step_starts_at_sigma_zero(name):
    schedule = PROCESSES["flow"]
    nodes = [schedule.at(0.0), schedule.at(0.5)]
    with pytest.raises(ScheduleError, match=r"t=0, where sigma is 0; start at the"):
        along(solver(name), schedule, nodes, unit_noise(), MIXTURE.x0)


# Evaluations


@pytest.mark.parametrize(
    ("name", "settings", "zero", "noisy"),
    [  # calls of N steps to sigma = 0, and to sigma > 0
        ("heun", {}, lambda n: 2 * n - 1, lambda n: 2 * n),
        ("dpm2", {}, lambda n: 2 * n - 1, lambda n: 2 * n),
        ("rf-solver", {}, lambda n: 2 * n, lambda n: 2 * n),
        ("rf-solver", {"theta": 1.0}, lambda n: 2 * n - 1, lambda n: 2 * n),
        ("rf-solver-3", {}, lambda n: 3 * n, lambda n: 3 * n),
        ("fireflow", {}, lambda n: n + 1, lambda n: n + 1),
        ("uni-inv", {}, lambda n: n + (n > 1), lambda n: n + 1),
        ("res-2s", {}, lambda n: 2 * n - 1, lambda n: 2 * n),
        ("res-3s", {}, lambda n: 3 * n - 2, lambda n: 3 * n),
        ("heun", {"s_churn": 10.0}, lambda n: 2 * n - 1, lambda n: 2 * n),
    ],
)
def test_evaluations(name, settings, zero, noisy):
    chosen, schedule = solver(name, **settings), PROCESSES[homes(name)[-1]]
    for n in (1, 2, 5):
        for final, count in (
            (Final.ZERO, zero(n)),
            (Final.SIGMA_MIN, noisy(n)),
            (Final.DENOISE, noisy(n) + 1),
        ):
            grid = time_grid("karras", schedule, n, final)
            assert predict_nfe(chosen, grid) == count
            assert all(node.sigma > 0.0 for node in list_queries(chosen.on(grid), grid))


def test_places_of_the_evaluations():
    flow, edm = RectifiedFlow(), EDM()

    def taus(name, schedule, times, **settings):
        grid = TimeGrid.of(schedule, times)
        return [node.sigma for node in list_queries(solver(name, **settings).on(grid), grid)]

    assert taus("rf-solver", flow, [1.0, 0.6, 0.0]) == pytest.approx([1.0, 0.8, 0.6, 0.3])
    assert taus("rf-solver", flow, [1.0, 0.4], theta=0.25) == pytest.approx([1.0, 0.85])
    assert taus("rf-solver-3", flow, [1.0, 0.2]) == pytest.approx([1.0, 0.6, 0.4])
    assert taus("fireflow", flow, [1.0, 0.6, 0.0]) == pytest.approx([1.0, 0.8, 0.3])
    assert taus("uni-inv", flow, [1.0, 0.6, 0.3, 0.0]) == pytest.approx([1.0, 0.6, 0.3, 0.3])
    assert taus("dpm2", edm, [16.0, 1.0, 0.0]) == pytest.approx([16.0, 4.0, 1.0])
    assert taus("res-2s", edm, [16.0, 1.0, 0.0]) == pytest.approx([16.0, 4.0, 1.0])
    assert taus("res-3s", edm, [16.0, 1.0], c3=0.75) == pytest.approx([16.0, 4.0, 2.0])


@pytest.mark.parametrize("name", ["fireflow", "uni-inv"])
def test_kept_slope_is_not_the_callers(name):
    """The network may hand out its own buffer, or x itself."""
    grid = uneven("flow")
    buffer = torch.empty_like(start(grid))

    def reused(x, node):
        return buffer.copy_(MIXTURE.x0(x, node))

    a, b = (run(solver(name), grid, start(grid), law) for law in (MIXTURE.x0, reused))
    assert torch.equal(a, b)


def test_budget_of_a_slope_that_is_kept():
    def of(n):
        return time_grid("uniform", PROCESSES["flow"], n)

    assert fit_grid(8, solver("fireflow"), of).steps == 7
    assert fit_grid(8, solver("uni-inv"), of).steps == 7


# Settings


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("rf-solver", {"theta": 0.0}, r"rf-solver: theta=0.0: .*greater than 0"),
        ("rf-solver", {"theta": 1.01}, r"rf-solver: theta=1.01: .*less than or equal to 1"),
        ("rf-solver", {"theta": math.nan}, r"rf-solver: theta=nan"),
        ("res-2s", {"c2": 0.0}, r"res-2s: c2=0.0"),
        ("res-3s", {"c2": 2 / 3}, r"res-3s: c2=0.66"),
        ("res-3s", {"c3": 0.5}, r"res-3s: c3=0.5"),
        ("heun", {"s_churn": -1.0}, r"heun: s_churn=-1.0: .*greater than or equal to 0"),
        ("heun", {"s_noise": -0.1}, r"heun: s_noise=-0.1"),
    ],
)
def test_settings_out_of_range(name, settings, message):
    with pytest.raises(SettingError, match=message):
        solver(name, **settings)


def test_uni_inv_is_for_rectified_flow():
    with pytest.raises(ScheduleError, match="uni-inv runs on flow schedules only"):
        solver("uni-inv").on(uneven("edm"))


# diffusers


@pytest.mark.parametrize("steps", [5, 10])
@pytest.mark.parametrize(
    "config",
    [
        {},
        {"use_karras_sigmas": True},
        {"use_exponential_sigmas": True},
        {"timestep_spacing": "trailing"},
    ],
    ids=lambda config: "-".join(config),
)
@pytest.mark.parametrize("process", ["vp", "edm"])
def test_dpm2_agrees_with_diffusers(config, steps, process):
    """Its sigma is kappa and its state y = x / alpha; the network is asked at its own sigma."""
    betas = {"beta_start": 1e-4, "beta_end": 0.02}
    scheduler = KDPM2DiscreteScheduler(**betas, **config)
    scheduler.set_timesteps(steps)
    scheduler.set_begin_index(0)
    schedule = VPDiscrete() if process == "vp" else EDM()
    low = schedule.at(1.0).lam if process == "vp" else -math.inf  # float32 may round it out
    kappas = dict.fromkeys(scheduler.sigmas.tolist())
    nodes = [schedule.at_lam(max(-math.log(k), low)) if k else schedule.at(0.0) for k in kappas]
    y = unit_noise() * nodes[0].kappa
    ours = run(solver("dpm2"), TimeGrid(schedule, tuple(nodes)), y * nodes[0].alpha, MIXTURE.x0)
    for timestep in scheduler.timesteps:
        i = scheduler.step_index or 0
        at = scheduler.sigmas if scheduler.state_in_first_order else scheduler.sigmas_interpol
        node = EDM().at(float(at[i]))
        y = scheduler.step((y - MIXTURE.x0(y, node)) / node.sigma, timestep, y).prev_sample
    assert_close(y, ours, rtol=0, atol=2e-6 * float(ours.abs().max()))


# Heun as it was, and churn


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_heun_without_churn_is_the_same_to_the_bit(process, dtype):
    """The rule by hand, to the bit in float32 and to its rounding in float64."""
    grid = to_zero(process)
    x = begin = start(grid).to(dtype)
    for t, s in pairwise(grid.nodes):
        scale_t, scale_s = scale(t, process), scale(s, process)
        tau_t, tau_s = t.sigma / scale_t, s.sigma / scale_s
        x0, r = MIXTURE.x0(x, t), (tau_s - tau_t) / tau_t
        x_euler = (x * ((1 + r) * scale_s / scale_t)).add_(x0, alpha=-r * scale_s)
        if s.sigma == 0.0:
            x = x_euler
            break
        x0_s, q = MIXTURE.x0(x_euler, s), (tau_s - tau_t) / tau_s
        x = x * ((1 + (r + q * (1 + r)) / 2) * scale_s / scale_t)
        x.add_(x0, alpha=-r * (1 + q) / 2 * scale_s).add_(x0_s, alpha=-q / 2 * scale_s)
    plain = run(solver("heun"), grid, begin, MIXTURE.x0)
    for choices in ({"s_churn": 0.0, "s_noise": 1.1}, {"s_churn": 9.0, "s_min": 1e3}):
        assert torch.equal(run(solver("heun", **choices), grid, begin, MIXTURE.x0), plain)
    if dtype == torch.float32:
        assert torch.equal(plain, x)
    assert_close(plain, x, rtol=4e-15, atol=4e-15)


def noises(n=99):
    return [unit_noise().roll(i, 0) * (1 + i / 7) for i in range(n)]


def answered(settings, grid, x, answer):
    """x at the last node, all queries answered here, those for noise too."""
    steps = settings.on(grid)
    for t, s in pairwise(grid.nodes):
        x, _ = drive(steps.step(x, None, t, s), answer)
    return x


def churned_run(grid, law=MIXTURE.x0, first=None, **settings):
    """The end of a run, the nodes asked at, and how much noise was drawn."""
    asked, fresh = [], iter(noises())
    drawn = 0

    def answer(x, node):
        nonlocal drawn
        if node is None:
            drawn += 1
            return next(fresh)
        asked.append(node)
        return law(x, node)

    x = start(grid) if first is None else first
    end = answered(solver("heun", **settings), grid, x, answer)
    return end, asked, drawn


def algorithm_2(sigmas, x, s_churn, s_min, s_max, s_noise):
    """EDM's stochastic sampler, line by line, on the denoiser D(x; sigma)."""
    n, fresh = len(sigmas) - 1, iter(noises())

    def denoiser(x, sigma):
        return MIXTURE.x0(x, EDM().at(sigma))

    for i in range(n):
        gamma = min(s_churn / n, math.sqrt(2) - 1) if s_min <= sigmas[i] <= s_max else 0.0
        hat = sigmas[i] + gamma * sigmas[i]
        if gamma > 0:
            x = x + math.sqrt(hat**2 - sigmas[i] ** 2) * s_noise * next(fresh)
        d = (x - denoiser(x, hat)) / hat
        ahead = x + (sigmas[i + 1] - hat) * d
        if sigmas[i + 1] != 0:
            d_ahead = (ahead - denoiser(ahead, sigmas[i + 1])) / sigmas[i + 1]
            ahead = x + (sigmas[i + 1] - hat) * (d / 2 + d_ahead / 2)
        x = ahead
    return x


SIGMAS = [40.0, 20.0, 8.0, 3.0, 1.0, 0.3, 0.05, 0.0]


@pytest.mark.parametrize(
    ("told", "drawn"),
    [
        ((2.0, 0.0, math.inf, 1.0), 7),
        ((2.0, 0.05, 20.0, 1.003), 6),  # both ends of the range belong to it
        ((80.0, 0.5, 10.0, 1.0), 3),  # gamma is cut at sqrt 2 - 1
    ],
)
@pytest.mark.parametrize("process", ["edm", "vp"])
def test_churn_is_algorithm_2_of_edm(told, drawn, process):
    """In y = x / alpha and kappa on every process; the last step is churned too."""
    schedule = PROCESSES[process]
    at = schedule.at if process == "edm" else lambda v: schedule.at_lam(-math.log(v))
    nodes = [*map(at, SIGMAS[:-1]), schedule.at(0.0)]
    s_churn, low, high, s_noise = told
    slack = 0.0 if process == "edm" else 1e-9  # elsewhere sigma / alpha is a rounded quotient
    s_min, s_max = low * (1 - slack), high * (1 + slack)
    y = unit_noise() * 40.0
    x, _, count = churned_run(
        TimeGrid(schedule, tuple(nodes)),
        first=y * nodes[0].alpha,
        s_churn=s_churn,
        s_min=s_min,
        s_max=s_max,
        s_noise=s_noise,
    )
    assert count == drawn
    exact = algorithm_2(SIGMAS, y, s_churn, s_min, s_max, s_noise)
    assert_close(x / nodes[-1].alpha, exact, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("process", PROCESSES)
def test_churned_state_has_the_noise_of_its_node(process):
    """x^ = alpha^ x0 + sigma^ eps in law: alpha / sigma of both parts match the node asked at."""
    grid = uneven(process)
    x0, seen = unit_noise().flip(0), []

    def law(x, node):
        seen.append((x, node))
        return x0

    t = grid.nodes[1]
    steps = solver("heun", s_churn=3.0).on(grid)
    clean, noisy = t.alpha * x0, torch.ones_like(x0)
    step = steps.step(clean, None, *grid.nodes[1:3])
    drive(step, lambda x, node: noisy if node is None else law(x, node))
    (x, hat), *_ = seen
    assert hat == grid.schedule.at(hat.t)
    assert hat.kappa == pytest.approx(t.kappa * math.sqrt(2.0), rel=1e-9)
    added = x - hat.alpha * x0
    kept = hat.alpha / t.alpha * t.sigma
    assert_close(added**2 + kept**2, torch.full_like(x0, hat.sigma**2), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("process", [*PROCESSES, "zero-snr"])
def test_churn_stays_on_the_schedule(process):
    """Up to t_max and no further: where sampling starts nothing is added."""
    schedule = VPDiscrete(zero_snr=True) if process == "zero-snr" else PROCESSES[process]
    near = schedule.at_lam(max(schedule.at(schedule.t_max).lam, -9.0) + 0.1).t
    grid = TimeGrid.of(schedule, [schedule.t_max, near, 0.3 * near, 0.0])
    x, asked, drawn = churned_run(grid, s_churn=99.0)
    assert x.isfinite().all()
    assert drawn == 2
    assert asked[0] == grid.nodes[0]
    assert all(node.t <= schedule.t_max * (1 + 1e-12) for node in asked)
    if process not in ("flow", "zero-snr"):  # there, sqrt 2 still fits in
        assert asked[2].t == pytest.approx(schedule.t_max, rel=1e-12)


def test_churn_counts_the_steps_and_leaves_the_denoising_one_alone():
    grid = time_grid("karras", EDM(), 6, Final.DENOISE)
    _, asked, drawn = churned_run(grid, s_churn=1.2)
    assert drawn == 5  # not at t_max, not before x0
    assert asked[-1] == grid.nodes[-2]
    assert asked[2].sigma == pytest.approx(1.2 * grid.nodes[1].sigma)


def test_churned_runs_draw_the_data():
    """4000 samples of a Gaussian, with more churn than is good: mean and variance are its own."""
    law = GaussianMixture.single(f64(0.5), f64(0.4))
    random = torch.Generator().manual_seed(0)

    def answer(x, node):
        if node is None:
            return torch.randn(x.shape, generator=random, dtype=x.dtype)
        return law.x0(x, node)

    for process in ("edm", "vp-linear", "flow"):
        grid = time_grid("karras", PROCESSES[process], 40)
        x = torch.randn(4000, 1, generator=random, dtype=torch.float64)
        x *= grid.schedule.noise_scale(grid.nodes[0])
        x = answered(solver("heun", s_churn=20.0), grid, x, answer)
        assert float(x.mean()) == pytest.approx(0.5, abs=0.03)
        assert float(x.std()) == pytest.approx(0.4, abs=0.02)
