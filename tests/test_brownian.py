"""One Brownian path per seed: its law, and the runs that share it."""

import json
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from laws import GAUSSIAN, even_in_lam, names, registered, runs, solver
from PIL import Image
from typer.testing import CliRunner

from fewstep import RectifiedFlow, Sampler
from fewstep.cli import sample_app
from fewstep.models.errors import SettingError, UnknownNameError
from fewstep.models.schedule import VPLinear
from fewstep.samplers.brownian import (
    DEPTH,
    ROOM,
    BrownianNoise,
    check_path,
    make_quantiles,
    weigh_increment,
)
from fewstep.samplers.noise import Noise
from fewstep.samplers.plan import make_plan
from fewstep.samplers.run_record import read_run
from fewstep.solvers import dry_run
from fewstep.solvers.base import list_spans

LOGS = sorted(np.random.default_rng(0).uniform(-9.0, 12.0, 40).tolist())
SHAPE = (2, 1, 2)
NETWORK = GAUSSIAN.network(VPLinear(), SHAPE)
WITHOUT = {"consistency", "flow-cps", "lcm", "renoise", "tcd"}  # solvers whose noise has no path


def combine(parts):
    """The sum of increments of the path, each given by its length in C."""
    total = {}
    for weights, length in parts:
        for place, weight in weights.items():
            total[place] = total.get(place, 0.0) + math.sqrt(length) * weight
    return total


def dot(a, b):
    return math.fsum(weight * b.get(place, 0.0) for place, weight in a.items())


# ---- the path


def test_increments_are_those_of_a_brownian_motion():
    """Variance 1 each, and none correlated with another: exactly, by their weights."""
    increments = [weigh_increment(*span) for span in [(-math.inf, LOGS[0]), *pairwise(LOGS)]]
    for i, one in enumerate(increments):
        assert dot(one, one) == pytest.approx(1.0, abs=1e-13)
        assert max((abs(dot(one, other)) for other in increments[:i]), default=0.0) < 1e-15


def test_parts_join_to_the_whole_over_cells():
    for first, last in ((0, 39), (3, 10), (20, 21)):
        ends = np.exp(LOGS[first : last + 1])
        parts = map(weigh_increment, LOGS[first:last], LOGS[first + 1 : last + 1])
        whole = combine([(weigh_increment(LOGS[first], LOGS[last]), ends[-1] - ends[0])])
        joined = combine(zip(parts, np.diff(ends), strict=True))
        scale = math.sqrt(ends[-1])
        assert all(abs(joined.get(p, 0.0) - w) < 1e-14 * scale for p, w in whole.items())
        assert all(abs(w) < 1e-14 * scale for p, w in joined.items() if p not in whole)


def test_normals_are_normal():
    values = make_quantiles().astype(np.float64)
    assert values.mean() == pytest.approx(0.0, abs=1e-7)
    assert (values**2).mean() == pytest.approx(1.0, abs=1e-6)
    assert (values**4).mean() == pytest.approx(3.0, abs=3e-3)
    at = torch.special.ndtr(torch.from_numpy(values))
    steps = torch.arange(2**16, dtype=torch.float64) / 2**16
    assert float(torch.maximum((at - steps).abs(), (at - steps - 2.0**-16).abs()).max()) < 2e-5


def test_draws_have_the_law_and_do_not_know_of_each_other():
    path = BrownianNoise(range(3), (8, 50, 50))
    draws = torch.stack([path.draw(span) for span in ((-2.0, -0.5), (-0.5, 0.3), (0.3, 0.31))])
    flat = draws.reshape(9, -1).double()  # by draw and seed
    assert torch.allclose(flat @ flat.T / 20_000, torch.eye(9, dtype=torch.float64), atol=0.03)
    assert float((flat**4).mean()) == pytest.approx(3.0, abs=0.05)


def test_the_path_depends_on_the_seed_alone():
    """Neither on the batch, nor on what was asked before, nor on the shape's remainder by 4."""
    spans = list(pairwise(LOGS))
    together = BrownianNoise([7, 2**32 + 7, 2**62], (3, 3))
    forward = {span: together.draw(span) for span in spans}
    backward = BrownianNoise([7], (3, 3))
    for span in reversed(spans):
        torch.testing.assert_close(backward.draw(span), forward[span][:1], rtol=0, atol=2e-6)
    first = forward[spans[0]]
    assert not torch.equal(first[0], first[1])
    fresh = Noise([7], (3, 3)).draw()
    assert abs(float((fresh * first[:1]).mean() / fresh.square().mean())) < 0.9


def test_memory_does_not_grow():
    path = BrownianNoise([1], (4,))
    for n in (10, 1000):
        for span in pairwise(np.linspace(-9.0, 12.0, n)):
            path.draw(span)
        assert len(path.slots) == len(path.rows) == 2 * ROOM


def test_the_first_numbers_of_seed_0():
    found = BrownianNoise([0], (4,)).draw((-1.0, 0.5)).flatten().tolist()
    assert found == pytest.approx([0.33156937, 0.58217734, -0.24788661, 0.82711071], abs=2e-6)


# ---- runs


def list_stochastic():
    """Every solver with noise that any network answers, and a process that it runs on."""
    for name in names():
        if solver(name).info.stochastic:
            schedule = VPLinear() if runs(solver(name), "vp-linear") else RectifiedFlow()
            yield name, schedule if runs(solver(name), schedule.family) else None


def test_every_stochastic_solver_has_a_path_or_says_so():
    for name, schedule in list_stochastic():
        if schedule is None:  # it is of another process, and has no path
            assert name in WITHOUT
            continue
        plan = make_plan(schedule, name, steps=6)
        if name in WITHOUT:
            with pytest.raises(SettingError, match=f"noise of {name} follows no Brownian path"):
                check_path(plan)
            continue
        check_path(plan)
        ends = []
        for n, (asked, (t, s)) in enumerate(
            zip(dry_run(plan.solver, plan.grid.nodes), pairwise(plan.grid.nodes), strict=True)
        ):
            spans = list_spans(plan.solver, n, t, s)[: asked.count(None)]
            ends += [end for span in spans for end in span]
        assert ends == sorted(ends), name  # the draws of a run do not overlap


def run_law(name, steps, noise, schedule=None, **settings):
    """Samples of GAUSSIAN on an even grid from kappa 20 to .05."""
    schedule = schedule or VPLinear()
    times = [node.t for node in even_in_lam(schedule, steps, last=0.1).nodes]
    sampler = Sampler(GAUSSIAN.network(schedule, SHAPE))
    made = registered(name, **settings) if settings else name
    return sampler(range(60), solver=made, grid=times, noise=noise, batch=60).samples


def measure_distance(a, b):
    return float((a - b).square().mean().sqrt())


ON_VP = [
    ("sde-dpmpp-1", {}),
    ("sde-dpmpp-2", {"eta": 0.5}),
    ("sa-solver", {"kappa_min": 0.0, "kappa_max": 1e9}),
    ("sa-solver-pece", {"kappa_min": 0.0, "kappa_max": 1e9}),
    ("er-sde-2", {}),
    ("euler-ancestral", {"eta": 0.6}),
    ("dpmpp-2s-ancestral", {}),
    ("dpmpp-sde", {}),
    ("seeds-3", {}),
]
ON_FLOW = [
    ("euler-ancestral", {"eta": 0.6}),
    ("si-euler", {}),
    ("sde-dpmpp-2", {"form": "increasing-decreasing"}),
    ("flow-sde", {}),
    ("stochastic-heun", {}),
]


@pytest.mark.parametrize(
    ("name", "settings", "schedule"),
    [*((*row, VPLinear()) for row in ON_VP), *((*row, RectifiedFlow()) for row in ON_FLOW)],
    ids=lambda value: getattr(value, "family", value) if not isinstance(value, dict) else "",
)
def test_runs_of_twice_the_steps_converge_to_the_same_samples(name, settings, schedule):
    ends = [run_law(name, n, "brownian", schedule, **settings) for n in (8, 16, 32, 64)]
    gaps = [measure_distance(a, b) for a, b in pairwise(ends)]
    fresh = measure_distance(run_law(name, 32, "fresh", schedule, **settings), ends[-1])
    assert gaps[2] < 0.65 * gaps[1] < 0.5 * gaps[0]
    assert gaps[2] < 0.15 * fresh


def test_solvers_in_one_run_share_a_path_if_they_share_a_clock():
    spec = "switch:high=sde-dpmpp-2,low={},sigma=0.8"
    ends = [run_law(spec.format("ddpm"), n, "brownian") for n in (32, 128)]
    assert measure_distance(*ends) < 0.1
    with pytest.raises(SettingError, match="switch follows no Brownian path"):
        run_law(spec.format("er-sde-2"), 32, "brownian")


def test_strong_order_one_on_the_gaussian_law():
    finest = run_law("sde-dpmpp-1", 512, "brownian")
    errors = [measure_distance(run_law("sde-dpmpp-1", n, "brownian"), finest) for n in (16, 64)]
    assert math.log(errors[0] / errors[1], 4.0) == pytest.approx(1.0, abs=0.15)


def test_two_half_steps_with_one_prediction_are_the_whole():
    """Up to float32: the noise of a coarse step is what that of the fine ones adds up to."""
    ends = []
    for steps in (4, 8, 16):
        grid = even_in_lam(VPLinear(), steps)
        steps_of, path = registered("sde-dpmpp-1").on(grid), BrownianNoise([5], SHAPE)
        x, state = torch.zeros(1, *SHAPE, dtype=torch.float64), steps_of.init()
        for n, (t, s) in enumerate(pairwise(grid.nodes)):
            step = steps_of.step(x, state, t, s)
            next(step)
            step.send(torch.ones_like(x))
            with pytest.raises(StopIteration) as done:
                step.send(path.draw(list_spans(steps_of, n, t, s)[0]).double())
            x, state = done.value.value
        ends.append(x)
    torch.testing.assert_close(ends[0], ends[2], rtol=0, atol=2e-6)
    torch.testing.assert_close(ends[1], ends[2], rtol=0, atol=2e-6)


def test_batches_do_not_matter_and_fresh_noise_is_as_it_was():
    sampler = Sampler(NETWORK)
    whole = sampler(range(5), solver="seeds-2", steps=6, noise="brownian").samples
    parts = sampler(range(5), solver="seeds-2", steps=6, noise="brownian", batch=2).samples
    torch.testing.assert_close(whole, parts, rtol=0, atol=2e-6)
    plain = sampler(range(5), solver="seeds-2", steps=6).samples
    assert torch.equal(plain, sampler(range(5), solver="seeds-2", steps=6, noise="fresh").samples)
    assert not torch.allclose(plain, whole, atol=0.1)


def test_a_picture_repeats_its_path(tmp_path):
    sampler = Sampler.from_pretrained("fashion-dit")
    result = sampler([3, 4], class_labels=1, solver="ddpm", steps=3, noise="brownian")
    result.save(tmp_path / "a.png")
    run = read_run(tmp_path / "a.png")
    assert run.noise == "brownian"
    again = sampler(**run.arguments())
    assert torch.equal(again.samples, result.samples)
    sampler([3], class_labels=1, solver="ddpm", steps=3).save(tmp_path / "b.png")
    assert "noise" not in json.loads(Image.open(tmp_path / "b.png").text["fewstep"])


def test_sample_takes_and_repeats_it(tmp_path):
    first, again = tmp_path / "a.png", tmp_path / "b.png"
    run = ["fashion-dit", "--solver", "ddpm", "--steps", 2, "--seeds", 1, "--noise", "brownian"]
    for words in ([*run, "--out", first], ["--from-png", first, "--out", again]):
        assert CliRunner().invoke(sample_app, list(map(str, words))).exit_code == 0
    assert first.read_bytes() == again.read_bytes()
    run[2] = "unipc-2"
    refused = CliRunner().invoke(sample_app, list(map(str, [*run, "--out", tmp_path / "c.png"])))
    assert (refused.exit_code, refused.output.count("\n")) == (2, 1)
    assert not (tmp_path / "c.png").exists()


def test_bad_input():
    sampler = Sampler(NETWORK)
    for name in ("unipc-2", "ode-dopri5", "sde-dpmpp-1:eta=0"):
        size = {} if name.startswith("ode") else {"steps": 4}
        with pytest.raises(SettingError, match=r"^[\w-]+ adds no noise; drop noise=brownian"):
            sampler([1], solver=name, noise="brownian", **size)
    for name in ("ddpm:variance=large", "dpmpp-sde:noise=independent"):
        with pytest.raises(SettingError, match="follows no Brownian path"):
            sampler([1], solver=name, steps=4, noise="brownian")
    encoded = registered("sde-dpmpp-2").encode(even_in_lam(VPLinear(), 4))
    with pytest.raises(SettingError, match="noise of a schedule follows no Brownian path"):
        sampler([1], solver=encoded, noise="brownian")
    with pytest.raises(UnknownNameError, match="noise 'browian'; did you mean 'brownian'"):
        sampler([1], solver="ddpm", noise="browian")
    near = [1.0, 0.5, 0.5 - 2.0**-DEPTH / 500, 0.1]
    with pytest.raises(SettingError, match="steps are too short for noise=brownian"):
        sampler([1], solver="ddpm", grid=near, noise="brownian")
