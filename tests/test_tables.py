"""Noise-form multistep, singlestep and Adams-Bashforth solvers against formulas and diffusers."""

import math
from itertools import pairwise

import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    LMSDiscreteScheduler,
)
from laws import (
    GAUSSIAN,
    MIXTURE,
    PROCESSES,
    even_in_lam,
    f64,
    find_end,
    run,
    start,
    unit_noise,
    walk,
)
from numpy.polynomial import Polynomial
from scipy.integrate import quad
from test_parity import FLOW, SPACINGS, Row, difference
from torch.testing import assert_close

from fewstep.models.errors import SettingError
from fewstep.models.schedule import EDM, RectifiedFlow, TimeGrid, VPDiscrete, VPLinear
from fewstep.solvers import drive, solver
from fewstep.solvers.interpolation import average_basis, place_points
from fewstep.solvers.singlestep import _list_blocks, _split_steps
from fewstep.solvers.stork import compute_weights

NEVER = {"lower_order_final": "never"}
KAPPAS = [20.0, 9.0, 5.0, 1.5, 0.8, 0.3, 0.1]  # uneven, so that a swapped history shows


def uneven(schedule):
    return TimeGrid.of(schedule, [schedule.at_lam(-math.log(kappa)).t for kappa in KAPPAS])


# Parity with diffusers


def multistep():
    """diffusers has no noise form on rectified flow; its float32 weights cost some digits."""
    base = {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}
    for p in (2, 3):
        for spacing in SPACINGS:
            for ours, theirs in {"midpoint": "midpoint", "taylor": "heun"}.items():
                config = base | {"solver_order": p, "solver_type": theirs}
                config |= SPACINGS[spacing]
                # karras and lu repeat sigma_min, over which they would lower a short run's order
                steps = 16 if spacing in ("karras", "lu") else 10
                row = Row(f"dpm-{p}m", {"kind": ours}, DPMSolverMultistepScheduler, config, steps)
                yield row._replace(tolerance=4e-6)


def singlestep():
    """Where the blocks are the same. With `lower_order_final` diffusers ends order 2 in two steps
    of order 1, and to zero it splits N = 1 mod 3 into 3, .., 3, 1, where we end in 2, 1, 1.

    At order 3 diffusers makes the second step of a block a midpoint step where we, and the paper,
    make it a taylor step, so only the taylor kind is the same.
    """
    kinds = {2: {"dpmsolver": "midpoint", "taylor": "heun"}, 3: {"taylor": "heun"}}
    forms = {"dpm": "dpmsolver", "dpmpp": "dpmsolver++"}
    for p, (form, algorithm) in ((p, each) for p in (2, 3) for each in forms.items()):
        for ours, theirs in kinds[p].items():
            config = {"solver_order": p, "solver_type": theirs, "algorithm_type": algorithm}
            config["lower_order_final"] = p == 3
            name, settings, scheduler = f"{form}-{p}s", {"kind": ours}, DPMSolverSinglestepScheduler
            runs = [("sigma_min", n) for n in ((9, 10) if p == 2 else (9, 10, 11))]
            if form == "dpmpp":  # diffusers refuses dpmsolver with final sigma 0
                runs += [("zero", n) for n in ((9, 10) if p == 2 else (9, 11))]
            for final, steps in runs:
                told = config | {"final_sigmas_type": final}
                yield Row(name, settings, scheduler, told, steps)
                if form == "dpmpp":
                    yield Row(name, settings, scheduler, told | FLOW, steps, "flow")


def lms():
    for config in ({}, {"use_karras_sigmas": True}):
        for steps in (3, 10):
            yield Row("lms", {}, LMSDiscreteScheduler, config, steps, "ve")


@pytest.mark.parametrize("row", [*multistep(), *singlestep(), *lms()], ids=str)
def test_agrees_with_diffusers(row):
    assert difference(row) < row.tolerance


# Noise-form multistep


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("dpm-2m", {"kind": "taylor"}), ("deis-2", {})),
        (("dpm-3m", {"kind": "taylor", "third_order": "exact"}), ("deis-3", {})),
        (("deis-tab0", {}), ("ddim", {})),
        (("ipndm-1", {}), ("ddim", {})),
        (("lms", {"order": 1}), ("ddim", {})),
    ],
)
@pytest.mark.parametrize("process", PROCESSES)
def test_same_solver_by_another_name(one, other, process):
    grid = uneven(PROCESSES[process])
    a, b = (run(solver(n, **kw), grid, start(grid), MIXTURE.x0) for n, kw in (one, other))
    assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("k", [0, 1, 2, 3])
def test_tab_in_edm_is_lms(k):
    """t is kappa there."""
    for grid in (uneven(EDM()), TimeGrid.of(EDM(), [*KAPPAS, 0.0])):
        x = start(grid)
        a = run(solver(f"deis-tab{k}"), grid, x, MIXTURE.x0)
        assert_close(
            a, run(solver("lms", order=k + 1), grid, x, MIXTURE.x0), rtol=1e-12, atol=1e-12
        )


@pytest.mark.parametrize("kind", ["midpoint", "taylor"])
@pytest.mark.parametrize("final", [0.0, 0.05])
def test_noise_form_differs_but_not_where_the_order_is_one(kind, final):
    schedule = EDM()
    for steps, same in ((1, True), (4, False)):
        times = [20.0 * (1 - i / steps) + final * i / steps for i in range(steps + 1)]
        grid = TimeGrid.of(schedule, times)
        for p in (2, 3):
            a, b = (
                run(solver(f"{form}-{p}m", kind=kind, **NEVER), grid, start(grid), MIXTURE.x0)
                for form in ("dpm", "dpmpp")
            )
            assert ((a - b).abs().max() < 1e-12) == same


def test_noise_form_settings_change_the_answer():
    grid = even_in_lam(EDM(), 9)
    ends = [
        run(solver("dpm-3m", **kw), grid, start(grid), MIXTURE.x0)
        for kw in ({}, {"third_order": "exact"}, {"kind": "taylor"}, NEVER)
    ]
    assert all((ends[0] - end).abs().max() > 1e-4 for end in ends[1:])


# Singlestep


@pytest.mark.parametrize(
    ("p", "sizes"),
    [
        (2, {0: [], 1: [1], 2: [2], 5: [2, 2, 1], 6: [2, 2, 2]}),
        (3, {0: [], 1: [1], 2: [2], 3: [2, 1], 4: [3, 1], 5: [3, 2], 6: [3, 2, 1], 7: [3, 3, 1]}),
    ],
)
def test_budget_split(p, sizes):
    assert {n: _split_steps(n, p) for n in sizes} == sizes
    assert all(
        sum(_split_steps(n, p)) == n and set(_split_steps(n, p)) <= {1, 2, p} for n in range(60)
    )


@pytest.mark.parametrize(
    ("first", "last", "sizes"),
    [
        (0.9, 0.1, [3, 3, 2]),
        (1.0, 0.1, [1, 3, 3, 1]),
        (0.9, 0.0, [3, 3, 1, 1]),
        (1.0, 0.0, [1, 3, 2, 1, 1]),
    ],
)
def test_steps_at_the_ends_are_blocks_of_their_own(first, last, sizes):
    times = [first + (last - first) * i / 8 for i in range(9)]
    blocks = list(_list_blocks(TimeGrid.of(RectifiedFlow(), times), 3))
    assert [b - a for a, b in blocks] == sizes
    assert [a for a, _ in blocks] == [sum(sizes[:i]) for i in range(len(sizes))]
    assert list(_list_blocks(TimeGrid.of(RectifiedFlow(), [1.0, 0.0]), 3)) == [(0, 1)]


def singlestep_by_the_book(grid, x, law, p, form, kind):
    """Whole blocks, each with the papers' formulas: (a, s) is (sigma, alpha) for data, else turned.

    x_t = (a_t / a_s) x - s_t expm1(k h) m0 + ..., with k = -1 for data and 1 for noise.
    """
    k = -1.0 if form == "dpmpp" else 1.0

    def two(node):
        return (node.sigma, node.alpha) if k < 0 else (node.alpha, node.sigma)

    def value(x, node):
        x0 = law(x, node)
        return x0 if k < 0 else (x - node.alpha * x0) / node.sigma

    def base(start, node, x, m0):
        (a, _), (b, c) = two(start), two(node)
        return b / a * x - c * math.expm1(k * (node.lam - start.lam)) * m0

    def second(start, node):
        """Weight of h times the first derivative: E / h + 1 for data, -(F / h - 1) for noise."""
        h = node.lam - start.lam
        return two(node)[1] * (1.0 - math.expm1(k * h) / (k * h))

    for begin, end in _list_blocks(grid, p):
        s, t = grid.nodes[begin], grid.nodes[end]
        m0 = value(x, s)
        if end - begin == 1 and (s.alpha == 0.0 or t.sigma == 0.0):
            ratio = t.sigma / s.sigma
            x = ratio * x + (t.alpha - s.alpha * ratio) * law(x, s)
            continue
        out, h = base(s, t, x, m0), t.lam - s.lam
        if end - begin >= 2:
            one = grid.nodes[begin + 1]
            r1, m1 = (one.lam - s.lam) / h, value(base(s, one, x, m0), one)
        if end - begin == 2:
            half = -two(t)[1] * math.expm1(k * h) / 2
            out = out + (half if kind == "dpmsolver" else second(s, t)) / r1 * (m1 - m0)
        if end - begin == 3:
            node = grid.nodes[begin + 2]
            r2 = (node.lam - s.lam) / h
            m2 = value(base(s, node, x, m0) + r2 / r1 * second(s, node) * (m1 - m0), node)
            if kind == "dpmsolver":
                out = out + second(s, t) / r2 * (m2 - m0)
            else:
                a, b = (m1 - m0) / r1, (m2 - m0) / r2
                d1, d2 = (r2 * a - r1 * b) / (r2 - r1), 2 * (b - a) / (r2 - r1)
                third = (math.expm1(k * h) / (k * h) - 1.0) / (k * h) - 0.5
                out = out + second(s, t) * d1 - two(t)[1] * third * d2
        x = out
    return x


@pytest.mark.parametrize("kind", ["dpmsolver", "taylor"])
@pytest.mark.parametrize("form", ["dpm", "dpmpp"])
@pytest.mark.parametrize("p", [2, 3])
def test_singlestep_is_the_papers_formula(p, form, kind):
    times = [1.0, 0.93, 0.8, 0.71, 0.6, 0.45, 0.38, 0.2, 0.11, 0.03, 0.0]
    for schedule, nodes in ((RectifiedFlow(), times), (VPLinear(), times), (EDM(), KAPPAS)):
        for n in range(2, len(nodes) + 1):
            grid = TimeGrid.of(schedule, nodes[:n])
            wanted = singlestep_by_the_book(grid, start(grid), MIXTURE.x0, p, form, kind)
            found = run(solver(f"{form}-{p}s", kind=kind), grid, start(grid), MIXTURE.x0)
            assert_close(found, wanted, rtol=1e-10, atol=1e-10)


def error(settings, grid):
    first, last = grid.nodes[0], grid.nodes[-1]
    x = unit_noise((3, 4)) * math.hypot(first.alpha, first.sigma)
    wrong = run(settings, grid, x, GAUSSIAN.x0) - GAUSSIAN.flow_map(x, first, last)
    return float(wrong.abs().max()) / last.alpha


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("kind", ["dpmsolver", "taylor"])
@pytest.mark.parametrize("name", ["dpm-2s", "dpm-3s", "dpmpp-2s", "dpmpp-3s"])
def test_singlestep_order(name, kind, process):
    """With N = 2 mod 6 no step of order 1 stands at the end, which would make it order 2."""
    settings = solver(name, kind=kind)
    a, b = (error(settings, even_in_lam(PROCESSES[process], n)) for n in (254, 512))
    assert math.log(a / b) / math.log(512 / 254) == pytest.approx(settings.info.order, abs=0.1)


@pytest.mark.parametrize("kind", ["dpmsolver", "taylor"])
@pytest.mark.parametrize("name", ["dpm-3s", "dpmpp-3s"])
def test_a_last_step_of_order_1_limits_singlestep_3(name, kind):
    a, b = (error(solver(name, kind=kind), even_in_lam(EDM(), n)) for n in (256, 511))
    assert math.log(a / b) / math.log(511 / 256) == pytest.approx(2.0, abs=0.1)


# Adams-Bashforth


def exact_start(settings, grid, warm):
    """The end state, if the first `warm` predictions are made at exact states."""
    x = unit_noise((3, 4)) * math.hypot(grid.nodes[0].alpha, grid.nodes[0].sigma)
    steps, first = settings.on(grid), x
    state = steps.init()
    for n, (t, s) in enumerate(pairwise(grid.nodes)):
        if n <= warm:
            x = GAUSSIAN.flow_map(first, grid.nodes[0], t)
        x, state = drive(steps.step(x, state, t, s), GAUSSIAN.x0)
    wrong = x - GAUSSIAN.flow_map(first, grid.nodes[0], grid.nodes[-1])
    return float(wrong.abs().max()) / grid.nodes[-1].alpha


ADAMS = [(f"deis-tab{k}", {}, k + 1) for k in range(4)]
ADAMS += [("lms", {"order": p}, p) for p in range(1, 5)]
ADAMS += [("cab", {"theta": theta}, 2) for theta in (0.0, 0.2, 0.9)]
ADAMS += [("cab", {"theta": 5 / 12}, 3), ("cab", {"order": 3, "theta": 0.0}, 3)]
ADAMS += [("cab", {"order": 3, "theta": theta}, 2) for theta in (0.2, 0.9)]
CURVED = {"vp-linear": VPLinear(), "edm": EDM(), "flow": RectifiedFlow(shift=3.0)}


@pytest.mark.parametrize("process", CURVED)
@pytest.mark.parametrize(("name", "settings", "order"), ADAMS)
def test_order_from_an_exact_start(name, settings, order, process):
    """Order K + 1, which the single first-order step of a run from noise hides in the end."""
    settings = solver(name, **settings)
    a, b = (exact_start(settings, even_in_lam(CURVED[process], n), order - 1) for n in (256, 512))
    assert math.log2(a / b) == pytest.approx(order, abs=0.2)


@pytest.mark.parametrize("name", ["deis-tab2", "deis-tab3", "lms"])
def test_the_first_step_of_order_1_limits_the_order_to_2(name):
    """What exact starting values take away is its error, and that falls with h^2."""
    warm = {"deis-tab2": 2}.get(name, 3)
    parts = [
        error(solver(name), grid) - exact_start(solver(name), grid, warm)
        for grid in (even_in_lam(RectifiedFlow(shift=3.0), n) for n in (512, 1024))
    ]
    assert math.log2(abs(parts[0] / parts[1])) == pytest.approx(2.0, abs=0.25)


def test_the_second_difference_of_cab_has_a_useful_range():
    """Errors at 10 steps by theta: .2 to .4 help, .9 overshoots."""
    grid = even_in_lam(EDM(), 10)
    expected = {2: (0.0922547665, 0.0549043461, 0.0156604164, 0.0678379905)}
    expected[3] = (0.0672865693, 0.0306665690, 0.00785251126, 0.0899362244)
    for order, errors in expected.items():
        found = [
            exact_start(solver("cab", order=order, theta=theta), grid, 1)
            for theta in (0.0, 0.2, 5 / 12, 0.9)
        ]
        assert found == pytest.approx(errors, rel=1e-6)


def test_cab_is_its_formula():
    grid = TimeGrid.of(EDM(), [10.0, 6.0, 5.0, 2.0, 0.5, 0.0])
    x, past = unit_noise((3, 4)) * 10.0, []
    steps = solver("cab", theta=0.3).on(grid)
    state = steps.init()
    for n, (t, s) in enumerate(pairwise(grid.nodes)):
        eps = (x - GAUSSIAN.x0(x, t)) / t.sigma
        past.insert(0, eps)
        h = s.t - t.t
        moved = x + h * eps
        if n:
            r = h / (t.t - grid.nodes[n - 1].t)
            moved = x + h * ((1 + r / 2) * eps - r / 2 * past[1])
        if n > 1:
            r = (t.t - grid.nodes[n - 1].t) / (grid.nodes[n - 1].t - grid.nodes[n - 2].t)
            moved = moved + 0.3 * h * (eps - (1 + r) * past[1] + r * past[2])
        x, state = drive(steps.step(x, state, t, s), GAUSSIAN.x0)
        torch.testing.assert_close(x, moved, rtol=0, atol=1e-12)


def test_stork_has_its_published_weights_and_order():
    """a2 and a3 as the released loops have them; what is called order 2 is 1 in the limit."""
    for stages, weights in {
        10: (0.4653715, 0.1089),
        50: (0.4896205, 0.1215),
        200: (0.4971129, 0.1241),
    }.items():
        assert compute_weights(stages) == pytest.approx(weights, abs=5e-5)
    for spacing in ("published", "exact"):
        settings = solver("stork", spacing=spacing, stages=10)
        a, b = (exact_start(settings, even_in_lam(EDM(), n), 1) for n in (512, 1024))
        assert math.log2(a / b) == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("spacing", ["published", "exact"])
def test_stork_is_its_loop_of_stages(spacing):
    """The recursion of RKG2 over states, with slopes that are extrapolated to the stages' times."""
    h, h1, h2, s = 0.7, 0.4, 0.9, 7
    grid = TimeGrid.of(EDM(), [4.0 + h1 + h2, 4.0 + h1, 4.0, 4.0 - h])
    d0, d1, d2 = f64([0.3, -0.2], [0.5, 0.4], [-0.1, 0.9])
    slope = (-3 * d0 + 4 * d1 - d2) / (2 * h1)
    if spacing == "exact":
        slope = ((d1 - d0) * h2 * (2 * h1 + h2) - (d2 - d1) * h1**2) / (h1 * h2 * (h1 + h2))
    curve = 2 / (h1 * h2 * (h1 + h2)) * (h1 * d2 - (h1 + h2) * d1 + h2 * d0)

    def b(j):
        plain = {0: 1.0, 1: 1 / 3}
        return plain[j] if j < 2 else 4 * (j - 1) * (j + 4) / (3 * j * (j + 1) * (j + 2) * (j + 3))

    x = f64(1.0, 2.0)
    w = 6 / ((s + 4) * (s - 1))
    states = [x, x - h * w * d0]
    for j in range(2, s + 1):
        at = h * (4 / 3 if j == 2 else (j - 1) ** 2 + (j - 1) - 2) / (s**2 + s - 2)
        mu, nu = (2 * j + 1) * b(j) / (j * b(j - 1)), -(j + 1) * b(j) / (j * b(j - 2))
        here = d0 - at * slope + at**2 / 2 * curve
        rest = mu * w * (1 - j * (j + 1) / 2 * b(j - 1))
        drift = mu * w * here - rest * d0
        states.append(mu * states[-1] + nu * states[-2] + (1 - mu - nu) * x - h * drift)
    combo = solver("stork", stages=s, spacing=spacing).table(grid).steps[2]
    terms = {("x", 2): x, ("x0", 2): x - 4.0 * d0, ("eps", 2): d0, ("eps", 1): d1, ("eps", 0): d2}
    found = sum(weight * terms[term] for term, weight in combo.items())
    torch.testing.assert_close(found, states[-1], rtol=0, atol=1e-12)


def by_quadrature(places, j, kappa_t, kappa_s, time_of):
    """int l_j(t(kappa)) dkappa by adaptive quadrature."""

    def basis(kappa):
        t = time_of(kappa)
        return math.prod(
            (t - place) / (places[j] - place) for k, place in enumerate(places) if k != j
        )

    return quad(basis, kappa_t, kappa_s, epsabs=1e-13, epsrel=1e-13, limit=400)[0]


@pytest.mark.parametrize("last", [0.003, 0.0])
@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("process", PROCESSES)
def test_tab_weights_are_the_integrals(process, k, last):
    """The weight of each kept eps, also in the step to zero."""
    schedule = PROCESSES[process]
    grid = TimeGrid.of(schedule, [0.93, 0.7, 0.5, 0.33, 0.12, last])
    rows = solver(f"deis-tab{k}").on(grid).rows
    for n, (t, s) in enumerate(pairwise(grid.nodes)):
        places = [node.t for node in grid.nodes[max(n - k, 0) : n + 1]][::-1]

        def time_of(kappa):
            return schedule.at_lam(-math.log(kappa)).t

        wanted = [
            s.alpha * by_quadrature(places, j, t.kappa, s.kappa, time_of)
            for j in range(1, len(places))
        ]
        if k == 1 and n > 0:  # one old eps is held as the x and x0 that it is made of
            old = grid.nodes[n - 1]
            wanted = [wanted[0] / old.sigma, -wanted[0] * old.alpha / old.sigma]
        # kinks of the discrete schedule leave the two quadratures apart
        assert rows[n].past == pytest.approx(wanted, rel=2e-4 if process == "vp" else 1e-9)


def test_weights_of_polynomials_in_closed_form():
    places, end = [1.5, 2.0, 3.5, 8.0], 0.4
    found = average_basis(places, place_points(places[0], end))
    for j, mean in enumerate(found, start=1):
        others = [place for k, place in enumerate(places) if k != j]
        basis = Polynomial.fromroots(others)
        integral = (basis / basis(places[j])).integ()
        assert mean == pytest.approx((integral(end) - integral(places[0])) / (end - places[0]))
    uniform = average_basis([3.0, 4.0, 5.0, 6.0], place_points(3.0, 2.0))
    assert uniform == pytest.approx([-59 / 24, 37 / 24, -9 / 24])


@pytest.mark.parametrize("k", [1, 2, 3])
def test_polynomial_in_t_is_integrated_exactly(k):
    """eps of degree k in t needs k + 1 nodes: x = alpha (C + int p(t) dkappa) has eps = p."""
    schedule, c = VPLinear(), [f64([0.3, -0.5]), f64([0.2, 0.7]), f64([-0.4, 0.1])]
    grid = TimeGrid.of(schedule, [0.95, 0.8, 0.7, 0.4, 0.3, 0.1, 0.0])

    def p(t):
        return sum((a * t**i for i, a in enumerate([*c, f64([0.5, 0.6])][: k + 1])), f64([0, 0]))

    def moment(i, node):
        def at(kappa):
            return schedule.at_lam(-math.log(kappa)).t ** i if kappa else 0.0

        return quad(at, 0.0, node.kappa, epsabs=1e-13, epsrel=1e-13, limit=400)[0]

    def exact(node):
        terms = [*c, f64([0.5, 0.6])][: k + 1]
        moved = sum((a * moment(i, node) for i, a in enumerate(terms)), f64([0, 0]))
        return node.alpha * (0.6 + moved)

    def law(x, node):
        return (x - node.sigma * p(node.t)) / node.alpha

    steps = solver(f"deis-tab{k}").on(grid)
    state = steps.init()
    for n, (t, s) in enumerate(pairwise(grid.nodes)):
        x, state = drive(steps.step(exact(t), state, t, s), law)
        if n >= k:
            assert_close(x, exact(s), rtol=1e-9, atol=1e-9)
    assert n >= k


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("ipndm-2", [3 / 2, -1 / 2]),
        ("ipndm-3", [23 / 12, -16 / 12, 5 / 12]),
        ("ipndm-4", [55 / 24, -59 / 24, 37 / 24, -9 / 24]),
    ],
)
@pytest.mark.parametrize("process", PROCESSES)
def test_ipndm_is_the_classical_combination_and_a_ddim_step(name, weights, process):
    table = {1: [1.0], 2: [3 / 2, -1 / 2], 3: [23 / 12, -16 / 12, 5 / 12], len(weights): weights}
    grid = uneven(PROCESSES[process])
    x, past = start(grid), []
    for t, s in pairwise(grid.nodes):
        past.insert(0, (x - t.alpha * MIXTURE.x0(x, t)) / t.sigma)
        used = table[min(len(past), len(weights))]
        eps = sum((a * e for a, e in zip(used, past, strict=False)), torch.zeros_like(x))
        x = s.alpha / t.alpha * (x - t.sigma * eps) + s.sigma * eps
    assert_close(run(solver(name), grid, start(grid), MIXTURE.x0), x, rtol=1e-11, atol=1e-11)


def test_lms_steps_along_the_velocity_on_rectified_flow():
    grid = TimeGrid.of(RectifiedFlow(), [1.0, 0.7, 0.45, 0.0])
    x, past = unit_noise(), []
    for n, (t, s) in enumerate(pairwise(grid.nodes)):
        past.insert(0, (x - MIXTURE.x0(x, t)) / t.sigma)
        places = [node.sigma for node in grid.nodes[: n + 1]][::-1]
        for j, velocity in enumerate(past):
            basis = Polynomial([1.0])
            for k, place in enumerate(places):
                if k != j:
                    basis = basis * Polynomial([-place, 1.0]) / (places[j] - place)
            x = x + (basis.integ()(s.sigma) - basis.integ()(t.sigma)) * velocity
    assert_close(run(solver("lms"), grid, unit_noise(), MIXTURE.x0), x, rtol=1e-12, atol=1e-12)


AB = [*(f"deis-tab{k}" for k in range(4)), *(f"ipndm-{p}" for p in range(1, 5)), "lms"]


@pytest.mark.parametrize("name", AB)
def test_ends_of_the_process_are_limits(name):
    """A start near alpha = 0 and an end near sigma = 0 go over into those at them."""
    times = [0.8, 0.5, 0.3, 0.1]

    def end(first, last):
        grid = TimeGrid.of(RectifiedFlow(), [first, *times, last])
        return run(solver(name), grid, unit_noise(), MIXTURE.x0)

    assert_close(end(1 - 1e-8, 0.0), end(1.0, 0.0), rtol=0, atol=1e-6)
    assert_close(end(1.0, 1e-12), end(1.0, 0.0), rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", [n for n in AB if not n.startswith("lms")])
def test_ipndm_does_not_know_the_process_and_tab_does(name):
    """x / alpha is the same on all processes, unless the time of the process has a part in it."""
    ends = []
    for schedule in (VPLinear(), EDM(), RectifiedFlow()):
        grid = even_in_lam(schedule, 9)
        x = unit_noise() * 20.0 * grid.nodes[0].alpha
        ends.append(run(solver(name), grid, x, MIXTURE.x0) / grid.nodes[-1].alpha)
    same = max(float((a - b).abs().max()) for a, b in pairwise(ends))
    assert same < 1e-11 if name.startswith("ipndm") or name == "deis-tab0" else same > 1e-4


# All of them

ALL = ["dpm-2m", "dpm-3m", "dpm-2s", "dpm-3s", "dpmpp-2s", "dpmpp-3s", *AB]


@pytest.mark.parametrize(
    "schedule", [RectifiedFlow(shift=3.0), VPDiscrete(zero_snr=True), VPLinear()], ids=repr
)
def test_any_budget_is_finite_to_both_ends(schedule):
    """One step ends at the prediction, many near the exact end."""
    for steps in (1, 2, 3, 4, 5, 10, 50):
        grid = TimeGrid.of(schedule, [1 - i / steps for i in range(steps + 1)])
        exact = find_end(grid, unit_noise()) if steps == 50 else None
        for name in ALL:
            states = [x for x, _ in walk(solver(name).on(grid), grid, unit_noise(), MIXTURE.x0)]
            assert all(x.isfinite().all() for x in states), (name, steps)
            if steps == 1:
                prediction = MIXTURE.x0(unit_noise(), grid.nodes[0])
                assert (states[-1] - prediction).abs().max() < 1e-12, name
            if exact is not None:
                assert (states[-1] - exact).abs().max() < 0.05, name


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("lms", {"order": 5}, "lms: order=5"),
        ("dpm-2s", {"kind": "midpoint"}, "kind='midpoint'.*'dpmsolver' or 'taylor'"),
        ("dpm-3m", {"third_order": 3}, "third_order=3"),
    ],
)
def test_bad_settings_are_refused(name, settings, message):
    with pytest.raises(SettingError, match=message):
        solver(name, **settings)
