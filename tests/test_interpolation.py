"""Steps in a coordinate that is finite at alpha = 0: their weights, and runs that start there."""

import math

import pytest
import torch
from laws import GAUSSIAN, MIXTURE, PROCESSES, even_in_lam, run, solver, unit_noise
from scipy.integrate import quad
from torch.testing import assert_close

from fewstep.models.errors import SettingError
from fewstep.models.schedule import RectifiedFlow, TimeGrid, VPDiscrete, VPLinear
from fewstep.solvers import take_solver
from fewstep.solvers.exponential import MultistepPath, StepSpec
from fewstep.solvers.noise_rate import ConstantRate

FLOW = RectifiedFlow()
NOISE = unit_noise((8, 2, 1, 2))
FAMILY = ("dpmpp-2m", "dpmpp-3m", "deis-2", "deis-3", "unipc-1", "unipc-2", "unipc-3", "dpm-2m")
FAMILY += ("dpm-3m", "sde-dpmpp-2", "sde-dpmpp-3", "sa-solver")


def even(steps, start=1.0, end=0.02):
    """Even times on flow whose first node alone is moved to `start`."""
    times = [1.0 + (end - 1.0) * i / steps for i in range(steps + 1)]
    return TimeGrid.of(FLOW, [start, *times[1:]])


def exact(law, start, end):
    """Where the ODE takes NOISE, which is the state at t = 1, from `start` to `end`."""
    if law is GAUSSIAN:
        return law.flow_map(NOISE, FLOW.at(start), FLOW.at(end))
    ode = solver("ode-dopri8", rtol=1e-11, atol=1e-12)
    return run(ode, TimeGrid.of(FLOW, [start, end]), NOISE, law.x0)


def rms(wrong):
    return float(wrong.pow(2).mean().sqrt())


def lagrange(places, j, c):
    return math.prod((c - p) / (places[j] - p) for k, p in enumerate(places) if k != j)


def coordinate(text, node):
    return node.t if text == "t" else math.log((node.alpha + float(text[4:])) / node.sigma)


# Weights


@pytest.mark.parametrize("text", ["t", "lam+.001", "lam+0.3"])
def test_weights_are_the_integrals(text):
    """By another quadrature, in t, of l_j(c) d(rho^q) / rho_s^(q - 1) or of l_j(c) d(1 / rho)."""
    times = {"flow": (1.0, 0.8, 0.5, 0.3), "vp-linear": (0.95, 0.8, 0.5, 0.3)}
    times |= {"edm": (30.0, 9.0, 4.0, 1.5)}
    for process, eta, noise in (
        *(("flow", eta, False) for eta in (0.0, 0.4, 1.0)),
        *((process, 0.0, noise) for process in ("vp-linear", "edm") for noise in (False, True)),
    ):
        grid = TimeGrid.of(PROCESSES[process], times[process])
        schedule, path, q = grid.schedule, MultistepPath(grid, ConstantRate(eta)), 1.0 + eta
        for n, corrected in ((1, False), (2, False), (0, True), (1, True)):
            used = [n] + [n + 1] * corrected + list(range(n - 1, -1, -1))
            pred = "noise" if noise else "data"
            spec = StepSpec(order=len(used), coordinate=text, pred=pred)
            found = path.step(n, spec, corrected)
            places = [coordinate(text, grid.nodes[j]) for j in used]
            end = grid.nodes[n + 1]

            def density(t, j, s=schedule, places=places, end=end, q=q, noise=noise):
                node, (d_alpha, d_sigma) = s.at(t), s.slope(t)
                rho = node.alpha / node.sigma
                slope = (d_alpha * node.sigma - node.alpha * d_sigma) / node.sigma**2
                value = lagrange(places, j, coordinate(text, node)) * slope
                if noise:
                    return -value * end.alpha / rho**2
                return value * end.sigma * q * (rho * end.sigma / end.alpha) ** (q - 1.0)

            for j, node in enumerate(used[1:], start=1):
                wanted, _ = quad(density, times[process][n], end.t, (j,), epsabs=1e-12, limit=400)
                assert found["eps" if noise else "x0", node] == pytest.approx(wanted, abs=2e-9)


def test_the_first_corrector_is_its_closed_form():
    """1 + s ln(s) / (1 - s) on flow in t, which tends to alpha_s / 2: what bh2 has there."""
    for s in (0.99, 0.7, 0.2):
        grid = TimeGrid.of(FLOW, [1.0, s, 0.0])
        weight = MultistepPath(grid).step(0, StepSpec(order=2, coordinate="t"), corrected=True)[
            "x0", 1
        ]
        assert weight == pytest.approx(1.0 + s * math.log(s) / (1.0 - s), rel=1e-12)


def test_whole_timesteps_are_not_rounded_inside_a_step():
    ends = []
    for whole in (False, True):
        grid = TimeGrid.of(VPDiscrete(whole_times=whole), [0.8, 0.6, 0.4, 0.2])
        ends.append(MultistepPath(grid).step(1, StepSpec(order=2, coordinate="t")))
    assert ends[0] == pytest.approx(ends[1], rel=1e-12)


# Where the published method is defined


def test_published_solvers_stay_as_they_are_where_alpha_is_positive():
    for name in FAMILY:
        for schedule in PROCESSES.values():
            grid = even_in_lam(schedule, 6)
            plain = take_solver(f"{name}:coordinate=lam")
            assert solver(name).combinations(grid) == plain.combinations(grid)
            other = take_solver(f"{name}:coordinate=lam+.02")
            assert solver(name).combinations(grid) != other.combinations(grid)


def test_steps_that_use_no_node_at_alpha_zero_stay_as_published():
    """Of solvers with p predictions, all from step p on; of correctors the merging of step p."""
    grid = even(9)
    for name, first in (("dpmpp-2m", 2), ("dpmpp-3m", 3), ("deis-3", 3), ("unipc-2", 3)):
        auto, lam = (take_solver(f"{name}{c}").combinations(grid) for c in ("", ":coordinate=lam"))
        assert auto[first:] == lam[first:]
        assert auto[first - 1] != lam[first - 1]


# Runs from alpha = 0


@pytest.mark.parametrize("law", [GAUSSIAN, MIXTURE], ids=["gaussian", "mixture"])
def test_order_from_alpha_zero(law):
    """Two steps of order 1 would leave unipc-3 an order of 2.5 on the Gaussian."""
    end = exact(law, 1.0, 0.02)
    free = {"lower_order_final": "never"}
    for name, settings, order in (
        *(("dpmpp-2m", {"kind": kind}, 2.0) for kind in ("midpoint", "taylor")),
        *(("dpmpp-2m", {"coordinate": each}, 2.0) for each in ("t", "lam+.001")),
        ("sde-dpmpp-2", {"eta": 0.0}, 2.0),
    ):
        wrong = [
            rms(run(solver(name, **settings, **free), even(n), NOISE, law.x0) - end)
            for n in (64, 512)
        ]
        assert math.log(wrong[0] / wrong[1]) / math.log(8.0) == pytest.approx(order, abs=0.15)
    wrong = [rms(run(solver("unipc-3", **free), even(n), NOISE, law.x0) - end) for n in (256, 512)]
    assert math.log2(wrong[0] / wrong[1]) > 3.5


@pytest.mark.parametrize("law", [GAUSSIAN, MIXTURE], ids=["gaussian", "mixture"])
@pytest.mark.parametrize("text", ["t", "lam+.02"])
def test_few_steps_from_alpha_zero_are_as_good_as_from_just_below(law, text):
    near, end = exact(law, 1.0, 0.999), exact(law, 1.0, 0.02)
    for name in ("dpmpp-2m", "unipc-2", "unipc-3"):
        for steps in (5, 8, 10):
            settings = solver(name, coordinate=text)
            here = rms(run(settings, even(steps), NOISE, law.x0) - end)
            below = rms(run(settings, even(steps, 0.999), near, law.x0) - end)
            assert here == pytest.approx(below, rel=0.01)


@pytest.mark.parametrize("name", FAMILY)
def test_a_start_at_alpha_zero_is_the_limit_of_starts_below(name):
    """The difference goes to zero with 1 - t; in lam it would go as 1 / |lam|."""
    for text in ("t", "lam+.1"):
        settings = take_solver(f"{name}:coordinate={text}")
        at = run(settings, even(6), NOISE, MIXTURE.x0)
        gaps = [
            float((run(settings, even(6, 1.0 - eps), NOISE, MIXTURE.x0) - at).abs().max())
            for eps in (1e-4, 1e-6)
        ]
        assert gaps[1] < 0.02 * gaps[0] + 1e-12
        assert gaps[1] < 1e-4


def test_the_first_correction_counts():
    """It lowers the error of the second state; without the node at alpha = 0 there is none."""
    grid = TimeGrid.of(FLOW, [1.0, 0.8, 0.6])
    end = exact(MIXTURE, 1.0, 0.6)
    on, off = (
        rms(run(solver("unipc-2", disable_corrector=each), grid, NOISE, MIXTURE.x0) - end)
        for each in ((), (0,))
    )
    assert on < 0.8 * off


def test_zero_snr_and_cosine_start_where_lam_is_finite():
    """Their first alpha is small but not 0, so that named solvers are the published ones."""
    schedule = VPDiscrete("scaled_linear", 0.00085, 0.012, zero_snr=True)
    grid = TimeGrid.of(schedule, [1.0, 0.8, 0.5, 0.2])
    assert 0.0 < grid.nodes[0].alpha < 1e-3
    plain = solver("unipc-2", coordinate="lam")
    assert solver("unipc-2").combinations(grid) == plain.combinations(grid)


# What a user types


@pytest.mark.parametrize("text", ["x", "lam+", "lam+0", "lam+-1", "lam+inf", "lam-1", "T"])
def test_bad_coordinates_name_the_known_ones(text):
    with pytest.raises(SettingError, match="is no coordinate; take lam, t, or lam\\+K"):
        take_solver(f"unipc-2:coordinate={text}")


def test_what_has_no_effect_beside_a_coordinate_is_refused():
    for wrong in ({"relax": "bh2"}, {"kmul": (0.5,)}, {"pred": "mixed", "mix_l": 0.5}):
        with pytest.raises(ValueError, match="have an effect in lam only"):
            StepSpec(order=2, coordinate="t", **wrong)
    with pytest.raises(ValueError, match="is no coordinate"):
        StepSpec(order=2, coordinate="auto")


def test_deis_in_t_is_tab_deis():
    """Both interpolate eps in t; the settings of the end differ."""
    grid = TimeGrid.of(VPLinear(), [0.9, 0.7, 0.5, 0.3, 0.1])
    for p in (2, 3):
        settings = solver(f"deis-{p}", coordinate="t", lower_order_final="never")
        a = run(settings, grid, NOISE, MIXTURE.x0)
        b = run(solver(f"deis-tab{p - 1}"), grid, NOISE, MIXTURE.x0)
        assert_close(a, b, rtol=0, atol=1e-12)
    assert not torch.equal(a, run(solver("deis-3"), grid, NOISE, MIXTURE.x0))
