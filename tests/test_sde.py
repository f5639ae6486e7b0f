"""The stochastic solvers: their formulas, the laws they sample from, and their noise.

On Gaussian data a run is linear in its start and its noise, so the mean and variance of its samples
are known exactly from how it responds to each of them; only one test here draws many samples.
"""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler, SASolverScheduler
from laws import (
    CASES,
    DETERMINISTIC,
    GAUSSIAN,
    MIXTURE,
    PROCESSES,
    answering,
    even_in_lam,
    f64,
    run,
    start,
    unit_noise,
)
from scipy.integrate import quad
from torch.testing import assert_close

from fewstep.models.gaussian import GaussianMixture
from fewstep.models.prediction import Prediction, convert
from fewstep.models.schedule import EDM, RectifiedFlow, TimeGrid, VPDiscrete, VPLinear
from fewstep.samplers.grid import Final, choose_default_grid, time_grid
from fewstep.samplers.sampler import Sampler
from fewstep.solvers import drive, names, solver
from fewstep.solvers.er_sde import combine_er_step

OURS = ["ddpm", "er-sde-1", "er-sde-2", "er-sde-3", "sa-solver"]
OURS += ["sde-dpmpp-1", "sde-dpmpp-2", "sde-dpmpp-3"]
OUR_CASES = [(name, process) for name, process in CASES if name in OURS]
NEVER = {"lower_order_final": "never"}
ALWAYS_ON = {"kappa_min": 0.0, "kappa_max": 1e9}  # SA-Solver's tau in every step but the last
UNEVEN = [20.0, 9.0, 5.0, 1.5, 0.8, 0.1]


def uneven(schedule=None, last=None):
    """Nodes at uneven distances, so that a swapped history shows; `last` is a time."""
    schedule = schedule or VPLinear()
    times = [schedule.at_lam(-math.log(kappa)).t for kappa in UNEVEN]
    return TimeGrid.of(schedule, times if last is None else [*times, last])


def noises(grid, shape=(2, 2, 1, 2)):
    """The noise that `run` answers with, step by step."""
    return [answering(None, n)(torch.zeros(shape, dtype=torch.float64), None) for n in range(99)][
        : grid.steps
    ]


def responses(settings, grid, law):
    """End state from zero without noise, and what a unit start and unit noise in each step add."""
    steps, x = settings.on(grid), torch.zeros(grid.steps + 2, 4, dtype=torch.float64)
    x[1], state = 1.0, steps.init()
    for n, (t, s) in enumerate(pairwise(grid.nodes)):

        def answer(x, node, n=n):
            if node is None:
                return torch.zeros_like(x).index_fill_(0, torch.tensor(n + 2), 1.0)
            return law(x, node)

        x, state = drive(steps.step(x, state, t, s), answer)
    return x[0], x[1] - x[0], x[2:] - x[0]


def moments(settings, grid):
    """Mean and variance of the samples on GAUSSIAN, started from its law at the first node."""
    first, variance = grid.nodes[0], GAUSSIAN.stds[0] ** 2
    base, of_start, of_noise = responses(settings, grid, GAUSSIAN.x0)
    spread = first.alpha**2 * variance + first.sigma**2
    mean = base + of_start * first.alpha * GAUSSIAN.means[0]
    return mean, of_start**2 * spread + (of_noise**2).sum(0)


def variance_error(settings, grid):
    """Largest relative error of the variance of the samples."""
    last = grid.nodes[-1]
    exact = last.alpha**2 * GAUSSIAN.stds[0] ** 2 + last.sigma**2
    return float((moments(settings, grid)[1] / exact - 1.0).abs().max())


def test_all_of_them_are_stochastic():
    assert set(OURS) <= set(names()) - set(DETERMINISTIC)


# Formulas


def posterior(t, s):
    """q(x_s | x_t, x0) by Bayes: weights of x_t and x0 in its mean, and its standard deviation."""
    a = t.alpha / s.alpha
    v = t.sigma**2 - a**2 * s.sigma**2  # of q(x_t | x_s) = N(a x_s, v)
    precision = 1.0 / s.sigma**2 + a**2 / v
    return a / v / precision, s.alpha / s.sigma**2 / precision, precision**-0.5


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("name", ["ddpm", "sde-dpmpp-1"])
def test_first_order_is_the_ancestral_posterior(name, process):
    grid = uneven(PROCESSES[process])
    for row, (t, s) in zip(solver(name).on(grid).rows, pairwise(grid.nodes), strict=True):
        assert (row.x, row.x0, row.z) == pytest.approx(posterior(t, s), rel=1e-12)


def test_large_variance_is_beta_on_a_preserving_process():
    schedule = VPDiscrete()
    grid = TimeGrid.of(schedule, [(n + 1) / 1000 for n in (999, 998, 500, 499, 1, 0)])
    abar = schedule.alphas_cumprod
    rows = solver("ddpm", variance="large").on(grid).rows
    assert rows[0].z ** 2 == pytest.approx(1.0 - abar[999] / abar[998], rel=1e-10)
    assert rows[2].z ** 2 == pytest.approx(1.0 - abar[500] / abar[499], rel=1e-10)
    assert rows[0].x == solver("ddpm").on(grid).rows[0].x


@pytest.mark.parametrize("process", PROCESSES)
def test_large_variance_is_right_for_data_of_unit_variance(process):
    """The exact reverse conditional of N(0, I): x_s given x_t is Gaussian."""
    grid = uneven(PROCESSES[process])
    rows = solver("ddpm", variance="large").on(grid).rows
    for row, (t, s) in zip(rows, pairwise(grid.nodes), strict=True):
        var_t, var_s = (node.alpha**2 + node.sigma**2 for node in (t, s))
        covariance = var_s * t.alpha / s.alpha
        assert row.z**2 == pytest.approx(var_s - covariance**2 / var_t, rel=1e-10)


def published(x, grid, law, order, eta, kind, c):
    """SDE-DPM-Solver++ as it is printed, with eta as k-diffusion has it."""
    past = []  # (lam, x0), newest first
    for z, (t, s) in zip(noises(grid), pairwise(grid.nodes), strict=True):
        past = [(t.lam, law(x, t)), *past]
        if s.sigma == 0.0:
            return s.alpha * past[0][1]
        h = s.lam - t.lam
        w = (1 + eta) * h
        p2 = math.expm1(-w) / w + 1
        p3 = p2 / w - 0.5
        m0 = past[0][1]
        x = s.sigma / t.sigma * math.exp(-eta * h) * x + s.alpha * (1 - math.exp(-w)) * m0
        used = min(order, len(past))
        if used > 1:
            r0 = (past[0][0] - past[1][0]) / h
            first = (m0 - past[1][1]) / r0
            if used == 2:
                x = x + s.alpha * (0.5 * (1 - math.exp(-w)) if kind == "midpoint" else p2) * first
        if used > 2:
            r1 = (past[1][0] - past[2][0]) / h
            second = (past[1][1] - past[2][1]) / r1
            d1 = first + r0 / (r0 + r1) * (first - second)
            d2 = (first - second) / (r0 + r1)
            x = x + s.alpha * p2 * d1 - c * s.alpha * p3 * d2
        x = x + s.sigma * math.sqrt(1 - math.exp(-2 * eta * h)) * z
    return x


@pytest.mark.parametrize("eta", [1.0, 0.3])
@pytest.mark.parametrize(
    ("order", "settings"),
    [
        (1, {}),
        (2, {"kind": "midpoint"}),
        (2, {"kind": "taylor"}),
        (3, {"third_order": "published", "kind": "taylor"}),
        (3, {"third_order": "exact", "kind": "midpoint"}),
    ],
)
def test_sde_dpmpp_is_the_published_formula(order, settings, eta):
    grid = uneven(last=0.0)
    kind = settings.get("kind")
    c = 2.0 if settings.get("third_order") == "exact" else 1.0
    never = {} if order == 1 else NEVER
    x = run(solver(f"sde-dpmpp-{order}", eta=eta, **settings, **never), grid, start(grid), law)
    wanted = published(start(grid), grid, law, order, eta, kind, c)
    assert_close(x, wanted, rtol=1e-12, atol=1e-12)


def law(x, node):
    return MIXTURE.x0(x, node)


def test_three_terms_are_exact_for_quadratic_x0():
    """c = 2 integrates x0 = lam^2 exactly, by quadrature of the formula; c = 1 does not."""
    grid = uneven()
    t, s = grid.nodes[3:5]

    def integrand(lam):
        return math.exp(2.0 * (lam - s.lam)) * lam**2

    exact = s.alpha * 2.0 * quad(integrand, t.lam, s.lam, epsabs=1e-13)[0]
    values = [node.lam**2 for node in grid.nodes]
    for third_order, close in (("exact", True), ("published", False)):
        settings = solver("sde-dpmpp-3", third_order=third_order, **NEVER)
        combo = settings.combinations(grid)[3]
        given = sum(weight * values[n] for (kind, n), weight in combo.items() if kind == "x0")
        assert (abs(given - exact) < 1e-12) == close


def textbook_sa(x, grid, law, orders, taus):
    """SA-Solver with corrected states, Lagrange polynomials and quadrature. No lowering at the end.

    orders: of predictor and corrector; 0 for no corrector. taus: one per step.
    """
    predictor, corrector = orders
    places, weights = np.polynomial.legendre.leggauss(40)
    known = []  # (lam, x0), newest first

    def step(x, z, tau, t, s, points):
        lams = (s.lam - t.lam) / 2 * places + (s.lam + t.lam) / 2
        kernel = np.exp((1 + tau**2) * (lams - s.lam)) * weights * (s.lam - t.lam) / 2
        total = math.exp(-(tau**2) * (s.lam - t.lam)) * s.sigma / t.sigma * x
        for i, (lam_i, x0) in enumerate(points):
            others = [lam for j, (lam, _) in enumerate(points) if j != i]
            basis = np.prod([(lams - lam) / (lam_i - lam) for lam in others] or [lams**0], axis=0)
            total = total + (1 + tau**2) * s.alpha * float((kernel * basis).sum()) * x0
        return total + s.sigma * math.sqrt(1 - math.exp(-2 * tau**2 * (s.lam - t.lam))) * z

    begun = None
    for z, tau, (t, s) in zip(noises(grid), taus, pairwise(grid.nodes), strict=True):
        known = [(t.lam, law(x, t)), *known]
        if begun and corrector:
            x = step(*begun, known[: min(corrector, len(known))])
        begun = (x, z, tau, t, s)
        x = step(*begun, known[: min(predictor, len(known))])
    return x


@pytest.mark.parametrize("orders", [(1, 0), (1, 2), (2, 0), (2, 2), (2, 3), (3, 0), (3, 4), (4, 4)])
def test_sa_solver_is_the_textbook(orders):
    """With tau = 0.7 from kappa = 10 to 1; the corrector redoes the step with its own noise."""
    grid = uneven()
    settings = solver(
        "sa-solver",
        predictor_order=orders[0],
        corrector_order=orders[1],
        tau=0.7,
        kappa_min=1.0,
        kappa_max=10.0,
        **NEVER,
    )
    taus = [0.0, 0.7, 0.7, 0.7, 0.0]
    wanted = textbook_sa(start(grid), grid, law, orders, taus)
    assert_close(run(settings, grid, start(grid), law), wanted, rtol=1e-12, atol=1e-12)


PHI = {  # log phi of lam, phi of kappa, its derivative
    "ode": (lambda lam: -lam, lambda k: k, lambda k: 1.0),
    "sde": (lambda lam: -2 * lam, lambda k: k**2, lambda k: 2 * k),
    "paper": (
        None,
        lambda k: k * (math.exp(k**0.3) + 10),
        lambda k: math.exp(k**0.3) * (1 + 0.3 * k**0.3) + 10,
    ),
}


@pytest.mark.parametrize("phi", PHI)
def test_er_sde_integrates_polynomials_in_kappa(phi):
    """Against phi_s int phi' / phi^2 x0 dkappa, the solution before integration by parts."""
    log_phi, value, derivative = PHI[phi]
    given = {} if log_phi is None else {"phi": log_phi}
    grid = uneven()
    t, s = grid.nodes[3:5]
    for order, degree in ((1, 0), (2, 1), (3, 2)):
        combo = combine_er_step(grid.nodes, 3, order, False, **given)

        def integrand(k, degree=degree):
            return derivative(k) / value(k) ** 2 * k**degree

        exact = s.alpha * value(s.kappa) * quad(integrand, s.kappa, t.kappa, epsabs=1e-14)[0]
        weights = [(grid.nodes[n].kappa, w) for (kind, n), w in combo.items() if kind == "x0"]
        assert sum(w * k**degree for k, w in weights) == pytest.approx(exact, rel=1e-10)
        r = value(s.kappa) / value(t.kappa)
        assert combo["x", 3] == pytest.approx(s.alpha / t.alpha * r, rel=1e-12)
        variance = s.kappa**2 - t.kappa**2 * r**2
        assert combo["z", 3] ** 2 == pytest.approx(s.alpha**2 * variance, rel=1e-9, abs=1e-12)


def test_er_sde_derivatives_are_the_published_ones():
    """The first from two predictions, the second 2 (d - d_before) / (kappa_n - kappa_{n-2})."""
    grid = uneven(EDM())
    k = [node.kappa for node in grid.nodes]
    rows = {order: combine_er_step(grid.nodes, 3, order, True) for order in (1, 2, 3)}
    w1 = rows[2]["x0", 2] * -(k[3] - k[2])
    d = {("x0", 3): 1 / (k[3] - k[2]), ("x0", 2): -1 / (k[3] - k[2])}
    before = {("x0", 2): 1 / (k[2] - k[1]), ("x0", 1): -1 / (k[2] - k[1])}
    second = {
        term: 2 * (d.get(term, 0) - before.get(term, 0)) / (k[3] - k[1]) for term in {**d, **before}
    }
    exact = combine_er_step(
        grid.nodes, 3, 3, False
    )  # its first derivative is d + (k3 - k2) / 2 second
    w2 = exact["x0", 1] / second["x0", 1] - w1 * (k[3] - k[2]) / 2
    for term, value in second.items():
        wanted = rows[1].get(term, 0.0) + w1 * d.get(term, 0.0) + w2 * value
        assert rows[3][term] == pytest.approx(wanted, rel=1e-9)
    assert abs(exact["x0", 1] - rows[3]["x0", 1]) > 1e-3


# The same by another name


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("sde-dpmpp-1", {"eta": 0}), ("dpmpp-1m", {})),
        (("sde-dpmpp-2", {"eta": 0}), ("dpmpp-2m", {})),
        (("sde-dpmpp-2", {"eta": 0, "kind": "taylor"}), ("dpmpp-2m", {"kind": "taylor"})),
        (("sde-dpmpp-2", {"eta": 0, **NEVER}), ("dpmpp-2m", NEVER)),
        (("sde-dpmpp-3", {"eta": 0}), ("dpmpp-3m", {})),
        (
            ("sde-dpmpp-3", {"eta": 0, "third_order": "exact"}),
            ("dpmpp-3m", {"third_order": "exact"}),
        ),
        (("sde-dpmpp-1", {}), ("ddpm", {})),
        (("sa-solver", {"tau": 0, "predictor_order": 1, "corrector_order": 0}), ("dpmpp-1m", {})),
        (
            ("sa-solver", {"tau": 0, "corrector_order": 0, **NEVER}),
            ("dpmpp-2m", {"kind": "taylor", **NEVER}),
        ),
        (
            ("sa-solver", {"tau": 0, "predictor_order": 3, "corrector_order": 0, **NEVER}),
            ("dpmpp-3m", {"third_order": "exact", "kind": "taylor", **NEVER}),
        ),
        *(
            (
                (
                    "sa-solver",
                    {"tau": 0, "predictor_order": p, "corrector_order": p + 1, "few_steps": True},
                ),
                (f"unipc-{p}", {"solver_type": "bh1"}),
            )
            for p in (1, 2, 3)
        ),
        (
            ("sa-solver", {"predictor_order": 1, "corrector_order": 0, **ALWAYS_ON}),
            ("sde-dpmpp-1", {}),
        ),
        (
            ("sa-solver", {"corrector_order": 0, **ALWAYS_ON, **NEVER}),
            ("sde-dpmpp-2", {"kind": "taylor", **NEVER}),
        ),
        (
            (
                "sa-solver",
                {"tau": 0.5, "predictor_order": 3, "corrector_order": 0, **ALWAYS_ON, **NEVER},
            ),
            ("sde-dpmpp-3", {"eta": 0.25, "third_order": "exact", "kind": "taylor", **NEVER}),
        ),
    ],
    ids=lambda pair: "-".join([pair[0], *map(str, pair[1].values())]),
)
def test_same_solver_by_another_name(one, other):
    grid = uneven(last=0.0)
    a, b = (run(solver(n, **settings), grid, start(grid), law) for n, settings in (one, other))
    assert_close(a, b, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("ddpm", [{"variance": "small"}, {"variance": "large"}]),
        ("sde-dpmpp-1", [{"eta": 1.0}, {"eta": 0.5}]),
        ("sde-dpmpp-1", [{"s_noise": 1.0}, {"s_noise": 1.01}]),
        ("sde-dpmpp-2", [{"kind": "midpoint"}, {"kind": "taylor"}]),
        ("sde-dpmpp-2", [{}, NEVER]),
        ("sde-dpmpp-3", [{"third_order": "published"}, {"third_order": "exact"}]),
        ("er-sde-3", [{"third_order": "published"}, {"third_order": "exact"}]),
        ("sa-solver", [{"tau": 1.0}, {"tau": 0.5}]),
        ("sa-solver", [{"few_steps": True}, {"few_steps": False}]),
        ("sa-solver", [{}, NEVER]),
        ("sa-solver", [{"kappa_min": 0.1}, {"kappa_min": 2.0}, {"kappa_max": 2.0}]),
    ],
)
def test_settings_change_the_answer(name, settings):
    grid = even_in_lam(EDM(), 9)
    ends = [run(solver(name, **each), grid, start(grid), law) for each in settings]
    assert all((a - b).abs().max() > 1e-4 for a, b in pairwise(ends))


# The laws that are sampled from


@pytest.mark.parametrize(("name", "process"), OUR_CASES)
def test_noised_data_stays_noised_data(name, process):
    """For x0 known exactly, x_n = alpha x0 + sigma e becomes the same at the end, on any grid."""
    grid = uneven(PROCESSES[process])
    first, last = grid.nodes[0], grid.nodes[-1]
    x0 = f64(0.7, -0.4, 0.2, 1.1)
    base, of_start, of_noise = responses(solver(name), grid, lambda x, node: x0.expand_as(x))
    mean = base + of_start * first.alpha * x0
    variance = of_start**2 * first.sigma**2 + (of_noise**2).sum(0)
    assert_close(mean, last.alpha * x0, rtol=1e-12, atol=1e-12)
    assert_close(variance, torch.full_like(x0, last.sigma**2), rtol=1e-12, atol=0)


MEASURED = [  # order of the variance, and its error at 100 steps
    ("ddpm", {}, 1, 0.06),
    ("ddpm", {"variance": "large"}, 1, 0.06),
    ("sde-dpmpp-1", {}, 1, 0.06),
    ("sde-dpmpp-1", {"eta": 0.5}, 1, 0.05),
    ("sde-dpmpp-2", NEVER, 2, 0.0015),
    ("sde-dpmpp-2", {"kind": "taylor", **NEVER}, 2, 0.003),
    ("sde-dpmpp-2", {"eta": 0.5, **NEVER}, 2, 0.001),
    ("sde-dpmpp-3", NEVER, 2, 0.001),
    ("sde-dpmpp-3", {"third_order": "exact", **NEVER}, 2, 0.0006),
    ("sa-solver", NEVER, 2, 0.0003),
    ("sa-solver", {"few_steps": True, **NEVER}, 2, 0.0025),
    ("sa-solver", {"predictor_order": 1, "corrector_order": 0, **NEVER}, 1, 0.05),
    ("sa-solver", {"predictor_order": 1, "corrector_order": 2, **NEVER}, 2, 0.003),
    ("sa-solver", {"predictor_order": 3, "corrector_order": 4, **NEVER}, 2, 0.0004),
    ("er-sde-1", {}, 1, 0.035),
    ("er-sde-2", {}, 2, 0.001),
    ("er-sde-3", {}, 2, 0.0007),
]


@pytest.mark.parametrize(("name", "settings", "order", "bound"), MEASURED)
def test_variance_converges_to_that_of_the_data(name, settings, order, bound):
    """With the order of SolverInfo where the settings are the defaults."""
    coarse, fine = (
        variance_error(solver(name, **settings), even_in_lam(EDM(), n)) for n in (512, 1024)
    )
    assert math.log2(coarse / fine) == pytest.approx(order, abs=0.15)
    grid = even_in_lam(EDM(), 100)
    assert bound / 4 < variance_error(solver(name, **settings), grid) < bound
    mean = moments(solver(name, **settings), grid)[0]
    assert_close(mean, GAUSSIAN.means[0] * grid.nodes[-1].alpha, rtol=1e-12, atol=1e-12)
    if settings in ({}, NEVER):
        assert order == solver(name).info.order


def fading_error(settings, steps, eta):
    """Error of (x / alpha - mean) ~ (v_end / v_start)^{(1 + eta) / 2}, v = std^2 + kappa^2."""
    grid = even_in_lam(EDM(), steps)
    start, end = (GAUSSIAN.stds[0] ** 2 + grid.nodes[n].kappa ** 2 for n in (0, -1))
    found = responses(settings, grid, GAUSSIAN.x0)[1]
    return float((found / (end / start) ** (0.5 * (1.0 + eta)) - 1.0).abs().max())


@pytest.mark.parametrize(
    ("name", "settings", "order"),
    [
        ("sde-dpmpp-1", {"eta": 0.5}, 1),
        ("sde-dpmpp-2", {"eta": 0.3, **NEVER}, 2),
        ("sde-dpmpp-3", {"eta": 0.5, **NEVER}, 2),
    ],
)
def test_the_start_is_forgotten_as_fast_as_in_the_sde(name, settings, order):
    settings = solver(name, **settings)
    coarse, fine = (fading_error(settings, steps, settings.eta) for steps in (256, 512))
    assert math.log2(coarse / fine) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize("name", ["ddpm", "sde-dpmpp-1", "sde-dpmpp-2", "sde-dpmpp-3"])
def test_at_eta_1_the_start_is_forgotten_exactly(name):
    """x0 - mean is then constant in lam but for noise, so every order has the mean right."""
    assert fading_error(solver(name), 20, 1.0) < 1e-10


SAMPLES = 20_000


@pytest.mark.parametrize("name", OURS)
def test_many_samples_have_the_mean_and_variance_of_the_mixture(name):
    """The network is not linear here. The error of SAMPLES draws is about 0.7 %."""
    grid = even_in_lam(VPLinear(), 100)
    first, last = grid.nodes[0], grid.nodes[-1]
    generator = torch.Generator().manual_seed(1)
    x = first.alpha * MIXTURE.draw(SAMPLES, (4,), generator)
    x += first.sigma * torch.randn(x.shape, generator=generator, dtype=torch.float64)
    x = run(solver(name), grid, x, law) / last.alpha
    weights, means = MIXTURE.weights[:, None], MIXTURE.means
    mean = (weights * means).sum(0)
    variance = (weights * (means**2 + MIXTURE.stds**2)).sum(0) - mean**2 + last.kappa**2
    assert_close(x.mean(0), mean, rtol=0, atol=0.02)
    assert (x.var(0) / variance - 1.0).abs().max() < (0.03 if solver(name).info.order > 1 else 0.05)


@pytest.mark.parametrize("name", ["sde-dpmpp-1", "sde-dpmpp-2", "sde-dpmpp-3"])
def test_noise_is_all_the_variance_there_is(name):
    """At eta = 1 the start is forgotten: 3 % more variance of the noise is 3 % more in the end."""
    grid = even_in_lam(EDM(), 100)
    plain, loud = (moments(solver(name, s_noise=s), grid)[1] for s in (1.0, math.sqrt(1.03)))
    assert ((loud / plain - 1.03).abs() < 1e-3).all()


# Both ends of the process


@pytest.mark.parametrize("name", OURS)
def test_scale_invariance(name):
    """With the same noise, x / alpha depends on the lam of the nodes alone."""
    ends = []
    for schedule in PROCESSES.values():
        grid = even_in_lam(schedule, 9)
        x = unit_noise() * 20.0 * grid.nodes[0].alpha
        ends.append(run(solver(name), grid, x, law) / grid.nodes[-1].alpha)
    for end in ends[1:]:
        assert_close(end, ends[0], rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", [*OURS, "ddpm-large"])
def test_last_step_to_zero_is_x0(name):
    """Exactly alpha x0 and no noise; it is the limit of the step to a vanishing sigma."""
    settings = solver("ddpm", variance="large") if name == "ddpm-large" else solver(name)
    grid = TimeGrid.of(EDM(), [80.0, 2.0, 0.0])
    x = start(grid)
    middle = run(settings, TimeGrid.of(EDM(), [80.0, 2.0, 1e-9]), x, law)
    end = run(settings, grid, x, law)
    rows = settings.on(grid).rows
    assert (rows[-1].x, rows[-1].z, rows[-1].x0) == (0.0, 0.0, 1.0)
    if name not in ("sde-dpmpp-2", "sde-dpmpp-3", "er-sde-2", "er-sde-3", "ddpm-large"):
        assert_close(middle, end, rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        *((name, {}) for name in OURS),
        ("ddpm", {"variance": "large"}),
        ("sde-dpmpp-1", {"eta": 0.5}),
        ("sde-dpmpp-2", {"eta": 0.0}),
        ("sa-solver", {"tau": 2.0, "kappa_max": math.inf}),
        ("sa-solver", {"tau": 0.0}),
    ],
)
def test_start_at_alpha_zero_is_the_limit(name, settings):
    """The first step forgets its start and adds sigma z; at eta = 0 it is that of the ODE."""
    ends = []
    for t in (1.0, 1 - 1e-13):
        grid = TimeGrid.of(RectifiedFlow(), [t, 0.7, 0.3])
        steps = solver(name, **settings).on(grid)
        step = steps.step(unit_noise(), steps.init(), *grid.nodes[:2])
        ends.append(drive(step, answering(law, 0))[0])
    assert_close(ends[0], ends[1], rtol=0, atol=1e-6)


# Noise


def asked(settings, grid):
    """Per step, the number of times x0 and noise are asked for."""
    steps, x, counts = settings.on(grid), start(grid), []
    state = steps.init()
    for n, (t, s) in enumerate(pairwise(grid.nodes)):
        count = [0, 0]

        def answer(x, node, count=count, n=n):
            count[node is None] += 1
            return answering(law, n)(x, node)

        x, state = drive(steps.step(x, state, t, s), answer)
        counts.append(tuple(count))
    return counts


@pytest.mark.parametrize(("name", "process"), OUR_CASES)
def test_one_noise_per_step_and_none_in_the_last(name, process):
    """The corrector of SA-Solver too asks for no noise of its own."""
    schedule = PROCESSES[process]
    settings = solver(name, **(ALWAYS_ON if name == "sa-solver" else {}))
    grid = uneven(schedule, last=schedule.t_zero)
    assert asked(settings, grid) == [(1, 1)] * 5 + [(1, 0)]


def test_noise_stays_inside_the_interval():
    grid = uneven(EDM())  # kappas 20, 9, 5, 1.5, 0.8, 0.1
    for low, high, noisy in ((1.0, 10.0, (1, 2, 3)), (0.0, 1e9, (0, 1, 2, 3)), (9.5, 30, (0,))):
        counts = asked(solver("sa-solver", kappa_min=low, kappa_max=high), grid)
        assert [n for n, (_, noise) in enumerate(counts) if noise] == list(noisy)


@pytest.mark.parametrize(
    ("name", "settings"),
    [("sde-dpmpp-1", {"eta": 0}), ("sde-dpmpp-3", {"s_noise": 0}), ("sa-solver", {"tau": 0})],
)
def test_no_noise_is_asked_for_where_none_is_used(name, settings):
    assert all(noise == 0 for _, noise in asked(solver(name, **settings), uneven(EDM())))


@pytest.mark.parametrize("name", OURS)
def test_image_k_depends_on_its_seed_alone(name):
    """Not on the batch, nor on its neighbours; the same seeds give the same bits again."""
    sampler = Sampler(GAUSSIAN.network(VPLinear(), (1, 2, 2)))
    runs = [
        sampler(seeds, solver=name, steps=8, batch=batch).samples
        for seeds, batch in ((range(5), 5), (range(5), 2), ([4, 2], 1))
    ]
    assert_close(runs[0], runs[1], rtol=0, atol=1e-6)
    assert_close(runs[0][[4, 2]], runs[2], rtol=0, atol=1e-6)
    assert torch.equal(sampler(range(5), solver=name, steps=8, batch=5).samples, runs[0])
    assert (runs[0][0] - runs[0][1]).abs().max() > 0.1


def test_noise_does_not_repeat_the_start():
    """The noise of a run is drawn on from its seed: it is neither the start nor the same twice."""
    unit = GaussianMixture.single(f64(0, 0, 0, 0), f64(1, 1, 1, 1))
    sampler = Sampler(unit.network(VPLinear(), (1, 2, 2)))
    x = sampler(range(3000), solver="sde-dpmpp-2", steps=40, batch=3000, grid="logsnr").samples
    # noise equal to the start, or the same in all steps, would add up instead of averaging out
    assert x.var().item() == pytest.approx(1.0, abs=0.06)


# diffusers


def network(x, node, kind=Prediction.EPS):
    return convert(law(x, node), x, node, Prediction.X0, kind)


def with_noise(settings, grid, noise):
    """Our run from `unit_noise`, step n with noise[n]."""
    steps, x = settings.on(grid), unit_noise()
    state = steps.init()
    for n, (t, s) in enumerate(pairwise(grid.nodes)):

        def answer(x, node, n=n):
            return noise[n] if node is None else law(x, node)

        x, state = drive(steps.step(x, state, t, s), answer)
    return x


def relative(a, b):
    return float((a - b).abs().max() / b.abs().max())


@pytest.mark.parametrize("steps", [1000, 50, 7])
@pytest.mark.parametrize("variance", ["small", "large"])
def test_ddpm_agrees_with_diffusers(variance, steps):
    """Its table is given in float64: in float32 it is good for 2e-5 over 1000 steps."""
    scheduler = DDPMScheduler(variance_type=f"fixed_{variance}", clip_sample=False)
    schedule = VPDiscrete()
    assert_close(scheduler.alphas_cumprod, f64(*schedule.alphas_cumprod).float())
    scheduler.alphas_cumprod = f64(*schedule.alphas_cumprod)
    scheduler.set_timesteps(steps)
    labels = scheduler.timesteps.tolist()
    grid = TimeGrid.of(schedule, [*((n + 1) / 1000 for n in labels), 0.0])
    x, generator = unit_noise(), torch.Generator().manual_seed(5)
    for label, node in zip(labels, grid.nodes[:-1], strict=True):
        x = scheduler.step(network(x, node), label, x, generator=generator).prev_sample
    generator.manual_seed(5)
    noise = [torch.randn(x.shape, generator=generator, dtype=x.dtype) for _ in labels]
    assert relative(x, with_noise(solver("ddpm", variance=variance), grid, noise)) < 1e-10


@pytest.mark.parametrize("steps", [10, 20])
@pytest.mark.parametrize("flow", [False, True])
@pytest.mark.parametrize(("order", "kind"), [(1, None), (2, "midpoint"), (2, "taylor")])
def test_sde_dpmpp_agrees_with_diffusers(order, kind, flow, steps):
    """Not order 3: its weight of D2 there has a wrong sign."""
    config = {"solver_order": order, "algorithm_type": "sde-dpmsolver++"}
    config |= {"solver_type": "heun" if kind == "taylor" else "midpoint"}
    if flow:
        config |= {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}
    scheduler = DPMSolverMultistepScheduler(**config)
    scheduler.set_timesteps(steps)
    scheduler.set_begin_index(0)
    schedule = RectifiedFlow() if flow else VPDiscrete()
    grid = at_kappas(schedule, scheduler.sigmas.tolist())
    x, predicts = start(grid), Prediction.FLOW if flow else Prediction.EPS
    for i, z in enumerate(noises(grid)):
        out = network(x, grid.nodes[i], predicts)
        x = scheduler.step(out, scheduler.timesteps[i], x, variance_noise=z).prev_sample
    settings = {} if kind is None else {"kind": kind}
    ours = run(solver(f"sde-dpmpp-{order}", **settings), grid, start(grid), law)
    assert relative(x, ours) < 2e-6


def at_kappas(schedule, sigmas):
    """Nodes at the sigmas of a scheduler: of flow itself, else kappa."""
    if schedule.family == "flow":
        return TimeGrid.of(schedule, sigmas)
    lowest = schedule.at(1.0).lam  # float32 may have carried the first beyond it
    nodes = [
        schedule.at(0.0) if kappa == 0.0 else schedule.at_lam(max(-math.log(kappa), lowest))
        for kappa in sigmas
    ]
    return TimeGrid(schedule, tuple(nodes))


@pytest.mark.parametrize("orders", [(1, 2), (2, 2), (2, 3), (3, 4)])
@pytest.mark.parametrize("steps", [12, 30])
def test_sa_solver_agrees_with_diffusers(orders, steps):
    """Its tau is 1 from label 200 to 800; it always replaces weights as our few_steps does."""
    scheduler = SASolverScheduler(predictor_order=orders[0], corrector_order=orders[1])
    scheduler.set_timesteps(steps)
    scheduler.set_begin_index(0)
    schedule = VPDiscrete()
    grid = at_kappas(schedule, scheduler.sigmas.tolist())
    x, generator = unit_noise(), torch.Generator().manual_seed(5)
    noise = [torch.randn(x.shape, generator=generator, dtype=x.dtype) for _ in range(steps)]
    generator.manual_seed(5)
    for i, label in enumerate(scheduler.timesteps):
        out = network(x, grid.nodes[i])
        x = scheduler.step(out, label, x, generator=generator).prev_sample
    kappas = [schedule.at(t).kappa for t in (0.2005, 0.8015)]
    settings = solver(
        "sa-solver",
        predictor_order=orders[0],
        corrector_order=orders[1],
        few_steps=True,
        kappa_min=kappas[0],
        kappa_max=kappas[1],
    )
    assert relative(x, with_noise(settings, grid, noise)) < 2e-6


@pytest.mark.parametrize("name", OURS)
def test_default_grids_of_every_length_stay_bounded(name):
    for process in PROCESSES.values():
        for steps in (1, 2, 3, 5, 8, 13, 50):
            grid = time_grid(choose_default_grid(process), process, steps, Final.ZERO)
            assert run(solver(name), grid, start(grid), law).abs().max() < 3.0
