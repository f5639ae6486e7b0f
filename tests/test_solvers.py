"""Every registered solver, held to its `SolverInfo`, to exact answers and to the protocol."""

import copy
import json
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from functools import cache
from itertools import combinations, pairwise, product
from pathlib import Path
from typing import NamedTuple

import hypothesis
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from laws import (
    CASES,
    DETERMINISTIC,
    FIXED,
    GAUSSIAN,
    MIXTURE,
    ODE_CASES,
    PROCESSES,
    answering,
    even_in_lam,
    f64,
    find_end,
    run,
    runs,
    solver,
    start,
    unit_noise,
    walk,
)
from torch.testing import assert_close

from fewstep.models.errors import ScheduleError, SettingError, UnknownNameError
from fewstep.models.schedule import EDM, RectifiedFlow, TimeGrid, VPLinear
from fewstep.samplers.budget import fit_grid, predict_nfe
from fewstep.samplers.grid import Final, choose_default_grid, time_grid
from fewstep.solvers import drive, list_queries, names, register

GOLDEN = json.loads(Path(__file__).with_name("golden_solvers.json").read_text())


class Row(NamedTuple):
    """What is known of a solver beside its `SolverInfo`.

    error:  largest error of x / alpha after 8 steps on GAUSSIAN from kappa 20 to 0.05, against the
            ODE; of a stochastic solver mostly its noise.
    memory: tensors held between steps; of an older eps that serves one step, its x and x0.
    lowered: the default of `lower_order_final`, as diffusers has it; None if it is not a setting.
    constant: whether a constant x0 is reproduced exactly.
    """

    error: float
    memory: int
    lowered: str | bool | None = None
    constant: bool = True


ROWS = {
    "cab": Row(0.0820460866, memory=2),
    "consistency": Row(2.05566663, memory=0),
    "ddim": Row(0.218372201, memory=0),
    "ddpm": Row(1.69449537, memory=0),
    "deis-1": Row(0.218372201, memory=0, lowered="under-15"),
    "deis-2": Row(0.0654356099, memory=2, lowered="under-15"),
    "deis-3": Row(0.0186424606, memory=2, lowered="under-15"),
    "deis-tab0": Row(0.218372201, memory=0),
    "deis-tab1": Row(0.131876599, memory=2),
    "deis-tab2": Row(0.1067615, memory=2),
    "deis-tab3": Row(0.0978865415, memory=3),
    "dpm-2-ancestral": Row(1.72699699, memory=0),
    "dpm-2m": Row(0.0452400802, memory=2, lowered="under-15"),
    "dpm-2s": Row(0.216181058, memory=2),
    "dpm-3m": Row(0.0190390504, memory=2, lowered="under-15"),
    "dpm-3s": Row(0.0555102547, memory=2),
    "dpm-adaptive-12": Row(0.0252753918, memory=0),
    "dpm-adaptive-23": Row(0.000193184772, memory=0),
    "dpm-solver-v3": Row(0.037354999771, memory=3, lowered="always"),
    "dpm2": Row(0.0505522917, memory=0),
    "dpmpp-1m": Row(0.218372201, memory=0),
    "dpmpp-2m": Row(0.0166235816, memory=1, lowered="under-15"),
    "dpmpp-2m-cfg-pp": Row(0.0290904728, memory=1),
    "dpmpp-2s": Row(0.128523538, memory=2),
    "dpmpp-2s-ancestral": Row(1.6698294, memory=0),
    "dpmpp-3m": Row(0.0807995705, memory=2, lowered="under-15"),
    "dpmpp-3s": Row(0.0180267606, memory=2),
    "dpmpp-sde": Row(2.23512406, memory=0),
    "er-sde-1": Row(0.547249808, memory=0),
    "er-sde-2": Row(0.65459147, memory=1),
    "er-sde-3": Row(0.661470145, memory=2),
    "euler": Row(0.218372201, memory=0),
    "euler-ancestral": Row(1.69449537, memory=0),
    "euler-ancestral-cfg-pp": Row(1.69449537, memory=0),
    "euler-cfg-pp": Row(0.218372201, memory=0),
    "evodiff": Row(0.0823082044, memory=2, lowered=True, constant=False),
    "fireflow": Row(0.0181680963, memory=1),
    "flow-cps": Row(1.72848818, memory=0),
    "flow-map": Row(0.218372201, memory=0),
    "flow-sde": Row(1.35547629, memory=0),
    "gradient-estimation": Row(0.116149253, memory=2),
    "heun": Row(0.10956675, memory=0),
    "heunpp2": Row(0.187588906, memory=0),
    "ipndm-1": Row(0.218372201, memory=0),
    "ipndm-2": Row(0.0413748432, memory=2),
    "ipndm-3": Row(0.0145756269, memory=2),
    "ipndm-4": Row(0.0257267638, memory=3),
    "ipndm-v": Row(0.0978865415, memory=3),
    "lcm": Row(2.05572246, memory=0),
    "lms": Row(0.0978865415, memory=3),
    "ode-bosh3": Row(5.30074423e-06, memory=0),
    "ode-dopri5": Row(3.84581584e-08, memory=0),
    "ode-dopri8": Row(2.72434297e-11, memory=0),
    "ode-rk4": Row(7.74066246e-05, memory=0),
    "ode-tsit5": Row(7.66610313e-08, memory=0),
    "renoise": Row(2.0557206, memory=0),
    "res-2s": Row(0.0146045953, memory=0),
    "res-3s": Row(0.00106988331, memory=0),
    "res-multistep-ancestral": Row(2.22958397, memory=1),
    "rf-solver": Row(0.0104882317, memory=0),
    "rf-solver-3": Row(0.00734793481, memory=0),
    "sa-solver": Row(2.16393296, memory=2, lowered="always"),
    "sa-solver-pece": Row(2.15502786, memory=1, lowered="always"),
    "sde-dpmpp-1": Row(1.69449537, memory=0),
    "sde-dpmpp-2": Row(2.02993124, memory=1, lowered="under-15"),
    "sde-dpmpp-3": Row(2.49429379, memory=2, lowered="under-15"),
    "seeds-2": Row(2.27313615, memory=0),
    "seeds-3": Row(2.73106599, memory=0),
    "si-euler": Row(1.70156829, memory=0),
    "stochastic-heun": Row(1.04957147, memory=0),
    "stork": Row(0.112193608, memory=2),
    "switch": Row(0.0272765253, memory=2),
    "tcd": Row(1.57540824, memory=0),
    "uni-inv": Row(0.237913174, memory=1),
    "unipc-1": Row(0.117620276, memory=1, lowered="always"),
    "unipc-2": Row(0.026364011, memory=2, lowered="always"),
    "unipc-3": Row(0.0573405981, memory=3, lowered="always"),
}


def known(name):
    return {field.name for field in fields(type(solver(name)))}


def plain(name, **settings):
    """The solver without lowering its order at the end, if that is a setting of it."""
    never = {None: {}, True: {"lower_order_final": False}}  # EVODiff's is yes or no
    default = getattr(solver(name), "lower_order_final", None)
    return solver(name, **never.get(default, LATE), **settings)


LATE = {"lower_order_final": "never"}
ENCODERS = [name for name in names() if hasattr(solver(name), "step_schedule")]
GRIDS = {
    "logsnr": TimeGrid.of(EDM(), [80 * (0.002 / 80) ** (i / 10) for i in range(11)]),
    "karras": time_grid("karras", EDM(), 6),
    "flow": TimeGrid.of(RectifiedFlow(shift=3.0), [0.999 * (1 - i / 8) for i in range(9)]),
    "vp": even_in_lam(VPLinear(), 8, first=20.0, last=math.exp(-3)),
}


def error(settings, grid):
    """Largest error of y = x / alpha on GAUSSIAN, whose flow is known."""
    first, last = grid.nodes[0], grid.nodes[-1]
    x = unit_noise((3, 4)) * math.hypot(first.alpha, first.sigma)
    wrong = run(settings, grid, x, GAUSSIAN.x0) - GAUSSIAN.flow_map(x, first, last)
    return float(wrong.abs().max()) / last.alpha


def home(name):
    """A process that the solver runs on."""
    order = ("vp-linear", "flow", "vp", "edm")
    return next(PROCESSES[p] for p in order if runs(solver(name), PROCESSES[p].family))


# Accuracy


def test_every_solver_has_a_row():
    assert set(ROWS) == set(names())


@pytest.mark.parametrize("name", ROWS)
def test_frozen_error(name):
    """Any change of arithmetic shows here; the number is the one this version gives."""
    process = EDM() if runs(solver(name), "edm") else home(name)
    wrong = error(solver(name), even_in_lam(process, 8))
    assert wrong == pytest.approx(ROWS[name].error, rel=1e-7, abs=1e-12)


@pytest.mark.parametrize("row", GOLDEN["rows"], ids=lambda row: f"{row['solver']}-{row['grid']}")
def test_golden_end_states(row):
    grid = GRIDS[row["grid"]]
    x = run(solver(row["solver"], **row["settings"]), grid, start(grid), MIXTURE.x0)
    assert_close(x.flatten(), f64(*row["x"]), rtol=0, atol=1e-9)


def test_golden_exact_end_state_is_reached():
    grid = time_grid("logsnr", EDM(), 1024, Final.SIGMA_MIN)
    x = run(solver("unipc-3"), grid, start(grid), MIXTURE.x0)
    assert_close(x.flatten(), f64(*GOLDEN["exact"]), rtol=0, atol=2e-6)


def slope(settings, process):
    coarse, fine = (error(settings, even_in_lam(process, n)) for n in (254, 512))
    return math.log(coarse / fine) / math.log(512 / 254)


# The one first-order step at the start of the first three decides their order only in the very end,
# where STORK's falls to 1; test_tables.py shows what they have from an exact start. The midpoint
# rule gains an order on Gaussians; test_runge_kutta.py takes a mixture.
ELSEWHERE = {"deis-tab2", "deis-tab3", "ipndm-v", "lms", "rf-solver", "stork"}
SLOPED = [case for case in ODE_CASES if case[0] in FIXED and case[0] not in ELSEWHERE]


@pytest.mark.parametrize(("name", "process"), SLOPED)
def test_order_of_convergence(name, process):
    settings = plain(name)
    assert slope(settings, PROCESSES[process]) == pytest.approx(settings.info.order, abs=0.15)


@pytest.mark.parametrize(
    ("name", "settings", "order"),
    [
        ("dpmpp-2m", {"kind": "taylor", "lower_order_final": "never"}, 2),
        ("dpmpp-2m", {"lower_order_final": "always"}, 2),
        ("dpmpp-3m", {"third_order": "exact", "lower_order_final": "never"}, 2),
        ("unipc-2", {"lower_order_final": "always"}, 2),
        ("unipc-2", {"solver_type": "bh1", "lower_order_final": "never"}, 3),
        ("unipc-1", {"corrector": False, "lower_order_final": "never"}, 1),
        ("unipc-2", {"corrector": False, "lower_order_final": "never"}, 2),
    ],
)
def test_order_with_settings(name, settings, order):
    """The single first step of order 1 caps 3M at 2; an uncorrected last one caps UniPC at 2."""
    assert slope(solver(name, **settings), EDM()) == pytest.approx(order, abs=0.15)


# Exact answers


@pytest.mark.parametrize("final", Final)
@pytest.mark.parametrize(("name", "process"), ODE_CASES)
def test_constant_x0_is_exact(name, process, final):
    """x_N = (sigma_N / sigma_0) x + (alpha_N - alpha_0 sigma_N / sigma_0) x0 on any grid."""
    if final is Final.SIGMA_MIN and not ROWS[name].constant:
        return
    schedule = PROCESSES[process]
    grid = time_grid(choose_default_grid(schedule), schedule, 7, final)
    first, last = grid.nodes[0], grid.nodes[-1]
    x, x0 = start(grid), unit_noise((8,)).flip(0).reshape(2, 2, 1, 2)
    ratio = last.sigma / first.sigma
    exact = ratio * x + (last.alpha - first.alpha * ratio) * x0
    assert_close(run(solver(name), grid, x, lambda x, node: x0), exact, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "settings", "form", "degree"),
    [
        ("ddim", {}, "x0", 0),
        ("ddim", {}, "eps", 0),
        ("dpmpp-2m", {"kind": "taylor"}, "x0", 1),
        ("dpmpp-3m", {"third_order": "exact", "kind": "taylor"}, "x0", 2),
        ("unipc-3", {"corrector": False}, "x0", 2),
        ("deis-2", {}, "eps", 1),
        ("deis-3", {}, "eps", 2),
    ],
)
def test_polynomial_in_lam_is_integrated_exactly(name, settings, form, degree):
    """Solvers of q terms integrate x0 (or eps) of degree q - 1 in lam, given exact past values.

    With p = sum_k c_k lam^k: x = alpha (p - p' + p'') + C sigma has x0 = p, and
    x = sigma (p + p' + p'') + C alpha has eps = p.
    """
    c = [f64([0.3, -0.5]), f64([0.2, 0.7]), f64([-0.4, 0.1])][: degree + 1] + [f64([0, 0])] * 2
    sign = -1 if form == "x0" else 1

    def p(lam):
        return c[0] + c[1] * lam + c[2] * lam**2

    def exact(node):
        q = p(node.lam) + sign * (c[1] + 2 * c[2] * node.lam) + 2 * c[2]
        a, b = (node.alpha, node.sigma) if form == "x0" else (node.sigma, node.alpha)
        return a * q + 0.6 * b

    def law(x, node):
        value = p(node.lam)
        return value if form == "x0" else (x - node.sigma * value) / node.alpha

    kappas = [20.0, 9.0, 5.0, 1.5, 0.8, 0.1]  # uneven, so that a swapped history shows
    schedule = VPLinear()
    grid = TimeGrid.of(schedule, [schedule.at_lam(-math.log(k)).t for k in kappas])
    steps = plain(name, **settings).on(grid)
    state, warm = steps.init(), degree
    for n, (t, s) in enumerate(pairwise(grid.nodes)):
        x, state = drive(steps.step(exact(t), state, t, s), law)
        if n >= warm:
            assert_close(x, exact(s), rtol=1e-12, atol=1e-12)
        elif n == 0:
            assert (x - exact(s)).abs().max() > 1e-3  # order 1 is not exact, so this can fail


# Solvers that are the same by another name


def ends_by_name():
    """Where every solver ends on a curved process and on the straight one."""
    ends = {}
    for process in ("vp-linear", "flow", "vp"):
        grid = time_grid("uniform", PROCESSES[process], 7)
        for name in names():
            if runs(solver(name), PROCESSES[process].family):
                ends[name, process] = run(solver(name), grid, start(grid), MIXTURE.x0)
    return ends


def test_methods_differ_and_other_names_of_one_do_not():
    ends = ends_by_name()
    asks_other = {"flow-map", *(name for name in names() if solver(name).info.guided)}
    others = [name for name in names() if name not in asks_other]
    for one, other in combinations(others, 2):
        shared = [p for n, p in ends if n == one and (other, p) in ends]
        if not shared:
            continue
        distance = max((ends[one, p] - ends[other, p]).abs().max() for p in shared)
        methods = [solver(name).info.same_as or name for name in (one, other)]
        assert (distance < 1e-9) == (methods[0] == methods[1]), (one, other)


def test_a_method_is_no_other_name_itself():
    other_names = [solver(name).info for name in names() if solver(name).info.same_as]
    for info in other_names:
        method = solver(info.same_as).info
        assert not method.same_as
        assert (info.order, info.calls_per_step, info.kind) == (
            method.order,
            method.calls_per_step,
            method.kind,
        )


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("unipc-1", {"corrector": False}), ("ddim", {})),
        (("unipc-2", {"corrector": False, **LATE}), ("dpmpp-2m", {**LATE})),
        (("unipc-3", {"corrector": False, **LATE}), ("dpmpp-3m", {"third_order": "exact", **LATE})),
        (("unipc-2", {"disable_corrector": range(9)}), ("unipc-2", {"corrector": False})),
    ],
    ids=lambda pair: "-".join([pair[0], *pair[1]]),
)
def test_same_solver_by_another_name(one, other):
    grid = even_in_lam(EDM(), 9)
    a, b = (
        run(solver(n, **settings), grid, start(grid), MIXTURE.x0) for n, settings in (one, other)
    )
    assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("dpmpp-2m", [{"kind": "midpoint"}, {"kind": "taylor"}]),
        ("dpmpp-3m", [{"third_order": "published"}, {"third_order": "exact"}]),
        ("unipc-1", [{"solver_type": "bh1"}, {"solver_type": "bh2"}]),
        ("unipc-2", [{"solver_type": "bh1"}, {"solver_type": "bh2"}]),
        ("unipc-2", [{"disable_corrector": [0]}, {"disable_corrector": [1]}, {}]),
        ("deis-3", [{"lower_order_final": each} for each in ("never", "always")]),
    ],
)
def test_settings_change_the_answer(name, settings):
    grid = even_in_lam(EDM(), 9)
    ends = [run(solver(name, **each), grid, start(grid), MIXTURE.x0) for each in settings]
    assert all((a - b).abs().max() > 1e-4 for a, b in pairwise(ends))


@pytest.mark.parametrize(
    ("policy", "lowered"),
    [("never", ()), ("under-10", (9,)), ("under-15", (9, 14)), ("always", (9, 14, 15, 30))],
)
@pytest.mark.parametrize("name", [n for n in ENCODERS if "lower_order_final" in known(n)])
def test_lower_order_final_policies(name, policy, lowered):
    settings = solver(name, lower_order_final=policy)
    for steps in (9, 14, 15, 30):
        found = [step.order for step in settings.step_schedule(even_in_lam(EDM(), steps)).steps]
        order = max(found)
        wanted = [min(order, i + 1) for i in range(steps)]
        if steps in lowered:
            wanted = [min(p, steps - i) for i, p in enumerate(wanted)]
        assert found == wanted


@pytest.mark.parametrize("name", ROWS)
def test_default_policy(name):
    assert getattr(solver(name), "lower_order_final", None) == ROWS[name].lowered


def test_order_is_lowered_before_a_denoising_step():
    grid = time_grid("logsnr", EDM(), 8, Final.DENOISE)
    orders = [step.order for step in solver("unipc-3").step_schedule(grid).steps]
    assert orders == [1, 2, 3, 3, 3, 3, 2, 1, 1]


@pytest.mark.parametrize("name", ENCODERS)
def test_scale_invariance(name):
    """x / alpha depends on the lam of the nodes alone: VE, VP and flow give the same."""
    ends = []
    for schedule in PROCESSES.values():
        if runs(solver(name), schedule.family):
            grid = even_in_lam(schedule, 9)
            x = unit_noise() * 20.0 * grid.nodes[0].alpha
            ends.append(run(solver(name), grid, x, MIXTURE.x0) / grid.nodes[-1].alpha)
    assert len(ends) >= 2
    for end in ends[1:]:
        assert_close(end, ends[0], rtol=1e-12, atol=1e-12)


# Both ends of the process, and short runs


@pytest.mark.parametrize("name", ENCODERS)
def test_last_step_to_zero_is_the_limit(name):
    settings = solver(name, **{"lower_order_final": "always"} if LATE.keys() <= known(name) else {})
    times = [80.0, 20.0, 6.0, 2.0, 0.7, 0.2]
    zero, limit = (TimeGrid.of(EDM(), [*times, end]) for end in (0.0, 1e-12))
    x = start(zero)
    a, b = run(settings, zero, x, MIXTURE.x0), run(settings, limit, x, MIXTURE.x0)
    assert_close(a, b, rtol=0, atol=1e-10)


def smooth(x, node):
    """A network with x0 of size 1 that does not depend on x and has limits at both ends."""
    return unit_noise().flip(0) * math.tanh(0.2 + node.sigma / (node.alpha + node.sigma))


def flow_from(t, steps):
    times = [t, *(1 - i / steps for i in range(1, steps)), 0.0]
    return TimeGrid.of(RectifiedFlow(), times)


@pytest.mark.parametrize("name", [name for name, process in CASES if process == "flow"])
def test_start_at_alpha_zero_is_finite(name):
    for steps in range(1, 8):
        x = run(solver(name), flow_from(1.0, steps), unit_noise(), MIXTURE.x0)
        assert x.isfinite().all(), (name, steps)
        assert x.abs().max() < 3.0, (name, steps)


@pytest.mark.parametrize("name", ["ddim", "euler", "dpmpp-1m", "deis-1", "heun"])
def test_start_at_alpha_zero_is_the_limit(name):
    a, b = (run(solver(name), flow_from(t, 5), unit_noise(), MIXTURE.x0) for t in (1.0, 1 - 1e-8))
    assert_close(a, b, rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("dpmpp-2m", {}),
        ("dpmpp-2m", {"kind": "taylor"}),
        ("dpmpp-3m", {}),
        ("deis-2", {}),
        ("deis-3", {}),
        ("unipc-2", {"corrector": False}),
        ("unipc-3", {"corrector": False}),
    ],
)
def test_second_step_from_alpha_zero_is_the_limit_in_lam(name, settings):
    """A prediction at distance L in lam adds C / L: L x(L) rises by x(infinity) per unit of L."""
    settings = plain(name, coordinate="lam", **settings)

    def end(t):
        grid = TimeGrid.of(RectifiedFlow(), [t, 0.6, 0.3])
        return run(settings, grid, unit_noise(), smooth), grid.nodes[1].lam - grid.nodes[0].lam

    (near, short), (far, long) = end(1 - 1e-6), end(1 - 1e-8)
    limit = (far * long - near * short) / (long - short)
    assert (far - limit).abs().max() > 1e-3  # so slow is it that being close would show nothing
    assert_close(end(1.0)[0], limit, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["unipc-1", "unipc-2", "unipc-3"])
def test_no_corrector_from_alpha_zero_in_lam(name):
    """The corrector needs the prediction at lam = -inf, which is at no finite distance."""
    for first in (1.0, 0.999):
        grid = flow_from(first, 6)
        a, b = (
            run(solver(name, coordinate="lam", **kw), grid, unit_noise(), MIXTURE.x0)
            for kw in ({}, {"disable_corrector": [0]})
        )
        assert torch.equal(a, b) == (first == 1.0)


OVERSHOOTING = {"dpm-2s", "dpm-3s", "si-euler"}  # in few steps
PROBING = {"fireflow", "rf-solver", "rf-solver-3"}  # ask twice on the step to zero as well
# Their last step is not to x0: test_distilled.py, test_reinforcement.py
SCALED = {"flow-sde", "lcm", "tcd"}
# test_runge_kutta.py, test_named.py
COUNTED_ELSEWHERE = {*PROBING, "uni-inv", "heunpp2", "sa-solver-pece"}


@pytest.mark.parametrize("name", names())
def test_any_number_of_steps_stays_finite(name):
    settings = solver(name)
    processes = [process for one, process in CASES if one == name]
    for process, final in product(processes, Final):
        schedule = PROCESSES[process]
        for steps in range(1, 26) if final is Final.ZERO else (1, 2, 3):
            case = (name, process, final, steps)
            grid = time_grid(choose_default_grid(schedule), schedule, steps, final)
            x = run(settings, grid, start(grid), MIXTURE.x0)
            assert x.isfinite().all(), case
            if settings.info.calls_per_step == 1 and name not in OVERSHOOTING:
                assert x.abs().max() < 3.0, case
            if steps == 1 and final is Final.ZERO and name not in PROBING | SCALED:
                first = MIXTURE.x0(start(grid), grid.nodes[0])
                assert_close(x, first, rtol=1e-12, atol=1e-12, msg=lambda m, c=case: f"{c}: {m}")


@cache
def find_exact_end(process):
    """The end of the exact flow from the start that every grid of the process has."""
    grid = time_grid(choose_default_grid(PROCESSES[process]), PROCESSES[process], 50)
    return find_end(grid, start(grid))


@pytest.mark.parametrize("name", [name for name in DETERMINISTIC if name in FIXED])
@hypothesis.settings(max_examples=4, deadline=None, derandomize=True)
@given(data=st.data())
def test_many_steps_come_near_the_exact_end(name, data):
    """Between 26 and 50 a sample of counts and grids; below that the test before takes them all."""
    for process in [process for one, process in ODE_CASES if one == name]:
        steps = data.draw(st.integers(26, 50), f"steps on {process}")
        grid_name = data.draw(st.sampled_from(["uniform", "logsnr", "karras"]))
        case = (name, process, grid_name, steps)
        grid = time_grid(grid_name, PROCESSES[process], steps)
        x = run(solver(name), grid, start(grid), MIXTURE.x0)
        assert x.isfinite().all(), case
        coarse = (process, grid_name) == ("edm", "uniform")  # nearly all its steps are in noise
        assert (x - find_exact_end(process)).abs().max() < (1.6 if coarse else 0.3), case


# The protocol


def grid_for(name, steps=6):
    schedule = home(name)
    return time_grid("uniform", schedule, steps)


@pytest.mark.parametrize("name", names())
def test_threads_share_a_solver(name):
    grid = grid_for(name)
    steps, starts = solver(name).on(grid), [start(grid) * k for k in (1.0, 0.5, -1.0, 0.1)] * 4

    def end(x):
        *_, (x, _) = walk(steps, grid, x, MIXTURE.x0)
        return x

    alone = [end(x) for x in starts]
    with ThreadPoolExecutor(4) as pool:
        assert all(torch.equal(a, b) for a, b in zip(alone, pool.map(end, starts), strict=True))


@pytest.mark.parametrize("name", FIXED)
def test_nothing_is_changed_in_place(name):
    """Neither a state, nor a prediction that is kept, nor x when the network returns it."""
    grid, seen = grid_for(name), []

    def law(x, node):
        out = x if len(seen) % 3 else MIXTURE.x0(x, node)
        seen.extend((tensor, tensor.clone()) for tensor in (x, out))
        return out

    run(solver(name), grid, start(grid), law)
    assert all(torch.equal(tensor, before) for tensor, before in seen)


@pytest.mark.parametrize("name", names())
def test_memory_is_what_the_order_needs(name):
    grid = even_in_lam(PROCESSES["flow"] if (name, "flow") in CASES else home(name), 12)
    states = [state for _, state in walk(plain(name).on(grid), grid, start(grid), MIXTURE.x0)]
    assert max(len(getattr(state, "past", ())) for state in states) == ROWS[name].memory
    assert len(getattr(states[-1], "past", ())) == 0  # the last step leaves nothing behind


@pytest.mark.parametrize("name", [name for name in DETERMINISTIC if name in FIXED])
def test_images_do_not_know_of_each_other(name):
    grid = grid_for(name)
    x = torch.cat([start(grid), 0.7 * start(grid).flip(0), -start(grid)])
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    together = run(solver(name), grid, x, MIXTURE.x0)
    permuted = run(solver(name), grid, x[order], MIXTURE.x0)
    alone = torch.cat([run(solver(name), grid, row[None], MIXTURE.x0) for row in x])
    assert_close(permuted, together[order], rtol=1e-12, atol=1e-12)
    assert_close(alone, together, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", FIXED)
def test_state_keeps_its_dtype(name, dtype):
    grid = grid_for(name)
    x = run(solver(name), grid, start(grid).to(dtype), MIXTURE.x0)
    assert x.dtype is dtype
    exact = run(solver(name), grid, start(grid), MIXTURE.x0)
    tolerance = {torch.float32: 1e-5, torch.float64: 1e-14, torch.bfloat16: 0.15}[dtype]
    assert_close(x.double(), exact, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("at", [1, 3, 5])
@pytest.mark.parametrize("name", names())
def test_resumed_run_equals_uninterrupted(name, at):
    """From a copy of (x, state), with a new solver, after a step that broke off at its query."""
    grid = grid_for(name)
    whole = list(walk(solver(name).on(grid), grid, start(grid), MIXTURE.x0))
    x, state = copy.deepcopy(whole[at - 1])
    steps = solver(name).on(grid)
    broken = steps.step(x, state, *grid.nodes[at : at + 2])
    next(broken)
    broken.close()
    for n, (t, s) in enumerate(pairwise(grid.nodes[at:]), start=at):
        x, state = drive(steps.step(x, state, t, s), answering(MIXTURE.x0, n))
    assert torch.equal(x, whole[-1][0])


# Evaluations


@pytest.mark.parametrize("final", Final)
@pytest.mark.parametrize("name", [name for name in FIXED if name not in COUNTED_ELSEWHERE])
def test_evaluations_are_counted_and_asked_at_the_nodes(name, final):
    """N calls per step where the next node is noisy; a last step to zero costs 1."""
    settings, schedule = solver(name), home(name)
    for steps in (1, 2, 5):
        grid = time_grid("uniform", schedule, steps, final)
        asked = []

        def law(x, node, asked=asked):
            asked.append(node)
            return MIXTURE.x0(x, node)

        run(settings, grid, start(grid), law)
        stages = settings.info.calls_per_step
        to_zero = grid.nodes[-1].sigma == 0.0
        assert len(asked) == stages * grid.steps - (stages - 1) * to_zero
        assert list_queries(settings.on(grid), grid) == asked
        assert predict_nfe(settings, grid) == len(asked)
        if stages == 1:
            assert {node.t for node in asked} <= {node.t for node in grid.nodes}
        assert all(grid.nodes[0].lam <= node.lam <= grid.nodes[-1].lam for node in asked)
        assert all(node.sigma > 0.0 for node in asked)
        if hasattr(settings, "encode"):
            assert settings.encode(grid).nfe == len(asked)


@pytest.mark.parametrize("final", Final)
@pytest.mark.parametrize("name", FIXED)
def test_budget_is_spent_exactly_or_refused_with_its_neighbours(name, final):
    settings, schedule = solver(name), home(name)

    def of(steps):
        return time_grid("uniform", schedule, steps, final)

    costs = {predict_nfe(settings, of(steps)) for steps in range(1, 16)}
    for nfe in range(1, 13):
        if nfe in costs:
            assert predict_nfe(settings, fit_grid(nfe, settings, of)) == nfe
            continue
        near = sorted(costs, key=lambda cost: (abs(cost - nfe), cost))[
            : 2 if nfe > min(costs) else 1
        ]
        with pytest.raises(SettingError, match=rf"exactly {nfe} evaluations") as caught:
            fit_grid(nfe, settings, of)
        assert all(str(cost) in str(caught.value).split(";")[1] for cost in near)


def test_heun_names_the_budgets_next_to_an_even_one():
    with pytest.raises(SettingError, match=r"heun cannot spend exactly 8 evaluations; 7 or 9 "):
        fit_grid(8, solver("heun"), lambda n: time_grid("karras", EDM(), n))
    with pytest.raises(SettingError, match="at least 1, not 0"):
        fit_grid(0, solver("ddim"), lambda n: time_grid("karras", EDM(), n))


# The registry and its errors


def test_info_is_complete():
    for name in names():
        info = solver(name).info
        assert info.name == name
        assert info.source.startswith("arXiv:")
        assert info.order >= 1
        assert info.calls_per_step >= 1


@pytest.mark.parametrize(
    ("name", "settings", "error", "message"),
    [
        ("dpmpp2m", {}, UnknownNameError, r"no solver 'dpmpp2m'; did you mean 'dpmpp-2m'\?"),
        ("xyzzy", {}, UnknownNameError, "no solver 'xyzzy'; known: cab, "),
        ("unipc-2", {"solver_typ": "bh1"}, UnknownNameError, "did you mean 'solver_type'"),
        ("unipc-2", {"solver_type": "bh3"}, SettingError, "unipc-2: solver_type='bh3'"),
        ("unipc-2", {"disable_corrector": "x"}, SettingError, "disable_corrector='x'"),
        ("unipc-2", {"lower_order_final": "sometimes"}, SettingError, "'never', 'under-10'"),
        ("dpmpp-2m", {"kind": "heun"}, SettingError, "kind='heun'.*'midpoint' or 'taylor'"),
        ("dpmpp-3m", {"third_order": 3}, SettingError, "third_order=3"),
        ("ddim", {"eta": 1.0}, SettingError, "ddim has no settings, so 'eta'"),
        ("heun", {"order": 2}, UnknownNameError, "no setting of heun 'order'; known: s_churn"),
    ],
)
def test_bad_names_and_settings_say_what_is_known(name, settings, error, message):
    with pytest.raises(error, match=message):
        solver(name, **settings)


def test_euler_refuses_a_curved_process():
    with pytest.raises(ScheduleError, match="euler runs on edm, flow schedules only, not on vp"):
        solver("euler").on(even_in_lam(PROCESSES["vp"], 4))


def test_a_name_is_taken_once():
    with pytest.raises(
        ValueError, match=r"two solvers are named 'ddim': .*fewstep\.solvers\.multistep"
    ):
        register(type(solver("ddim")))


def test_settings_are_values():
    assert solver("unipc-2") == solver("unipc-2", solver_type="bh2")
    assert solver("unipc-2") != solver("unipc-2", solver_type="bh1")
    assert hash(solver("unipc-2", disable_corrector=[0])) == hash(
        solver("unipc-2", disable_corrector=(0,))
    )
