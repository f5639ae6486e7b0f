"""Samplers by the names of k-diffusion and ComfyUI: frozen numbers, the laws they sample, names.

The numbers are what those libraries give, or where they name none the published formula, on the
mixture of the other solver tests, with draws that are the same everywhere.
"""

import math
from itertools import count, pairwise
from typing import NamedTuple

import diffusers
import pytest
import torch
from diffusers.schedulers import scheduling_euler_ancestral_discrete as euler_ancestral
from laws import GAUSSIAN, MIXTURE, f64, start
from torch.testing import assert_close

from fewstep.commands.catalogue import LISTINGS
from fewstep.models.errors import SettingError, UnknownNameError
from fewstep.models.gaussian import GaussianMixture
from fewstep.models.schedule import EDM, RectifiedFlow, TimeGrid, VPDiscrete
from fewstep.samplers.grid import time_grid
from fewstep.samplers.plan import make_plan, settle_choices
from fewstep.samplers.sampler import Sampler
from fewstep.solvers import drive, dry_run, names, solver
from fewstep.solvers.aliases import ALIASES
from fewstep.solvers.base import Split


def make_karras(n, schedule=None):
    """k-diffusion's grid: n nodes from kappa = 80 to 0.002, then 0."""
    roots = [(80 ** (1 / 7) + i / (n - 1) * (0.002 ** (1 / 7) - 80 ** (1 / 7))) for i in range(n)]
    return TimeGrid.of(EDM(), [*(root**7 for root in roots), 0.0])


def make_even(ends, n):
    """Nodes even in lam."""
    high, low = map(math.log, ends)
    return TimeGrid.of(EDM(), [math.exp(high + i / n * (low - high)) for i in range(n + 1)])


G8 = make_karras(8)
F8 = time_grid("uniform", RectifiedFlow(shift=3.0), 8)
SD = VPDiscrete("scaled_linear", 0.00085, 0.012)
SD4 = time_grid("trailing", SD, 4)


def draw(n, x):
    """The n-th noise: 1.2 cos(0.7 + 1.1 j + 2.3 n)."""
    values = f64(*(1.2 * math.cos(0.7 + 1.1 * j + 2.3 * n) for j in range(x.numel())))
    return values.reshape(x.shape)


class FixedRun(NamedTuple):
    """Where a run ends, and how often it asks and draws."""

    x: torch.Tensor
    calls: int
    draws: int


def run_fixed(settings, grid, law=MIXTURE.x0, gap=1):
    """Runs a solver with the fixed noise; gap: of the numbers of its draws.

    Where the branches are asked for apart, the unconditional one is that of GAUSSIAN.
    """
    steps, x, counts = settings.on(grid), start(grid), [0, 0]

    def answer(x, node):
        counts[node is None] += 1
        if isinstance(node, Split):
            return torch.stack([GAUSSIAN.x0(x, node.node), law(x, node.node)])
        return draw(gap * (counts[1] - 1), x) if node is None else law(x, node)

    state = steps.init()
    for t, s in pairwise(grid.nodes):
        x, state = drive(steps.step(x, state, t, s), answer)
    return FixedRun(x, *counts)


SA = "predictor_order=3,corrector_order=4,lower_order_final=before-zero,tau_at=end"
FROZEN = [  # spec, grid, evaluations, draws, the first three numbers
    ("euler_ancestral", G8, 8, 7, (-0.224368131, -0.005992814, 0.253239747)),
    ("euler_ancestral:eta=.5", G8, 8, 7, (0.212006049, 0.566888150, -0.705077195)),
    ("euler_ancestral", F8, 8, 7, (-0.515183106, 0.203882365, 0.239161637)),
    ("euler_ancestral:eta=.5", F8, 8, 7, (0.032371710, 0.323377210, -0.386766724)),
    ("dpm_2_ancestral", G8, 15, 7, (-1.995368625, 0.432648319, 1.313445299)),
    ("dpm_2_ancestral", F8, 15, 7, (-0.790458351, 0.266356518, 0.463117926)),
    ("dpmpp_2s_ancestral", G8, 15, 7, (0.034039441, -0.101066666, 0.031930434)),
    ("dpmpp_sde:noise=independent", G8, 15, 14, (-0.769759152, 0.310244088, 0.466130698)),
    ("dpmpp_sde", G8, 15, 14, (-0.572210226, 0.350965731, 0.342076583)),
    ("res_multistep", G8, 8, 0, (0.602652457, 1.208855662, -1.574596099)),
    ("res_multistep_ancestral", G8, 8, 7, (0.690228969, -1.006237975, 0.271285237)),
    ("gradient_estimation", G8, 8, 0, (0.396132960, 0.882293889, -1.097828698)),
    ("seeds_2", G8, 15, 14, (-0.727695851, 0.320243835, 0.444568136)),
    ("seeds_2:eta=0", G8, 15, 0, (0.358354259, 0.790239239, -0.987998186)),
    ("exp_heun_2_x0", G8, 15, 0, (0.335464806, 0.746213866, -0.930406657)),
    ("seeds_3", G8, 22, 21, (-0.830582245, 0.335162988, 0.568069347)),
    ("seeds_3:eta=0", G8, 22, 0, (0.386629206, 0.806412854, -1.020818103)),
    ("heunpp2", G8, 21, 0, (0.284526582, 0.671009743, -0.822322626)),
    (f"sa_solver:{SA}", G8, 8, 3, (-0.928557325, 0.545775767, 0.640986262)),
    (f"sa_solver_pece:{SA}", G8, 15, 3, (-0.775575265, 0.441242474, 0.578222017)),
    (f"sa_solver_pece:{SA},tau=0", G8, 15, 0, (0.416649501, 0.904336458, -1.141592785)),
    ("stochastic_heun", F8, 15, 7, (0.248711441, 0.757337100, -0.952350040)),
    ("euler_cfg_pp:scale=2", G8, 8, 0, (-1.964019322, 0.148046361, 0.818531349)),
    ("euler_ancestral_cfg_pp:scale=2", G8, 8, 7, (-1.842656276, 0.284990239, 0.398928496)),
    ("dpmpp_2m_cfg_pp:scale=2", G8, 8, 0, (-6.029432691, -1.270886171, 1.521804992)),
    ("ddim", SD4, 4, 0, (0.251693376, 0.690036268, -0.830165879)),
    ("euler_ancestral:eta=.5", SD4, 4, 3, (0.225388071, 0.603755636, -0.716819365)),
    ("ddpm", SD4, 4, 3, (-0.503323453, 0.295635910, 0.280522453)),
]


def test_frozen_numbers():
    for spec, grid, calls, draws, wanted in FROZEN:
        x, *counts = run_fixed(solver(spec), grid)
        assert x.flatten()[:3].tolist() == pytest.approx(wanted, abs=2e-9), spec
        assert counts == [calls, draws], spec


def test_frozen_numbers_under_other_draws():
    """ComfyUI draws a second noise that exp_heun_2_x0_sde weighs by 0; here it is not drawn."""
    x, calls, draws = run_fixed(solver("exp_heun_2_x0_sde"), G8, gap=2)
    wanted = (0.552141305, -0.397209440, -0.039722647)
    assert x.flatten()[:3].tolist() == pytest.approx(wanted, abs=2e-9)
    assert (calls, draws) == (15, 7)


def test_the_first_step_from_pure_noise_is_the_limit():
    """ComfyUI asks at tau = .9999 instead, which moves the result by 3e-7."""
    x, calls, _ = run_fixed(solver("dpmpp_2s_ancestral"), F8)
    wanted = (-0.753368594, 0.261043940, 0.430578430)
    assert x.flatten()[:3].tolist() == pytest.approx(wanted, abs=5e-7)
    assert calls == 14


def test_dpm_fast_has_blocks_even_in_lam():
    """On the grid that goes with it."""
    ends = {
        7: (0.051094788, -0.073261652, 0.123019671),
        9: (0.547122150, 1.020876664, -1.337065550),
    }
    for calls, wanted in ends.items():
        plan = make_plan(EDM(), "dpm_fast", steps=calls, grid="dpm_fast", final="sigma_min")
        x, *counts = run_fixed(solver("dpm_fast"), plan.grid)
        assert x.flatten()[:3].tolist() == pytest.approx(wanted, abs=2e-9)
        assert counts == [calls, 0]


def test_unipc_with_varying_coefficients_has_the_order_of_its_corrector():
    grid = make_even((80.0, 0.002), 10)
    ends = {
        2: (0.419695165, 0.862425353, -1.097995509),
        3: (0.371425430, 0.747886017, -0.945354690),
    }
    for p, wanted in ends.items():
        x = run_fixed(solver(f"unipc-{p}:solver_type=vary"), grid).x
        assert x.flatten()[:3].tolist() == pytest.approx(wanted, abs=2e-9)


def drive_theirs(scheduler, x):
    """A scheduler of diffusers over its 8 steps; its network is exact at its own float32 sigmas."""
    for label in scheduler.timesteps:
        scheduler.scale_model_input(x, label)
        kappa = float(scheduler.sigmas[scheduler.step_index])
        eps = (x - MIXTURE.x0(x, WIDE.at(kappa))) / kappa
        x = scheduler.step(eps, label, x).prev_sample
    return x


WIDE = EDM(1e-3, 1e3)


def test_euler_ancestral_is_that_of_diffusers(monkeypatch):
    """Measured: 3.6e-8, of its float32 sigmas; it draws for the last step too, in vain."""
    numbers = count()
    monkeypatch.setattr(
        euler_ancestral, "randn_tensor", lambda shape, **_: draw(next(numbers), torch.zeros(shape))
    )
    scheduler = diffusers.EulerAncestralDiscreteScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012
    )
    scheduler.set_timesteps(8)
    grid = TimeGrid.of(WIDE, scheduler.sigmas.double().tolist())
    theirs = drive_theirs(scheduler, start(grid))
    assert_close(run_fixed(solver("euler_ancestral"), grid).x, theirs, rtol=0, atol=2e-7)
    assert next(numbers) == 8


SAME = [
    ("euler_ancestral", "ddpm"),
    ("euler_ancestral:eta=0", "ddim"),
    ("dpm_2_ancestral:eta=0", "dpm2"),
    ("seeds_2:eta=0,solver_type=phi_2", "res-2s"),
    ("seeds_3:eta=0", f"res-3s:c2={1 / 3},c3={2 / 3}"),
    ("gradient_estimation:gamma=1", "euler"),
    ("sa_solver_pece:corrector_order=0,tau=0,predictor_order=1", "ddim"),
]


def test_methods_that_are_others_with_their_settings():
    for one, other in SAME:
        for law in (MIXTURE.x0, lambda x, node: 0.3 * x.tanh()):
            first, second = (run_fixed(solver(spec), G8, law) for spec in (one, other))
            assert_close(first.x, second.x, rtol=1e-9, atol=1e-9)
            assert first.draws == second.draws
    heun = [run_fixed(solver(each), F8).x for each in ("stochastic_heun:g=0", "heun")]
    assert_close(*heun, rtol=1e-12, atol=1e-12)


# The laws that are sampled


TARGET = GaussianMixture.single(f64(0.4), f64(0.5))
VARIANCES = {  # of samples of N(0.4, 0.25) in 10, 20 and 80 steps
    "euler_ancestral": (0.091, 0.143, 0.215),
    "dpm_2_ancestral": (0.626, 0.311, 0.253),
    "dpmpp_2s_ancestral": (0.157, 0.215, 0.247),
    "dpmpp_sde:noise=independent": (0.123, 0.164, 0.218),
    "dpmpp_sde": (0.185, 0.230, 0.249),
    "res_multistep_ancestral": (0.749, 0.417, 0.256),
    "seeds_2": (0.159, 0.215, 0.247),
    "seeds_3": (0.248, 0.251, 0.250),
    "exp_heun_2_x0_sde": (0.156, 0.210, 0.246),
}


def measure_moments(settings, grid):
    """The exact mean and variance: on Gaussian data a run is linear in its start and its noise."""
    steps = settings.on(grid)
    drawn, n = sum(step.count(None) for step in dry_run(steps, grid.nodes)), 1
    x = torch.zeros(drawn + 2, 1, dtype=torch.float64)
    x[1], state = grid.schedule.noise_scale(grid.nodes[0]), steps.init()

    def answer(x, node):
        nonlocal n
        if node is not None:
            return TARGET.x0(x, node)
        n += 1
        return torch.zeros_like(x).index_fill_(0, torch.tensor(n), 1.0)

    for t, s in pairwise(grid.nodes):
        x, state = drive(steps.step(x, state, t, s), answer)
    return float(x[0]), float((x[1:] - x[0]).square().sum())


def test_the_law_is_that_of_the_data_in_many_steps():
    """In few steps the variance is short; these are the figures of docs/choosing.md."""
    for spec, wanted in VARIANCES.items():
        moments = [measure_moments(solver(spec), make_karras(n)) for n in (10, 20, 80)]
        assert [mean for mean, _ in moments] == pytest.approx([0.4] * 3, abs=1e-3), spec
        assert [variance for _, variance in moments] == pytest.approx(wanted, abs=5e-4), spec


def test_the_order_is_that_of_the_variance():
    for spec in ("euler_ancestral", "dpmpp_2s_ancestral", "seeds_2", "seeds_3", "stochastic_heun"):
        flow = {
            n: TimeGrid.of(RectifiedFlow(), [1 - i / n for i in range(n + 1)]) for n in (80, 160)
        }
        off = [measure_moments(solver(spec), grid)[1] - 0.25 for grid in flow.values()]
        assert math.log2(off[0] / off[1]) > solver(spec).info.order - 0.3, spec


# Names


def test_every_alias_makes_settings_of_ours():
    for name, spec in ALIASES.items():
        assert name not in names()
        assert solver(name) == solver(name.replace("-", "_")) == solver(spec)
    assert solver("res_multistep:kind=midpoint") == solver("dpmpp-2m:lower_order_final=never")
    assert solver("dpmpp_2m") == solver("dpmpp-2m")
    with pytest.raises(UnknownNameError, match="did you mean 'res-multistep'"):
        solver("res_multistp")
    nearest = "did you mean 'unipc-2' or 'unipc-1' or 'unipc-3'"  # and not ComfyUI's uni-pc
    with pytest.raises(UnknownNameError, match=nearest):
        solver("unipc9")


def test_records_write_our_names():
    for spec, wanted in (
        ("dpmpp_2m", "dpmpp-2m"),
        ("er_sde", "er-sde-3"),
        ("uni_pc:coordinate=t", "unipc-3:solver_type=bh1,coordinate=t"),
        ("uni_pc:solver_type=bh2", "unipc-3:solver_type=bh2"),
    ):
        settled = settle_choices(EDM(), {"solver": spec, "nfe": 5})["solver"]
        assert settled == wanted
        assert solver(settled) == solver(spec)
    settled = settle_choices(EDM(), {"grid": "sgm_uniform:start=40", "nfe": 5})
    assert settled["grid"] == "sgm-uniform:start=40"


def test_lists_find_solvers_by_either_name():
    header, *rows = LISTINGS["solvers"]()
    others = {row[0]: row[header.index("other names")] for row in rows}
    assert "res_multistep" in others["dpmpp-2m"]
    assert "uni_pc" in others["unipc-3"]
    assert "euler_a" in others["euler-ancestral"]
    for name, spec in ALIASES.items():
        assert name.replace("-", "_") in others[solver(spec).info.name]


def test_bad_settings_are_refused():
    for spec, message in (
        ("euler_ancestral:eta=1.5", "less than or equal to 1"),
        ("euler_ancestral:s_noise=-1", "greater than or equal to 0"),
        ("dpmpp_sde:noise=tree", "'path' or 'independent'"),
        ("seeds_2:r=0", "greater than 0"),
        ("ddim:eta=.5", "ddim has no settings"),
    ):
        with pytest.raises(SettingError, match=message):
            solver(spec)


def test_image_k_does_not_depend_on_the_batch():
    """Every draw of an image is from its own seed, however many a step makes."""
    sampler = Sampler(TARGET.network(RectifiedFlow(time_scale=1), (1, 1, 1)))
    for spec in ("euler_ancestral", "dpmpp_sde", "seeds_3", "sa_solver_pece", "stochastic_heun"):
        together = sampler(range(5), solver=spec, steps=4).samples
        alone = sampler([3], solver=spec, steps=4).samples
        assert torch.equal(together[3:4], alone), spec
