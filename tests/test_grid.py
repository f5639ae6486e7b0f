"""Named time grids: their ends, their formulas, and the published tables."""

import itertools
import math

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.schedulers import AysSchedules
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import GAUSSIAN, MIXTURE, PROCESSES, f64, run, solver
from scipy.stats import beta as beta_law

from fewstep.models.errors import ScheduleError, SettingError, UnknownNameError
from fewstep.models.gaussian import GaussianMixture
from fewstep.models.registry import parse_spec
from fewstep.models.schedule import (
    EDM,
    Cosine,
    RectifiedFlow,
    TimeGrid,
    VPDiscrete,
    VPLinear,
    noise_schedule,
)
from fewstep.samplers.grid import FEW, Final, choose_default_grid, time_grid
from fewstep.samplers.placement import list_grids
from fewstep.samplers.plan import make_plan
from fewstep.samplers.ramps import EPSS, FLOW_EDGE, FORMULAS
from fewstep.samplers.sampler import Sampler
from fewstep.samplers.spacing import SPACINGS

EVERY = {
    **PROCESSES,
    "sd": VPDiscrete("scaled_linear", 0.00085, 0.012),
    "zero-snr": VPDiscrete("scaled_linear", 0.00085, 0.012, zero_snr=True),
    "cosine": Cosine(),
    "ltx": RectifiedFlow(shift=2.05, terminal=0.1),
    "svd": EDM(0.002, 700.0),
}
TABLES = [name for name in list_grids() if name.startswith("ays-")]
OF_TIME = [name for name in FORMULAS if FORMULAS[name].coordinate == "t"]


def find_processes(name):
    """The processes that a formula is for."""
    only_flow = FORMULAS[name].flow
    return [process for process in EVERY if not only_flow or EVERY[process].family == "flow"]


def spread(values):
    """Differences of neighbours."""
    return [b - a for a, b in itertools.pairwise(values)]


@pytest.mark.parametrize("final", Final)
@pytest.mark.parametrize(
    ("name", "process"), [(name, process) for name in FORMULAS for process in find_processes(name)]
)
def test_every_grid_falls_from_its_first_node_to_its_end(name, process, final):
    schedule = EVERY[process]
    in_lam, open_end = FORMULAS[name].coordinate == "lam", not FORMULAS[name].to_zero
    for steps in range(1, 51):
        grid = time_grid(name, schedule, steps, final)
        first, last = grid.nodes[0], grid.nodes[-1]
        assert grid.steps == steps + (final is Final.DENOISE)
        assert grid.denoise == (final is Final.DENOISE)
        assert all(gap < 0 for gap in spread([node.t for node in grid]))
        if in_lam and schedule.family == "flow":
            assert first.alpha == pytest.approx(FLOW_EDGE, rel=1e-12)
        else:
            assert first.t == pytest.approx(schedule.t_max, rel=1e-12)
        noisy = grid.nodes[-1] if final is Final.SIGMA_MIN else grid.nodes[-2]
        if final is not Final.SIGMA_MIN:
            assert (last.t, last.sigma, last.lam) == (schedule.t_zero, 0.0, math.inf)
        if final is not Final.ZERO or (open_end and steps > 1):
            stretched = process == "ltx" and name == "uniform"
            end = schedule.at_lam(math.log(9)).t if stretched else schedule.t_min
            assert noisy.t == pytest.approx(end, rel=1e-9)


@pytest.mark.parametrize("final", Final)
@pytest.mark.parametrize("process", EVERY)
@pytest.mark.parametrize("name", TABLES)
def test_tables_fit_or_say_that_they_do_not(name, process, final):
    """The video table runs from kappa = 700 to 0.002, which not every process reaches."""
    schedule = EVERY[process]
    first, last = schedule.at(schedule.t_max).kappa, schedule.at(schedule.t_min).kappa
    if name == "ays-svd" and (first < 690.0 or last > 0.00205):
        with pytest.raises(ScheduleError, match=r"runs from sigma/alpha = 700 to 0.002, the"):
            time_grid(name, EVERY[process], 5, final)
        return
    for steps in range(1, 51):
        grid = time_grid(name, EVERY[process], steps, final)
        assert grid.steps == steps + (final is Final.DENOISE)
        assert (grid.nodes[-1].sigma == 0.0) == (final is not Final.SIGMA_MIN)


@pytest.mark.parametrize("process", EVERY)
def test_karras_is_even_in_a_root_of_kappa(process):
    schedule = EVERY[process]
    for rho in (7.0, 3.0):
        grid = time_grid("karras", schedule, 9, Final.SIGMA_MIN, rho=rho)
        gaps = spread([node.kappa ** (1 / rho) for node in grid])
        assert gaps == pytest.approx([gaps[0]] * 9, rel=1e-9)


def test_karras_agrees_with_diffusers():
    """Both from the same ends: those that diffusers computes itself have float32 digits."""
    grid = time_grid("karras", VPDiscrete(), 10)
    kappas = [node.kappa for node in grid.nodes[:-1]]
    theirs = DPMSolverMultistepScheduler()._convert_to_karras(np.array(kappas), 10)
    assert kappas == pytest.approx(theirs.tolist(), rel=1e-9)


def test_karras_is_the_formula_of_the_paper():
    """sigma_i = (max^(1/rho) + i/(n-1) (min^(1/rho) - max^(1/rho)))^rho, then 0; table of n = 3."""
    times = [node.t for node in time_grid("karras", EDM(), 3)]
    middle = ((80 ** (1 / 7) + 0.002 ** (1 / 7)) / 2) ** 7
    assert times == pytest.approx([80.0, middle, 0.002, 0.0], rel=1e-12)


@pytest.mark.parametrize("process", EVERY)
def test_logsnr_is_even_in_lam(process):
    schedule = EVERY[process]
    grid = time_grid("logsnr", schedule, 12, Final.SIGMA_MIN)
    gaps = spread([node.lam for node in grid])
    assert gaps == pytest.approx([gaps[0]] * 12, rel=1e-8)
    assert time_grid("exponential", schedule, 12) == time_grid("logsnr", schedule, 12)
    same = time_grid("polyexponential", schedule, 12, rho=1.0)
    assert [n.t for n in same] == pytest.approx([n.t for n in time_grid("logsnr", schedule, 12)])


def test_polyexponential_is_its_formula():
    grid = time_grid("polyexponential", EDM(), 4, Final.SIGMA_MIN, rho=2.0)
    logs = [math.log(0.002) + (1 - i / 4) ** 2 * math.log(80 / 0.002) for i in range(5)]
    assert [math.log(node.t) for node in grid] == pytest.approx(logs, rel=1e-12)


@pytest.mark.parametrize("process", EVERY)
def test_quadratic_is_even_in_the_root_of_time(process):
    roots = [math.sqrt(node.t) for node in time_grid("quadratic", EVERY[process], 8)]
    assert roots == pytest.approx([roots[0] * (1 - i / 8) for i in range(9)], rel=1e-12)


@pytest.mark.parametrize("steps", [1, 4, 10])
def test_uniform_flow_is_shifted(steps):
    """tau = 3 u / (1 + 2 u) at u = 1 - i/N."""
    grid = time_grid("uniform", RectifiedFlow(shift=3.0), steps)
    us = [1 - i / steps for i in range(steps + 1)]
    assert [node.t for node in grid] == pytest.approx(us, abs=1e-15)
    assert [node.sigma for node in grid] == pytest.approx(
        [3 * u / (1 + 2 * u) for u in us], abs=1e-15
    )


@pytest.mark.parametrize("shift", [1.0, 3.0, 0.5])
def test_shift_moves_lam(shift):
    plain, moved = (time_grid("uniform", RectifiedFlow(shift=k), 6) for k in (1.0, shift))
    lams = [node.lam - math.log(shift) for node in plain.nodes]
    assert [node.lam for node in moved] == pytest.approx(lams, rel=1e-13)


@pytest.mark.parametrize(("steps", "shift"), [(1, 2.05), (2, 2.05), (8, 2.05), (8, 1.0), (25, 7.0)])
def test_stretched_flow_agrees_with_diffusers(steps, shift):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift, shift_terminal=0.1)
    ours = time_grid("uniform", RectifiedFlow(shift=shift, terminal=0.1), steps)
    assert ours.nodes[-2].sigma == pytest.approx(0.1 if steps > 1 else 1.0, rel=1e-12)
    if steps > 1:  # theirs divides 0 by 0 in a single step
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 1.0 / steps, steps))
        theirs = scheduler.sigmas.tolist()
        assert [node.sigma for node in ours] == pytest.approx(theirs, rel=1e-6)


@pytest.mark.parametrize(
    ("name", "schedule", "table"),
    [
        ("ays-sd15", EVERY["sd"], "StableDiffusionSigmas"),
        ("ays-sdxl", EVERY["sd"], "StableDiffusionXLSigmas"),
        ("ays-svd", EVERY["svd"], "StableDiffusionVideoSigmas"),
    ],
)
def test_align_your_steps_are_the_published_ten(name, schedule, table):
    kappas = [node.kappa for node in time_grid(name, schedule, 10)]
    assert kappas == pytest.approx(AysSchedules[table], rel=2e-4)  # 14.615 is rounded up
    assert kappas[1:] == pytest.approx(AysSchedules[table][1:], rel=1e-9)
    assert time_grid(name, schedule, 10, Final.SIGMA_MIN).nodes[-1].kappa < kappas[-2]


@pytest.mark.parametrize("name", TABLES)
def test_align_your_steps_are_interpolated_in_log(name):
    ten, twenty = (time_grid(name, EVERY["svd"], n, Final.SIGMA_MIN) for n in (10, 20))
    lams = [node.lam for node in twenty]
    assert lams[::2] == pytest.approx([node.lam for node in ten], rel=1e-9)
    middles = [(a + b) / 2 for a, b in itertools.pairwise(lams[::2])]
    assert lams[1::2] == pytest.approx(middles, rel=1e-9)


@pytest.mark.parametrize(("a", "b"), [(0.6, 0.6), (2.0, 0.5)])
def test_beta_places_nodes_at_quantiles(a, b):
    grid = time_grid("beta", VPLinear(), 12, alpha=a, beta=b)
    places = beta_law.ppf(np.linspace(1, 0, 13), a, b)
    assert [node.t for node in grid] == pytest.approx(places.tolist(), rel=1e-9, abs=1e-12)


@settings(deadline=None)
@given(
    rho=st.floats(0.5, 4.0),
    steps=st.integers(1, 60),
    name=st.sampled_from(["karras", "polyexponential"]),
    process=st.sampled_from(list(EVERY)),
)
def test_any_rho_gives_a_falling_grid_with_the_same_ends(rho, steps, name, process):
    grid = time_grid(name, EVERY[process], steps, Final.SIGMA_MIN, rho=rho)
    plain = time_grid("logsnr", EVERY[process], 1, Final.SIGMA_MIN)
    assert grid.nodes[0].lam == pytest.approx(plain.nodes[0].lam, rel=1e-9)
    assert grid.nodes[-1].lam == pytest.approx(plain.nodes[-1].lam, rel=1e-9)


def test_defaults_suit_the_process():
    kinds = ("vp", "vp-linear", "edm", "flow")
    many = ["quadratic", "quadratic", "karras", "beta"]
    assert [choose_default_grid(PROCESSES[p]) for p in kinds] == many
    assert [choose_default_grid(PROCESSES[p], 1000) for p in kinds] == many


def test_few_evaluations_have_grids_of_their_own():
    """One table; processes that no measured network has, and the ends of protocols, have none."""
    for family, rows in FEW.items():
        schedule = noise_schedule(family)
        for most, spec in rows:
            assert choose_default_grid(schedule, most) == spec
            name, own = parse_spec(spec)
            planned = make_plan(schedule, "unipc-2", nfe=most).grid
            assert planned == time_grid(name, schedule, most, **own)
        plain = choose_default_grid(schedule)
        assert choose_default_grid(schedule, rows[-1][0] + 1) == plain
        wanted = time_grid(plain, schedule, 5, Final.SIGMA_MIN)
        assert make_plan(schedule, "unipc-2", nfe=5, final="sigma_min").grid == wanted
    for name in ("zero-snr", "ltx"):
        assert choose_default_grid(EVERY[name], 5) == choose_default_grid(EVERY[name])
    for name in ("vp-linear", "cosine"):
        assert choose_default_grid(EVERY[name], 5) == FEW["vp"][0][1]


def test_more_evaluations_are_not_worse_by_default():
    """The error on a mixture to 100 evaluations from the same noise; a change of grid may cost."""
    noise = torch.randn(32, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def end(schedule, name, nfe):
        grid = make_plan(schedule, name, nfe=nfe).grid
        return run(solver(name), grid, noise * schedule.noise_scale(grid.nodes[0]), MIXTURE.x0)

    for schedule in (RectifiedFlow(), VPDiscrete(), EDM()):
        exact, least = end(schedule, "unipc-3", 100), math.inf
        for nfe in (*range(4, 22), 30, 50):
            error = float((end(schedule, "unipc-2", nfe) - exact).square().mean().sqrt())
            assert error < 1.25 * least, (schedule, nfe)
            least = min(least, error)


# Grids by the names of other libraries

SD_KAPPAS = {  # of 4 steps, before zero
    "trailing": (14.614641, 4.081729, 1.612886, 0.693205),
    "simple": (14.614641, 4.081729, 1.612886, 0.693205),
    "normal": (14.614641, 2.918307, 0.932358, 0.029167),
    "sgm_uniform": (14.614641, 4.086081, 1.615580, 0.695150),
    "ddim_uniform": (4.116696, 1.623692, 0.698398, 0.041314),
    "beta57:alpha=.6,beta=.6": (14.614641, 5.686591, 1.618279, 0.515391),
    "kl_optimal": (14.614641, 1.597066, 0.572914, 0.029167),
}
FLOW_TAUS = {  # the same at a shift of 3
    "simple": (1, 0.9, 0.75, 0.5),
    "normal": (1, 0.857692, 0.602151, 0.008929),
    "sgm_uniform": (1, 0.900359, 0.751121, 0.502985),
    "ddim_uniform": (0.900958, 0.751497, 0.502660, 0.005976),
    "beta57:alpha=.6,beta=.6": (1, 0.933535, 0.750749, 0.392171),
    "kl_optimal": (1, 0.578682, 0.270090, 0.002994),
    "linear_quadratic": (1, 0.9875, 0.975, 0.725),
    "bong_tangent": (1, 0.85723, 0.5, 0.11746),
    "uniform": (1, 0.9, 0.75, 0.5),
}
FLOW_TAUS |= {  # of other numbers of steps: the list of LTX-2, RES4LYF's and F5-TTS's
    "linear-quadratic": (1, 0.99375, 0.9875, 0.98125, 0.975, 0.909375, 0.725, 0.421875),
    "bong-tangent": (1, 0.97134, 0.92942, 0.86289, 0.74430, 0.5, 0.21312, 0.06965),
    "epss": (1, 0.995185, 0.980785, 0.956940, 0.923880, 0.707107, 0.382683),
}


def test_named_grids_are_those_of_their_libraries():
    for schedule, table in ((EVERY["sd"], SD_KAPPAS), (PROCESSES["flow"], FLOW_TAUS)):
        flow = schedule.family == "flow"
        for name, wanted in table.items():
            *noisy, last = make_plan(schedule, "ddim", steps=len(wanted), grid=name).grid
            found = [node.sigma if flow else node.kappa for node in noisy]
            digits = 1e-5 if name.startswith("bong") else 1e-6
            assert found == pytest.approx(wanted, abs=digits), name
            assert last.sigma == 0.0
    labels = [EVERY["sd"].label(node) for node in time_grid("leading", EVERY["sd"], 30, offset=1)]
    assert labels[0] == pytest.approx(958)
    assert time_grid("kl_optimal", EVERY["sd"], 1).nodes[0].kappa == pytest.approx(14.614641)


def test_epss_takes_32nds_and_sways_them():
    """The lists of F5-TTS, and even times for other numbers of steps."""
    for steps, parts in EPSS.items():
        grid = time_grid("epss", RectifiedFlow(), steps, s=0)
        assert [32 * (1 - node.t) for node in grid] == pytest.approx(parts)
    assert time_grid("epss", RectifiedFlow(), 9) == time_grid("sway", RectifiedFlow(), 9)
    for s in (-1, 0.5, 1.75):
        assert time_grid("sway", RectifiedFlow(), 50, s=s).steps == 50
    cosine = [math.cos(math.pi * i / 18) for i in range(10)]
    assert [node.t for node in time_grid("sway", RectifiedFlow(), 9)] == pytest.approx(cosine)


def test_a_grid_that_comes_to_other_steps_says_so():
    for steps, whole in ((7, 8), (30, 31)):
        with pytest.warns(UserWarning, match=f"comes to {whole} steps, not {steps}"):
            plan = make_plan(EVERY["sd"], "ddim", steps=steps, grid="ddim_uniform")
        assert plan.nfe == whole
    assert make_plan(EVERY["sd"], "ddim", nfe=31, grid="ddim_uniform").nfe == 31


def test_every_grid_takes_a_start_and_an_end():
    """No node lies outside, and tables and spacings keep the number of steps."""
    cases = {"sd": (0.8, 0.1), "edm": (40.0, 0.01), "svd": (60.0, 0.01), "flow": (0.9, 0.05)}
    for (process, (start, end)), name in itertools.product(cases.items(), list_grids()):
        for final in Final:
            try:
                whole = time_grid(name, EVERY[process], 6, final)
            except (ScheduleError, SettingError):
                continue  # it is of another process
            grid = time_grid(name, EVERY[process], 6, final, start=start, end=end)
            noisy = [node.t for node in grid if node.t > 0.0]
            assert noisy[0] <= start + 1e-9, name
            assert noisy[-1] >= end - 1e-9, name
            assert grid.steps == whole.steps or name in ("lcm", "consistency", "ddim-uniform"), name
            at_start = name in ("trailing", "linspace", "simple", "normal", "sgm-uniform", "beta57")
            assert not at_start or noisy[0] == pytest.approx(start, rel=0.01)
    kept = [n.t for n in time_grid("lcm", EVERY["sd"], 4, start=0.5).nodes[:-1]]
    assert [round(1000 * t) - 1 for t in kept] == [499, 379, 259, 139]  # of half the strength
    flow = [n.sigma for n in time_grid("simple", RectifiedFlow(), 4, shift=3.0)]
    assert flow == pytest.approx([1.0, 0.9, 0.75, 0.5, 0.0])


def test_spacings_end_where_a_run_above_zero_ends():
    """A shift does not move the end, and no two nodes are there."""
    flow = RectifiedFlow()
    for name, shift, start in itertools.product(SPACINGS, (0.5, 1.0, 2.0), (1.0, 0.9)):
        try:
            grid = time_grid(name, flow, 8, Final.SIGMA_MIN, start=start, shift=shift)
        except ScheduleError:
            continue  # of another process
        assert grid.nodes[-1].t == pytest.approx(flow.t_min, rel=1e-12), name
        assert grid.nodes[-2].t > 1.5 * flow.t_min, name


def test_angles_are_even_down_to_an_end():
    for steps, start in ((4, 1.0), (9, 0.9)):
        nodes = time_grid("scm", RectifiedFlow(), steps, start=start, end=0.2).nodes
        angles = [math.atan2(node.sigma, node.alpha) for node in nodes[:-1]]
        assert nodes[-2].t == pytest.approx(0.2)
        assert spread(angles) == pytest.approx([spread(angles)[0]] * (steps - 1), rel=0.01)


def test_a_start_from_noise_alone_is_warned_of_where_it_falls_short():
    """On flow the noise has the size of the start: with sigma = 1 the variance is 0.307 there."""
    network = GAUSSIAN.network(RectifiedFlow(time_scale=1), (4,))
    with pytest.warns(UserWarning, match=r"noise alone at t=0.8, where sigma/alpha is only 4"):
        Sampler(network).plan(grid="uniform:start=.8", steps=4)
    grid = time_grid("uniform", RectifiedFlow(), 400, start=0.9)
    x = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    law = GaussianMixture.single(f64(0.5), f64(0.5))
    scale = grid.schedule.noise_scale(grid.nodes[0])
    zero, one = run(solver("heun"), grid, x * scale, law.x0).flatten().tolist()
    assert zero == pytest.approx(0.4723, abs=1e-4)
    assert (one - zero) ** 2 == pytest.approx(0.249, abs=1e-3)


# Where a grid starts and ends, and the shift


RANGED = {"vp-linear": (0.9, 0.05), "edm": (40.0, 0.01), "flow": (0.9, 0.05), "cosine": (0.8, 0.02)}


def test_every_formula_takes_a_start_and_an_end():
    """The first node and the last one above zero are exactly those that were asked for."""
    for (process, (start, end)), name, final in itertools.product(RANGED.items(), FORMULAS, Final):
        if process not in find_processes(name):
            continue
        grid = time_grid(name, EVERY[process], 6, final, start=start, end=end)
        noisy = [node.t for node in grid if node.t > 0.0]
        assert (noisy[0], noisy[-1]) == (start, end)
        assert grid.steps == 6 + (final is Final.DENOISE)
        assert (grid.nodes[-1].sigma == 0.0) == (final is not Final.SIGMA_MIN)


def test_a_start_and_an_end_keep_the_formula():
    plain = time_grid("uniform", VPLinear(), 4, start=0.8)
    assert [node.t for node in plain] == pytest.approx([0.8, 0.6, 0.4, 0.2, 0.0])
    tail = time_grid("uniform", VPLinear(), 4, start=0.8, end=0.2)
    assert [node.t for node in tail] == pytest.approx([0.8, 0.6, 0.4, 0.2, 0.0])
    gaps = spread([n.lam for n in time_grid("logsnr", EDM(), 5, start=40.0, end=0.01).nodes[:-1]])
    assert gaps == pytest.approx([math.log(40.0 / 0.01) / 4] * 4)
    same = {"start": VPLinear().t_max, "end": 0.0}
    for name in OF_TIME:
        assert time_grid(name, VPLinear(), 7, **same) == time_grid(name, VPLinear(), 7)


def test_a_shift_is_that_of_the_process():
    """`beta:shift=2` has the alpha and sigma of beta on a process that is shifted by 2."""
    for name in OF_TIME:
        moved = time_grid(name, RectifiedFlow(), 6, shift=2.0)
        shifted = time_grid(name, RectifiedFlow(shift=2.0), 6)
        assert [n.sigma for n in moved] == pytest.approx([n.sigma for n in shifted], abs=1e-15)
        assert time_grid(name, RectifiedFlow(), 6, shift=1) == time_grid(name, RectifiedFlow(), 6)
    for shift in (0.3, 1.5, 1.7):  # 1 and 0 are not rounded
        ends = time_grid("uniform", RectifiedFlow(), 6, shift=shift).nodes
        assert (ends[0].t, ends[-1].t) == (1.0, 0.0)
    ends = time_grid("uniform", RectifiedFlow(), 6, start=0.9, end=0.1, shift=3.0)
    assert (ends.nodes[0].t, ends.nodes[-2].t) == (0.9, 0.1)
    evens = [node.t / (3.0 - 2.0 * node.t) for node in ends.nodes[:-1]]
    assert spread(evens) == pytest.approx([spread(evens)[0]] * 5)


def test_bad_ranges_name_the_remedy():
    flow, vp = RectifiedFlow(), VPLinear()
    cases = [
        (flow, "uniform:start=1.5", "start=1.5 lies outside .* above 0 .* up to 1"),
        (vp, "quadratic:start=0", "start=0 lies outside"),
        (flow, "beta:start=.5,end=.6", "end=0.6 must lie below the start, 0.5"),
        (flow, "beta:end=-1", "end=-1 must lie below the start, 1, and not below 0"),
        (vp, "uniform:shift=2", "a vp-linear process has no shift; .* start below 1$"),
        (flow, "karras:shift=2", "write uniform:shift=2"),
        (flow, "uniform:shift=-1", "shift=-1 must be positive; 1 is no shift"),
        (flow, "uniform:start=early", "start='early' is not a number"),
        (flow, "logsnr:start=1", "infinite there; take a time such as 0.999"),
        (VPDiscrete(), "leading:shift=2", "a vp process has no shift"),
        (flow, "leading", "a flow schedule has no whole training timesteps"),
        (vp, "linear_quadratic", "'linear-quadratic' lists times of rectified flow, .* take beta"),
        (EDM(), "bong_tangent", "lists times of rectified flow, and this process is edm"),
        (flow, "linear_quadratic:threshold=1", "needs 0 < threshold < 1"),
        (flow, "sway:s=-1.5", "sway needs -1 <= s <= 1.7519"),
        (VPDiscrete(), "lcm:original=2000", "original=2000 must lie between 1 and 1000"),
    ]
    for schedule, grid, message in cases:
        with pytest.raises((SettingError, ScheduleError), match=message):
            make_plan(schedule, "ddim", steps=5, grid=grid)


# From what a user types


def test_settings_are_read_from_a_name():
    edm = EDM()
    assert parse_spec("karras:rho=5") == ("karras", {"rho": 5})
    assert parse_spec("beta:alpha=0.5, beta=1.5") == ("beta", {"alpha": 0.5, "beta": 1.5})
    assert parse_spec("unipc-2:disable_corrector=[0],solver_type=bh1") == (
        "unipc-2",
        {"disable_corrector": [0], "solver_type": "bh1"},
    )
    planned = make_plan(edm, "ddim", steps=6, grid="karras:rho=5", final="sigma_min").grid
    assert planned == time_grid("karras", edm, 6, Final.SIGMA_MIN, rho=5)
    assert planned != time_grid("karras", edm, 6, Final.SIGMA_MIN)
    assert make_plan(edm, "ddim", steps=30).grid == time_grid(choose_default_grid(edm, 30), edm, 30)
    assert make_plan(edm, "ddim", grid=[80.0, 3.0, 0.0]).grid == TimeGrid.of(edm, [80.0, 3.0, 0.0])


@pytest.mark.parametrize(
    ("choices", "error", "message"),
    [
        ({"grid": "karas"}, UnknownNameError, r"no grid 'karas'; did you mean 'karras'\?"),
        ({"grid": "karras:roh=5"}, SettingError, "grid 'karras': .*'roh'"),
        ({"grid": "logsnr:rho=5"}, SettingError, "grid 'logsnr': .*'rho'"),
        ({"grid": "karras:rho=0"}, SettingError, "'karras' needs rho > 0, not 0; 7 is usual"),
        ({"grid": "karras:rho=big"}, SettingError, "grid 'karras': "),
        ({"grid": "karras:rho"}, SettingError, "'rho' in 'karras:rho' is not a setting"),
        ({"grid": "polyexponential:rho=-1"}, SettingError, "needs rho > 0"),
        ({"grid": "beta:alpha=0"}, SettingError, "needs alpha > 0 and beta > 0"),
        ({"final": "zeros"}, UnknownNameError, r"no end rule 'zeros'; did you mean 'zero'\?"),
        ({"steps": 0}, SettingError, "at least 1 step, not 0"),
        ({"steps": 5, "nfe": 5}, SettingError, "not both"),
        ({"steps": 5, "grid": [80.0, 1.0]}, SettingError, "explicit times are the grid"),
        ({"grid": [80.0]}, ScheduleError, "at least two nodes"),
        ({"grid": [80.0, 80.0]}, ScheduleError, "must fall: node 0 has t=80, node 1 has t=80"),
        ({"grid": [80.0, 1.0, 2.0]}, ScheduleError, "must fall: node 1 has t=1, node 2 has t=2"),
        ({"grid": [80.0, -1.0]}, ScheduleError, "t=-1 lies outside the edm schedule"),
    ],
)
def test_bad_grids_say_what_to_do(choices, error, message):
    with pytest.raises(error, match=message):
        make_plan(EDM(), "ddim", **choices)


@pytest.mark.parametrize("terminal", [0.0, 1.0, -0.1])
def test_a_terminal_outside_0_to_1_is_refused(terminal):
    with pytest.raises(ScheduleError, match="stretched to end at"):
        time_grid("uniform", RectifiedFlow(terminal=terminal), 5)
