"""Runs rehearsed on data whose answer is known: who is warned of, rightly, and what is advised."""

import math
import re
import warnings
from itertools import pairwise

import pytest
import torch
from laws import GAUSSIAN, MIXTURE, run, solver, start

from fewstep import EDM, Cosine, Prediction, RectifiedFlow, Sampler, VPDiscrete, VPLinear
from fewstep.models.schedule import TimeGrid
from fewstep.samplers.diffusers.scheduler import SolverScheduler
from fewstep.samplers.plan import make_plan
from fewstep.solvers.rehearsal import measure_deviation, measure_gain

ZERO_SNR = VPDiscrete("scaled_linear", 8.5e-4, 0.012, zero_snr=True)
STEEP = VPDiscrete("squaredcos_cap_v2")  # ends at alpha = 5e-5
SHAPE = (2, 1, 2)
AMPLIFYING = [  # solver, process, grid, evaluations; all end far from the data
    *((name, ZERO_SNR, None, 8) for name in ("dpm-2s", "dpm-3s")),
    *((name, Cosine(), "quadratic", 8) for name in ("dpm-2s", "dpm-3s")),
    ("heun", ZERO_SNR, None, 9),
    ("heun", Cosine(), "quadratic", 9),
    ("heun", VPDiscrete(), "logsnr", 5),
    ("dpm-3s", VPDiscrete(), "logsnr", 5),
    ("dpm2", VPDiscrete(), "karras", 5),
    ("heun", EDM(), "karras", 5),
    ("dpm-2s", RectifiedFlow(), "logsnr", 4),
]
SOUND = ("ddim", "unipc-2", "unipc-3", "dpmpp-2m", "dpmpp-2s", "deis-2", "ipndm-3", "lms", "dpm-2m")
SOUND_ON = (VPDiscrete(), VPLinear(), ZERO_SNR, Cosine(), EDM(), RectifiedFlow(shift=3.0))


def brief(value):
    return getattr(value, "family", str(value))


def distance(settings, grid):
    """The largest error of a run on a mixture, whose data lie within about 1 of 0."""
    x = start(grid, (8, *SHAPE))
    fine = make_plan(grid.schedule, "unipc-3", steps=200, grid="logsnr").grid
    times = [grid.nodes[0].t, *(node.t for node in fine.nodes if node.lam > grid.nodes[0].lam)]
    exact = run(solver("unipc-3"), TimeGrid.of(grid.schedule, times), x, MIXTURE.x0)
    return float((run(settings, grid, x, MIXTURE.x0) - exact).abs().max())


@pytest.mark.parametrize(("name", "schedule", "grid", "nfe"), AMPLIFYING, ids=brief)
def test_amplified_errors_are_warned_of_and_the_advice_helps(name, schedule, grid, nfe):
    sampler = Sampler(MIXTURE.network(schedule, SHAPE))
    with pytest.warns(UserWarning, match=rf"^{name} with .* take unipc-2, more steps") as seen:
        plan = sampler.plan(solver=name, nfe=nfe, grid=grid)
    settings, off = solver(name), distance(solver(name), plan.grid)
    assert off > 2.5
    with warnings.catch_warnings(action="error"):
        sampler.plan(solver="unipc-2", grid=[node.t for node in plan.grid.nodes])
        assert distance(solver("unipc-2"), plan.grid) < 0.9
        if nfe > 5:
            t = float(re.search(r"begin at t=([\d.]+)", str(seen[0].message))[1])
            times = [t, *(node.t for node in plan.grid.nodes if node.t < 0.99 * t)]
            later = sampler.plan(solver=name, grid=times)
            assert distance(settings, later.grid) < off / 2.5


def test_sound_solvers_are_not_warned_of():
    with warnings.catch_warnings(action="error"):
        for schedule in SOUND_ON:
            sampler = Sampler(GAUSSIAN.network(schedule, SHAPE))
            for name in SOUND:
                for nfe in (1, 2, 4, 8, 20):
                    sampler.plan(solver=name, nfe=nfe)
        Sampler(GAUSSIAN.network(EDM(), SHAPE)).plan(solver="heun", nfe=19)
        Sampler(GAUSSIAN.network(EDM(), SHAPE)).plan(solver="sde-dpmpp-2", nfe=8)


@pytest.mark.parametrize("name", ["ddim", "heun", "dpm-3s", "sde-dpmpp-2"])
def test_the_deviation_is_that_of_a_run_by_hand(name):
    """Of N(1, .2^2) from z = 1, or z = 0 for a stochastic solver; it is the worst case or less."""
    grid = make_plan(VPDiscrete(), name, nfe=9).grid
    z = 0.0 if name.startswith("sde") else 1.0
    x, ready = torch.full((1, 1, 1, 1), z, dtype=torch.float64), solver(name).on(grid)

    def x0(x_t, node):
        return 1.0 + node.alpha * 0.04 / (node.alpha**2 * 0.04 + node.sigma**2) * (x_t - node.alpha)

    exact = 1.0 + (z - grid.nodes[0].alpha) * 0.2 / (
        (grid.nodes[0].alpha * 0.2) ** 2 + grid.nodes[0].sigma ** 2
    ) ** 0.5  # fmt: skip
    state = ready.init()
    for t, s in pairwise(grid.nodes):
        step = ready.step(x, state, t, s)
        query = next(step)
        try:
            while True:
                asked_x, node = query
                query = step.send(torch.zeros_like(x) if node is None else x0(asked_x, node))
        except StopIteration as done:
            x, state = done.value
    off = abs(float(x) - exact)
    assert 0.0 < off <= measure_deviation(ready, grid) < max(20.0 * off, 1.0)


def test_a_first_step_that_multiplies_eps_is_warned_of_for_networks_that_predict_it():
    """DDIM's first step weighs an error of eps by sigma_t alpha_s / alpha_t - sigma_s."""
    choices = {"solver": "ddim", "nfe": 10, "grid": "quadratic"}
    plan = make_plan(STEEP, **choices)
    t, s = plan.grid.nodes[:2]
    gain = t.sigma * s.alpha / t.alpha - s.sigma
    # with x0 alone changed, eps = (x - alpha x0) / sigma is not held; its part is sigma_s
    assert measure_gain(plan.solver, plan.grid) == pytest.approx(gain, rel=1e-3)
    assert gain > 1000
    with pytest.warns(
        UserWarning, match=r"errors of this network's eps 5\.92e\+03 times.*begin at t=0\.98"
    ):
        Sampler(GAUSSIAN.network(STEEP, SHAPE, Prediction.EPS)).plan(**choices)
    with warnings.catch_warnings(action="error"):
        Sampler(GAUSSIAN.network(STEEP, SHAPE, Prediction.V)).plan(**choices)
        for nfe in (1, 4, 10):
            network = GAUSSIAN.network(VPDiscrete(), SHAPE, Prediction.EPS)
            Sampler(network).plan(solver="ddim", nfe=nfe)


def test_the_gain_is_relative_to_the_state_after_the_step():
    """On EDM x_s gains (sigma_t - sigma_s) of an error in eps, less its part in x0."""
    grid = TimeGrid.of(EDM(), [80.0, 30.0, 1.0])
    gain = (80.0 - 30.0) / math.hypot(1.0, 30.0)
    assert measure_gain(solver("ddim").on(grid), grid) == pytest.approx(gain, rel=1e-12)


def test_a_pipeline_s_scheduler_warns_too():
    config = {
        "_class_name": "DDIMScheduler",
        "beta_schedule": "scaled_linear",
        "prediction_type": "v_prediction",
        "rescale_betas_zero_snr": True,
    }
    scheduler = SolverScheduler.from_config(config, solver="heun", grid="uniform")
    with pytest.warns(UserWarning, match="^heun with 4 steps from t=1, where alpha=0.0002 "):
        scheduler.set_timesteps(4)
    with warnings.catch_warnings(action="error"):
        SolverScheduler.from_config(config, solver="unipc-2").set_timesteps(4)
