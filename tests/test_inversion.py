"""Inversion: laws whose flow is known, orders of the round trip, what is refused, what is kept."""

from math import log2
from types import SimpleNamespace

import pytest
import torch
from laws import GAUSSIAN, MIXTURE, f64
from tiny import network as tiny

from fewstep.eval.bench.runner import run_cells
from fewstep.eval.experiments.inversion import (
    InversionBench,
    RoundTrip,
    RoundTripRow,
    RoundTrips,
    lines,
)
from fewstep.models.adapters import from_module
from fewstep.models.errors import FewstepError, SettingError
from fewstep.models.prediction import Prediction
from fewstep.models.schedule import EDM, RectifiedFlow, VPLinear
from fewstep.samplers.images import format_psnr, read_picture, to_pil, write_strip
from fewstep.samplers.inversion import Inversion, invert, reconstruct
from fewstep.samplers.inversion_plan import CLEAN, list_invertible, plan_inversion
from fewstep.samplers.sampler import Sampler
from fewstep.solvers import StepSchedule, solver

SHAPE = (2, 1, 2)
IMAGE = f64([-0.7, 0.1, 0.6, -0.1], [0.5, -0.6, 0.0, 0.8], [0.1, 0.7, -0.8, 0.5]).reshape(3, *SHAPE)
KNOWN = (
    *("ddim", "deis-1", "deis-2", "deis-3", "dpm-2m", "dpm-3m", "dpm2", "dpmpp-1m", "dpmpp-2m"),
    *("dpmpp-3m", "euler", "fireflow", "heun", "ode-rk4", "rf-solver", "rf-solver-3", "uni-inv"),
)


def sampler(law=MIXTURE, schedule=None, prediction=Prediction.FLOW):
    return Sampler(law.network(schedule or RectifiedFlow(), SHAPE, prediction))


def missed(steps, **how):
    """How far the round trip ends from the image."""
    there = invert(sampler(), IMAGE, steps=steps, grid="uniform", **how)
    back = reconstruct(sampler(), there)
    return float((back.samples.double() - IMAGE).abs().max())


@pytest.mark.parametrize(
    ("name", "order"),
    [("euler", 1), ("uni-inv", 2), ("rf-solver", 3), ("fireflow", 3), ("heun", 3)],
)
def test_order_of_the_round_trip(name, order):
    """Spec 1.2: the leading errors of the two ways cancel where the step is of order 2."""
    assert log2(missed(40, solver=name) / missed(80, solver=name)) == pytest.approx(order, abs=0.3)


def test_theta_sets_the_solver():
    """Every theta runs both ways, each with its own error, far below that of Euler."""
    errors = [missed(32, solver=f"rf-solver:theta={theta}") for theta in (0.5, 0.7)]
    assert errors[0] != errors[1]
    assert max(errors) < 0.1 * missed(64, solver="euler")


@pytest.mark.parametrize("name", list_invertible())
def test_noise_is_the_one_the_flow_comes_from(name):
    """On a Gaussian the noise is known; at twice the steps the miss must shrink by the order."""
    network = sampler(GAUSSIAN)

    def off(steps):
        there = invert(network, IMAGE, solver=name, steps=steps, grid="logsnr")
        exact = GAUSSIAN.flow_map(IMAGE, there.route.rising[0], there.route.rising[-1])
        return float((there.noise - exact).abs().max())

    order = min(solver(name).info.order, 2)
    last = off(96)
    assert last < (0.4 if order == 1 else 0.04)
    assert log2(off(48) / last) > order - 0.35


@pytest.mark.parametrize("schedule", [VPLinear(), EDM()], ids=["vp", "edm"])
@pytest.mark.parametrize("name", ["ddim", "dpmpp-2m", "rf-solver", "heun"])
def test_other_processes_run_from_t_min(schedule, name):
    prediction = Prediction.EPS if schedule.family == "vp-linear" else Prediction.EDM
    network = sampler(GAUSSIAN, schedule, prediction)
    there = invert(network, IMAGE, solver=name, steps=60, grid="logsnr")
    assert there.route.rising[0].t == schedule.t_min
    first = there.route.rising[0]
    exact = GAUSSIAN.flow_map(IMAGE * first.alpha, first, there.route.rising[-1])
    assert (there.noise - exact).abs().max() < 0.05 * exact.abs().max()
    back = reconstruct(network, there).samples
    off = 0.2 if name == "ddim" else 0.03
    torch.testing.assert_close(back.double(), IMAGE, atol=off, rtol=0)


def test_both_ways_step_over_the_same_nodes_and_cost_what_is_known():
    costs = {}
    for name in ("euler", "rf-solver", "fireflow", "uni-inv", "heun"):
        there = invert(sampler(), IMAGE, solver=name, steps=10)
        back = reconstruct(sampler(), there)
        costs[name] = there.ledger.nfe, back.ledger.nfe
        assert there.ledger.images == back.ledger.images == 3
        assert there.route.rising == there.route.grid.nodes[::-1]
        assert [n.t for n in (there.route.rising[0], there.route.rising[-1])] == [CLEAN, 1.0]
    assert costs == {
        "euler": (10, 10),
        "rf-solver": (20, 20),
        "fireflow": (11, 11),
        "uni-inv": (11, 10),
        "heun": (20, 20),
    }


def test_budget_is_that_of_the_way_to_the_noise():
    assert invert(sampler(), IMAGE, solver="uni-inv", nfe=9).ledger.nfe == 9
    assert invert(sampler(), IMAGE).ledger.nfe == 30
    with pytest.raises(SettingError, match="exactly 9 evaluations; 8 or 10"):
        invert(sampler(), IMAGE, solver="rf-solver", nfe=9)


def test_t_min_moves_the_clean_end():
    there = invert(sampler(GAUSSIAN), IMAGE, steps=40, t_min=0.05)
    assert there.route.rising[0].t == 0.05
    exact = GAUSSIAN.flow_map(0.95 * IMAGE, there.route.rising[0], there.route.rising[-1])
    torch.testing.assert_close(there.noise, exact, atol=0.01, rtol=0)
    back = reconstruct(sampler(GAUSSIAN), there).samples.double()
    torch.testing.assert_close(back, IMAGE, atol=1e-3, rtol=0)
    for wrong in (0.0, 1.0, -0.1):
        with pytest.raises(FewstepError, match="t_min"):
            plan_inversion(sampler().network, t_min=wrong)


def test_trajectory_runs_from_image_to_noise():
    there = invert(sampler(), IMAGE, steps=6, trajectory=True)
    assert there.trajectory.shape == (7, *IMAGE.shape)
    assert torch.equal(there.trajectory[-1], there.noise)
    torch.testing.assert_close(there.trajectory[0], IMAGE, atol=2e-6, rtol=0)
    assert invert(sampler(), IMAGE, steps=6).trajectory is None


def test_these_and_no_others_run_backwards():
    assert tuple(list_invertible()) == KNOWN


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("sde-dpmpp-2", "adds noise"),
        ("heun:s_churn=2", "adds noise"),
        ("ode-dopri5", "chooses its steps"),
        ("unipc-2", "one direction"),
        ("evodiff", "one direction"),
        ("dpm-solver-v3", "one direction"),
        ("rf-sover", "did you mean 'rf-solver'"),
    ],
)
def test_solvers_that_cannot_are_refused(name, why):
    with pytest.raises(FewstepError, match=why):
        invert(sampler(), IMAGE, solver=name)


def test_a_searched_schedule_is_refused():
    grid = plan_inversion(sampler().network, steps=3).grid
    with pytest.raises(SettingError, match="noise to data only"):
        plan_inversion(
            sampler().network, StepSchedule.of(grid, solver("ddim").steps(grid), solver="ddim")
        )


@pytest.mark.parametrize(
    "image",
    [IMAGE[:, :1], IMAGE[:0], IMAGE.long(), IMAGE / 0, torch.full_like(IMAGE, torch.nan)],
    ids=["shape", "empty", "integers", "inf", "nan"],
)
def test_images_that_are_none_are_refused(image):
    with pytest.raises(SettingError, match="image"):
        invert(sampler(), image)


def test_noise_file_brings_the_image_back(tmp_path):
    there = invert(sampler(), IMAGE, solver="rf-solver:theta=0.7", steps=9)
    there.save(tmp_path / "noise.safetensors", model="law")
    kept = Inversion.load(tmp_path / "noise.safetensors", RectifiedFlow())
    assert kept.route == there.route
    back, again = (reconstruct(sampler(), each).samples for each in (there, kept))
    torch.testing.assert_close(back, again, atol=1e-5, rtol=0)
    (tmp_path / "other.safetensors").write_bytes(b"no")
    with pytest.raises(SettingError, match="holds no inversion"):
        Inversion.load(tmp_path / "other.safetensors", RectifiedFlow())


@pytest.fixture(scope="module")
def dit():
    facts = {"num_classes": 10, "null_class": 10, "shape": (2, 8, 8)}
    return Sampler(
        from_module(
            tiny("dit"), schedule=RectifiedFlow(time_scale=1000), prediction="flow", **facts
        )
    )


def test_classes_travel_with_the_noise(dit, tmp_path):
    image = torch.sin(torch.arange(256.0)).reshape(2, 2, 8, 8)
    there = invert(dit, image, class_labels=[3, 4], nfe=40, solver="rf-solver")
    there.save(tmp_path / "n.safetensors")
    assert Inversion.load(tmp_path / "n.safetensors", RectifiedFlow()).labels == (3, 4)
    own, other = (
        float((reconstruct(dit, there, class_labels=labels).samples - image).abs().max())
        for labels in (None, [5, 6])
    )
    assert own < 0.05 < other
    with pytest.raises(SettingError, match="class 12 does not exist"):
        invert(dit, image, class_labels=12)


@pytest.mark.parametrize(
    ("mode", "size", "match"),
    [("L", (6, 8), "6x8 pixels"), ("RGBA", (8, 8), "mode RGBA"), ("P", (8, 8), "mode P")],
)
def test_pictures_that_do_not_fit_are_refused(mode, size, match, tmp_path):
    from PIL import Image

    Image.new(mode, size).save(tmp_path / "x.png")
    network = SimpleNamespace(shape=(1, 8, 8), decode=None, encode=None, name="net")
    with pytest.raises(SettingError, match=match):
        read_picture(tmp_path / "x.png", network)
    with pytest.raises(SettingError, match="there is no such file"):
        read_picture(tmp_path / "y.png", network)


def test_a_picture_is_read_as_it_was_written(tmp_path):
    pixels = (torch.arange(64.0) / 31.5 - 1).reshape(1, 1, 8, 8)
    (picture,) = to_pil(pixels)
    picture.save(tmp_path / "x.png")
    picture.convert("RGB").save(tmp_path / "rgb.png")
    network = SimpleNamespace(shape=(1, 8, 8), decode=None, encode=None, name="net")
    for name in ("x.png", "rgb.png"):
        torch.testing.assert_close(
            read_picture(tmp_path / name, network), pixels, atol=5e-3, rtol=0
        )
    latents = SimpleNamespace(shape=(4, 8, 8), decode=abs, encode=None, name="net")
    with pytest.raises(SettingError, match="no VAE that encodes"):
        read_picture(tmp_path / "x.png", latents)
    write_strip([picture, picture], tmp_path / "strip.png")
    from PIL import Image

    with Image.open(tmp_path / "strip.png") as strip:
        assert strip.size == ((2 * 10 + 2) * 32, 12 * 32)
    assert format_psnr(pixels, pixels) == "exact"
    assert format_psnr(pixels.clamp(-0.5, 0.5) * 0, pixels) != "exact"


def test_table_of_round_trips_resumes(tmp_path, monkeypatch, dit):
    """A figure that is kept is not measured again; half a line is passed over."""
    table = RoundTrips(model="fashion-dit", images=4, solvers=("euler", "rf-solver"), nfe=(3, 4))
    monkeypatch.setattr("fewstep.eval.experiments.inversion.Sampler.from_pretrained", lambda _: dit)
    image = torch.sin(torch.arange(512.0)).reshape(4, 2, 8, 8)
    asked = []

    def images(data, n):
        asked.append(data)
        return image, [1, 2, 3, 4]

    monkeypatch.setattr("fewstep.eval.experiments.inversion.load_labelled_images", images)
    store = tmp_path / "figures.jsonl"

    def run():
        bench = InversionBench(table, store)
        list(run_cells(bench))
        return bench.rows()

    first = run()
    assert [(f.cell.solver, f.cell.by, f.cell.count) for f in first] == [
        ("euler", "nfe", 3),
        ("euler", "nfe", 4),
        ("euler", "steps", 15),
        ("euler", "steps", 30),
        ("rf-solver", "nfe", 4),
        ("rf-solver", "steps", 15),
        ("rf-solver", "steps", 30),
    ]
    with store.open("a") as file:
        file.write('{"cell": ')
    assert run() == first
    assert len(asked) == 1
    text = "\n".join(lines(first))
    assert "| rf-solver | - |" in text
    assert first[-1].psnr > first[3].psnr + 10.0  # rf-solver at 30 steps, Euler at 30
    assert isinstance(first[0], RoundTripRow)
    assert isinstance(first[0].cell, RoundTrip)
    monkeypatch.setattr(
        "fewstep.eval.experiments.inversion.reconstruct",
        lambda sampler, there: SimpleNamespace(samples=3.0 * image.sign(), ledger=there.ledger),
    )
    bench = InversionBench(table, store)
    (far,) = bench.measure(first[0].cell, float)
    clipped = (image.sign() - image).square().flatten(1).mean(1)
    assert far.psnr == pytest.approx(float((10.0 * (4.0 / clipped).log10()).mean()))
