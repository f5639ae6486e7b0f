"""The updates of distilled networks: their numbers, diffusers' own classes, and their noise."""

import importlib
import math
from collections.abc import Iterator
from itertools import pairwise

import diffusers
import pytest
import torch
from laws import GAUSSIAN, MIXTURE, f64, unit_noise
from torch import Tensor

from fewstep.models.errors import ScheduleError
from fewstep.models.prediction import Prediction, convert
from fewstep.models.schedule import EDM, RectifiedFlow, TimeGrid, VPDiscrete
from fewstep.samplers.grid import time_grid
from fewstep.samplers.sampler import Sampler
from fewstep.solvers import drive, dry_run, names, solver

SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
STABLE = VPDiscrete(**SD)
TRAINED_4, DMD_4 = (999, 759, 499, 259), (999, 749, 499, 249)
TRAINED_8 = (999, 879, 759, 639, 499, 379, 259, 139)
LTX = (1, 0.99375, 0.9875, 0.98125, 0.975, 0.909375, 0.725, 0.421875)
WAN = (1, 0.9375, 5 / 6, 0.625)
DISTILLED = [name for name in names() if solver(name).info.distilled]


def at_labels(*labels: int) -> TimeGrid:
    return TimeGrid.of(STABLE, [*((label + 1) / 1000 for label in labels), 0.0])


def at_taus(*taus: float) -> TimeGrid:
    return TimeGrid.of(RectifiedFlow(), [*taus, 0.0])


CONSISTENT = TimeGrid.of(EDM(), [80.0, 2.2404423, 0.0])


def draws() -> Iterator[Tensor]:
    """1.2 cos(0.7 + 1.1 j + 2.3 n): the n-th noise of every run."""
    n = 0
    while True:
        numbers = (1.2 * math.cos(0.7 + 1.1 * j + 2.3 * n) for j in range(8))
        yield f64(*numbers).reshape(2, 2, 1, 2)
        n += 1


def law(x, node):
    return MIXTURE.x0(x, node)


def map_gaussian(x, node):
    """The exact consistency function of GAUSSIAN: where its flow is at sigma_min."""
    return GAUSSIAN.flow_map(x.reshape(2, 4), node, EDM().at(0.002)).reshape(x.shape)


def sample(settings, grid, law=law):
    """Returns the end of our run and how often it asked for x0 and for noise."""
    steps, source, counts = settings.on(grid), draws(), [0, 0]
    x, state = unit_noise() * grid.schedule.noise_scale(grid.nodes[0]), steps.init()

    def answer(x, node):
        counts[node is None] += 1
        return next(source) if node is None else law(x, node)

    for t, s in pairwise(grid.nodes):
        x, state = drive(steps.step(x, state, t, s), answer)
    return x, tuple(counts)


FROZEN = [
    ("lcm", at_labels(*TRAINED_4), (-0.609716572, 0.337912271, 0.359780626), (4, 3)),
    ("lcm", at_labels(*TRAINED_8), (-0.768423292, 0.244042021, 0.424367233), (8, 7)),
    ("renoise", at_labels(*DMD_4), (-0.619670445, 0.337242505, 0.371235986), (4, 3)),
    ("renoise", at_labels(399), (0.227501289, 0.523475291, -0.657391424), (1, 0)),
    ("renoise", at_labels(800), (-0.073257586, 0.144543561, -0.038483144), (1, 0)),
    ("tcd:gamma=0", at_labels(*TRAINED_4), (0.272221084, 0.676359168, -0.829065939), (4, 0)),
    ("tcd", at_labels(*TRAINED_4), (-0.176122178, 0.263129779, -0.008606415), (4, 3)),
    ("tcd:gamma=1", at_labels(*TRAINED_4), (-0.581036743, 0.353586479, 0.373138915), (4, 3)),
    ("renoise", at_taus(*WAN), (-0.356528489, 0.293054375, 0.134547233), (4, 3)),
    ("ping-pong", at_taus(1, 0.782708009805), (-0.066079758, 0.107675724, -0.021741673), (2, 1)),
    ("euler", at_taus(*WAN), (0.095123002, 0.312199518, -0.344954001), (4, 0)),
    ("euler", at_taus(*LTX), (0.239163891, 0.640224195, -0.773143121), (8, 0)),
]


@pytest.mark.parametrize(("name", "grid", "end", "asked"), FROZEN, ids=str)
def test_frozen_ends(name, grid, end, asked):
    x, counts = sample(solver(name.partition(":")[0], **_settings(name)), grid)
    assert x.flatten()[:3].tolist() == pytest.approx(end, abs=2e-9)
    assert counts == asked


def _settings(name):
    return {"gamma": int(name[-1])} if "gamma" in name else {}


def test_frozen_end_of_a_consistency_model():
    x, counts = sample(solver("consistency"), CONSISTENT, map_gaussian)
    wanted = (0.902143378, -0.471997385, -1.369175601)
    assert x.flatten()[:3].tolist() == pytest.approx(wanted, abs=1e-6)
    assert counts == (2, 1)


def test_a_flow_map_arrives_in_any_number_of_steps_as_it_is_told_where_to():
    """Its answers are mean velocities to the target; slopes in their place lead elsewhere."""
    wanted = (0.918782456, -0.122203078, -1.037082696)

    def map_slope(x, node):
        moved = GAUSSIAN.flow_map(x.reshape(2, 4), node, node.target).reshape(x.shape)
        return x - node.sigma * (x - moved) / (node.sigma - node.target.sigma)

    def slope(x, node):
        return GAUSSIAN.x0(x.reshape(2, 4), node).reshape(x.shape)

    for steps in (1, 2, 4):
        grid = time_grid("uniform", RectifiedFlow(shift=5.0), steps)
        x, _ = sample(solver("flow-map"), grid, map_slope)
        assert x.flatten()[:3].tolist() == pytest.approx(wanted, abs=2e-9)
        plain, _ = sample(solver("flow-map"), grid, slope)
        assert (plain - x).norm() / x.norm() > 0.35


# diffusers


@pytest.fixture
def same_noise(monkeypatch):
    """Makes diffusers' schedulers draw the noise of `draws`."""

    def patch(scheduler):
        source = draws()
        module = importlib.import_module(type(scheduler).__module__)
        monkeypatch.setattr(module, "randn_tensor", lambda *args, **_: next(source))

    return patch


def run_theirs(scheduler, grid, kind, x, steps, **given):
    """Runs a scheduler of diffusers on the law, told the nodes of our grid."""
    labels = scheduler.timesteps.tolist()
    assert len(labels) == steps
    for node, label in zip(grid.nodes, scheduler.timesteps, strict=False):
        out = convert(law(x, node), x, node, Prediction.X0, kind)
        x = scheduler.step(out, label, x, return_dict=False, **given)[0]
    return x


LCM = diffusers.LCMScheduler
TCD = diffusers.TCDScheduler
BY_LABEL = [
    (LCM, "lcm", {}, TRAINED_4, {"num_inference_steps": 4}),
    (LCM, "lcm", {}, TRAINED_8, {"num_inference_steps": 8}),
    (LCM, "renoise", {}, DMD_4, {"timesteps": list(DMD_4)}),
    (TCD, "tcd", {"gamma": 0.0}, TRAINED_4, {"num_inference_steps": 4}),
    (TCD, "tcd", {"gamma": 0.3}, TRAINED_4, {"num_inference_steps": 4}),
    (TCD, "tcd", {"gamma": 1.0}, TRAINED_8, {"num_inference_steps": 8}),
]


@pytest.mark.parametrize(("rival", "name", "settings", "labels", "asked"), BY_LABEL)
def test_agrees_with_diffusers_by_label(rival, name, settings, labels, asked, same_noise):
    scheduler = rival(**SD)
    same_noise(scheduler)
    scheduler.set_timesteps(**asked)
    assert scheduler.timesteps.tolist() == list(labels)
    grid = at_labels(*labels)
    given = {"eta": settings["gamma"]} if settings else {}
    x = run_theirs(scheduler, grid, Prediction.EPS, unit_noise(), len(labels), **given)
    ours, _ = sample(solver(name, **settings), grid)
    assert (x - ours).abs().max() < 3e-6  # their table of abar is float32


BY_TAU = [
    (diffusers.FlowMatchLCMScheduler, {}, "renoise"),
    (diffusers.FlowMatchEulerDiscreteScheduler, {"stochastic_sampling": True}, "renoise"),
    (diffusers.FlowMatchEulerDiscreteScheduler, {}, "euler"),
    (diffusers.FlowMapEulerDiscreteScheduler, {}, "flow-map"),
]


@pytest.mark.parametrize(("rival", "config", "name"), BY_TAU)
def test_agrees_with_diffusers_on_flow(rival, config, name, monkeypatch, same_noise):
    scheduler, source = rival(**config), draws()
    if hasattr(importlib.import_module(rival.__module__), "randn_tensor"):
        same_noise(scheduler)
    monkeypatch.setattr(torch, "randn_like", lambda *args, **_: next(source))
    scheduler.set_timesteps(sigmas=list(WAN))
    grid = at_taus(*WAN)
    x = run_theirs(scheduler, grid, Prediction.FLOW, unit_noise(), 4)
    assert (x - sample(solver(name), grid)[0]).abs().max() < 3e-7


def test_agrees_with_the_scheduler_of_sana_sprint(same_noise):
    """Its state is sigma_d (cos theta x0 + sin theta eps), which flow has divided by their sum."""
    scheduler, x = diffusers.SCMScheduler(), 0.5 * unit_noise()
    same_noise(scheduler)
    scheduler.set_timesteps(2)
    grid = at_taus(1, 0.782708009805)
    for theta, node in zip(scheduler.timesteps[:-1], grid.nodes, strict=False):
        angle = float(theta)
        state = x / 0.5 / (math.cos(angle) + math.sin(angle))
        x0 = law(state, node)
        noise = (x / 0.5 - math.cos(angle) * x0) / math.sin(angle)
        out = 0.5 * (math.cos(angle) * noise - math.sin(angle) * x0)
        x = scheduler.step(out, theta, x, return_dict=False)[0]
    assert (x / 0.5 - sample(solver("renoise"), grid)[0]).abs().max() < 3e-6


def test_agrees_with_the_scheduler_of_consistency_models(same_noise):
    scheduler = diffusers.CMStochasticIterativeScheduler(clip_denoised=False)
    same_noise(scheduler)
    scheduler.set_timesteps(2)
    grid, x = CONSISTENT, 80.0 * unit_noise()
    for label, node in zip(scheduler.timesteps, grid.nodes, strict=False):
        skip, out = scheduler.get_scalings_for_boundary_condition(node.sigma)
        scheduler.scale_model_input(x, label)
        x = scheduler.step((map_gaussian(x, node) - skip * x) / out, label, x, return_dict=False)[0]
    assert (x - sample(solver("consistency"), grid, map_gaussian)[0]).abs().max() < 1e-5


# Noise


@pytest.mark.parametrize("name", DISTILLED)
def test_nothing_is_drawn_on_the_way_to_zero(name):
    grid = {"edm": CONSISTENT, "vp": at_labels(999, 499), "flow": at_taus(1, 0.5)}[
        (*solver(name).info.families, "flow")[0]
    ]
    drawn = [step.count(None) for step in dry_run(solver(name).on(grid), grid.nodes)]
    assert drawn == ([0, 0] if name == "flow-map" else [1, 0])


@pytest.mark.parametrize("name", [name for name in DISTILLED if name != "flow-map"])
def test_image_k_depends_on_its_seed_alone(name):
    families = solver(name).info.families
    process = EDM() if "edm" in families else STABLE
    sampler = Sampler(GAUSSIAN.network(process, (1, 2, 2)))
    runs = [
        sampler(seeds, solver=name, steps=4, batch=batch, grid="uniform").samples
        for seeds, batch in ((range(5), 5), (range(5), 2), ([4, 2], 1))
    ]
    torch.testing.assert_close(runs[0], runs[1], rtol=0, atol=1e-6)
    torch.testing.assert_close(runs[0][[4, 2]], runs[2], rtol=0, atol=1e-6)
    assert (runs[0][0] - runs[0][1]).abs().max() > 0.05


def test_an_update_of_another_process_is_refused_by_its_name_and_not_by_its_grid():
    network = GAUSSIAN.network(RectifiedFlow(time_scale=1), (4,))
    for name, family in (("lcm", "vp"), ("tcd", "vp"), ("consistency", "edm")):
        with pytest.raises(ScheduleError, match=f"{name} runs on {family} schedules only"):
            Sampler(network).plan(solver=name)
