"""The recipe that trains the embedded networks, on networks and images that take no time."""

import itertools
import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
import train_network
from PIL import Image
from safetensors.torch import load_file
from scipy import stats
from training import checkpoint, loop, pixels, run, store, table, task
from training.recipe import Recipe, Times, build, parameters_of, recipe_of, write_recipe

from fewstep.eval.data import in_memory
from fewstep.models.checkpoint import WEIGHTS
from fewstep.models.denoiser import Branch, Denoiser
from fewstep.models.errors import NonFiniteError, SettingError, UnknownNameError
from fewstep.models.load import load, read_card
from fewstep.models.prediction import x0_from
from fewstep.models.schedule import EDM, Cosine, RectifiedFlow, VPDiscrete, noise_schedule

RECIPES = Path(__file__).parents[1] / "recipes"
SIDE = 8
CLASSES = ("left", "right", "whole")
UNET = {
    "block_out_channels": [8, 8],
    "layers_per_block": 1,
    "down_block_types": ["DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D"],
    "add_attention": False,
    "norm_num_groups": 4,
}
SHARED = {"data": "halves", "shape": (1, SIDE, SIDE), "classes": CLASSES, "batch": 16}
SHARED |= {"unmirrored": ("left", "right"), "warmup": 2, "rate": 3e-3, "ema": 0.9, "bf16": False}
DIT = Recipe(
    name="tiny-dit",
    model="DiTTransformer2DModel",
    config={
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "num_layers": 1,
        "patch_size": 4,
        "norm_num_groups": 8,
    },
    schedule={"family": "flow", "params": {"time_scale": 1000.0}},
    prediction="flow",
    times=table.TO_THE_DATA,
    **SHARED | {"bf16": True},
)
VP = Recipe(
    name="tiny-vp", model="UNet2DModel", config=UNET, **table.EPS, conditional=False, **SHARED
)
TINY_EDM = replace(VP, name="tiny-edm", **table.EDM, conditional=True)
TINY = {recipe.name: recipe for recipe in (DIT, VP, TINY_EDM)}


def halves(n=60):
    """Grey noise with one half, or all, brighter: class i % 3."""
    drawn = np.random.default_rng(0).integers(0, 60, (n, 1, SIDE, SIDE))
    for i in range(n):
        columns = [slice(0, SIDE // 2), slice(SIDE // 2, SIDE), slice(0, SIDE)][i % 3]
        drawn[i, :, :, columns] += 190
    return in_memory("halves", drawn.astype(np.uint8), torch.arange(n) % 3)


@pytest.fixture(autouse=True)
def small_world(monkeypatch):
    """Made-up images, few nodes, and the precision of before after each test."""
    monkeypatch.setattr(pixels, "images_of", lambda source: halves())
    monkeypatch.setattr(task, "NODES", 2048)
    monkeypatch.setattr(store, "PER_CLASS", 2)
    monkeypatch.setattr(store, "NFE", 4)
    yield
    torch.set_float32_matmul_precision("highest")


def trained(recipe, steps, folder, of=None, start=None):
    """A run after that many steps; `of` says how long the whole training is to be."""
    place = loop.Place(folder, 1e9)
    here = run.Run(recipe, start)
    if place.checkpoint.exists():
        checkpoint.restore(here, place.checkpoint)
    if of is None:
        loop.train(here, loop.Budget(steps=steps), place)
    else:
        stop_after(here, steps - here.progress.steps)
        with pytest.raises(loop.Stopped):
            loop.train(here, loop.Budget(steps=of), place)
    return here


def stop_after(here, steps, number=signal.SIGTERM):
    """Sends this process a signal in the middle of its step of that number."""
    inner, count = here.step, iter(range(steps))

    def step(rate):
        if next(count) == steps - 1:
            os.kill(os.getpid(), number)
        inner(rate)

    here.step = step


def command(*words):
    """The script's exit code, as if these words had been typed."""
    try:
        train_network.main.__globals__["sys"].argv[1:] = map(str, words)
        train_network.main()
    except SystemExit as end:
        return end.code
    return 0


def typed(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["train_network.py"])
    monkeypatch.setattr(train_network, "RECIPES", TINY)
    return command(*words)


def folder_state(folder):
    return {
        path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.suffix != ".jsonl"
    }


# What the network is asked and should answer.


def edm_by_table_1(x0, eps, sigma, data=0.5):
    """F of arXiv:2206.00364, table 1 and eq. 8."""
    skip = data**2 / (sigma**2 + data**2)
    out = sigma * data / math.sqrt(sigma**2 + data**2)
    return (x0 - skip * (x0 + sigma * eps)) / out


EXPECTED = {
    "eps": lambda x0, eps, a, s: eps,
    "x0": lambda x0, eps, a, s: x0,
    "v": lambda x0, eps, a, s: a * eps - s * x0,
    "flow": lambda x0, eps, a, s: eps - x0,
    "edm": lambda x0, eps, a, s: edm_by_table_1(x0, eps, s),
}


@pytest.mark.parametrize("prediction", EXPECTED)
def test_the_right_answer_is_the_formula_of_each_prediction(prediction):
    recipe = replace(TINY_EDM if prediction == "edm" else DIT, prediction=prediction)
    asked, (x0, eps) = task.make_nodes(recipe), (0.7, -1.3)
    for i in (0, 500, 1024, 2000, 2047):
        alpha, sigma = float(asked.alpha[i]), float(asked.sigma[i])
        expected = EXPECTED[prediction](x0, eps, alpha, sigma)
        found = float(asked.p[i]) * x0 + float(asked.q[i]) * eps
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_edm_reads_scaled_states_and_250_times_the_logarithm_of_sigma():
    asked = task.make_nodes(TINY_EDM)
    sigma = asked.sigma.double()
    torch.testing.assert_close(asked.scale.double(), (sigma**2 + 0.25).rsqrt(), rtol=1e-6, atol=0)
    torch.testing.assert_close(asked.label.double(), 250 * sigma.log(), rtol=1e-5, atol=1e-3)
    assert torch.equal(asked.alpha, torch.ones(2048))


def times(schedule, *laws):
    return task.make_times([Times(*law) for law in laws], schedule)


def test_laws_of_times():
    logit = torch.tensor(times(RectifiedFlow(), ("logit-normal", (0.5, 0.8)))).logit()
    log = torch.tensor(times(EDM(), ("log-normal", (-1.0, 1.3)))).log()
    for found, mean, std in ((logit, 0.5, 0.8), (log, -1.0, 1.3)):
        assert float(found.mean()) == pytest.approx(mean, abs=1e-3)
        assert float(found.std()) == pytest.approx(std, rel=5e-3)
    steps = times(VPDiscrete(num_train_timesteps=512), ("steps",))
    assert steps == [(n // 4 + 1) / 512 for n in range(2048)]
    even = times(RectifiedFlow(), ("uniform", (0.25, 0.75)))
    assert np.allclose(even, 0.25 + 0.5 * (np.arange(2048) + 0.5) / 2048)
    logs = np.log(times(RectifiedFlow(), ("log-uniform", (0.002, 0.5))))
    assert np.allclose(np.diff(logs), math.log(250.0) / 2048)


def test_laws_share_the_times_and_stay_within_the_schedule(monkeypatch):
    monkeypatch.setattr(task, "NODES", 100)
    found = times(RectifiedFlow(), ("uniform", (0.9, 1.0), 3.0), ("uniform", (0.0, 0.1), 1.0))
    assert len(found) == 100
    assert sum(t > 0.5 for t in found) == 75
    assert max(times(EDM(), ("log-normal", (3.0, 2.0)))) == EDM().sigma_max
    assert max(times(Cosine(), ("uniform",))) == Cosine().t_max


@pytest.mark.parametrize(
    ("law", "schedule", "says"),
    [
        (("steps",), EDM(), "family vp"),
        (("logit-normal",), EDM(), "up to 1"),
        (("log-normal",), RectifiedFlow(), "above 1"),
        (("logit-normal", (0.0, 0.0)), RectifiedFlow(), "deviation above 0"),
        (("uniform", (0.5, 0.5)), RectifiedFlow(), "rising ends"),
        (("log-uniform", (0.0, 1.0)), RectifiedFlow(), "ends above 0"),
    ],
    ids=str,
)
def test_a_law_that_does_not_fit_is_refused(law, schedule, says):
    with pytest.raises(SettingError, match=f"{law[0]}.*{says}"):
        times(schedule, law)


@torch.inference_mode()
def asked_and_read(here, network, row):
    """The loss at one node, and the loss that x0 as a sampler reads it stands for."""
    x0, labels = here.pixels.draw(5)
    rows = ([row] * 5, None, None, None)
    at = task.Asked(*(column[rows] for column in vars(here.asked).values()))
    node = here.recipe.process.at(task.make_times(here.recipe.times, here.recipe.process)[row])
    eps = torch.randn_like(x0)
    x_t = at.alpha * x0 + at.sigma * eps
    loss = float(here.loss(x0, labels, at, eps))
    conditions = {"class_labels": labels} if here.recipe.conditional else {}
    read = Denoiser(network, {Branch.COND: conditions}).x0(x_t, node)[0]
    _, weight = x0_from(here.recipe.predicts, node, network.sigma_data)
    return loss, float((read - x0).square().mean()) / weight**2


@pytest.mark.parametrize("recipe", TINY.values(), ids=TINY)
def test_what_is_trained_is_what_the_sampler_reads(recipe, tmp_path):
    """The stored network behind the library's Denoiser against the loss's own call of it."""
    here = trained(recipe, 3, tmp_path)
    store.write_network(tmp_path, here)
    network = load(tmp_path)
    here.network, here.recipe = network.module, replace(recipe, bf16=False)
    for row in (3, 700):
        loss, read = asked_and_read(here, network, row)
        assert read == pytest.approx(loss, rel=1e-3)
        assert loss > 1e-3


# The images.


def test_images_are_flipped_only_where_allowed():
    drawn = pixels.pixels_of(replace(DIT, unmirrored=("left",)))
    torch.manual_seed(0)
    x0, labels = drawn.draw(400)
    assert float(x0.min()) >= -1.0
    assert float(x0.max()) <= 1.0
    left = x0[:, 0, :, : SIDE // 2].mean((1, 2)) > x0[:, 0, :, SIDE // 2 :].mean((1, 2))
    assert bool(left[labels == 0].all())
    share = float(left[labels == 1].float().mean())
    assert 0.35 < share < 0.65
    bright = float(x0[labels == 2].mean())
    assert bright == pytest.approx((30 + 190) / 127.5 - 1.0, abs=0.05)


def test_wrong_images_are_refused(monkeypatch):
    with pytest.raises(SettingError, match="no class 'top'"):
        pixels.pixels_of(replace(DIT, unmirrored=("top",)))
    with pytest.raises(SettingError, match="3 classes of shape"):
        pixels.pixels_of(replace(DIT, classes=("left", "right"), unmirrored=()))
    with pytest.raises(SettingError, match="is for 3 of shape"):
        pixels.pixels_of(replace(DIT, shape=(3, 8, 8)))
    bare = replace(halves(), labels=None)
    monkeypatch.setattr(pixels, "images_of", lambda source: bare)
    with pytest.raises(SettingError, match="has no classes"):
        pixels.pixels_of(DIT)


def test_images_are_drawn_by_the_weight_of_their_set_and_class(monkeypatch):
    """Two sets of 10 and 20 images, the second at a tenth; class 0 has 10 images, class 1 20."""
    counts = {"few": [10], "many": [0, 20]}

    def images(source):
        labels = torch.arange(2)[: len(counts[source])].repeat_interleave(
            torch.tensor(counts[source])
        )
        return in_memory(source, np.zeros((len(labels), 1, SIDE, SIDE), np.uint8), labels)

    monkeypatch.setattr(pixels, "images_of", images)
    recipe = replace(DIT, data={"few": 1.0, "many": 0.1}, balance=0.5)
    weights = pixels.pixels_of(recipe).weights
    assert torch.allclose(weights[:10], torch.tensor(10.0**-0.5))
    assert torch.allclose(weights[10:], torch.tensor(0.1 * 20.0**-0.5))
    torch.manual_seed(0)
    _, labels = pixels.pixels_of(recipe).draw(3000)
    share = 10**0.5 / (10**0.5 + 0.1 * 20**0.5)
    assert float((labels == 0).float().mean()) == pytest.approx(share, abs=0.02)


def test_classes_are_dropped_as_often_as_the_recipe_says():
    here, told = run.Run(replace(DIT, batch=600, label_dropout=0.25)), []
    inner = here.loss

    def loss(x0, labels, *rest):
        told.append(labels)
        return inner(x0, labels, *rest)

    here.loss = loss
    here.backward()
    assert float((told[0] == 3).float().mean()) == pytest.approx(0.25, abs=0.06)


def test_the_noise_of_a_recipe_with_a_tint_is_shifted_by_so_much_and_no_more_than_itself():
    """Means of images: of 64 pixels of noise, and the tint; sigma is .5 and .01."""
    slow = 1 / 16  # variance of the mean of 16 numbers
    assert spread_of_means(0.0, 0.5) == pytest.approx(1 / 8, rel=0.1)
    assert spread_of_means(0.05, 0.5) == pytest.approx((1 / 64 + 0.01 * (1 + slow)) ** 0.5, rel=0.1)
    assert spread_of_means(0.05, 0.01) == pytest.approx((1 / 64 + 1 + slow) ** 0.5, rel=0.1)


def test_the_noise_of_a_pfgm_recipe_is_student_t():
    schedule = {**TINY_EDM.schedule, "params": {**TINY_EDM.schedule["params"], "aug_dim": 4}}
    eps = draw_noise_of(replace(TINY_EDM, batch=500, schedule=schedule)).flatten(1).double()
    law = stats.f(eps.shape[1], 4).cdf
    assert stats.kstest(eps.square().mean(1).numpy(), law).statistic < 0.073  # the 1 % bound
    plain = draw_noise_of(replace(TINY_EDM, batch=500)).flatten(1).double()
    assert stats.kstest(plain.square().mean(1).numpy(), law).statistic > 0.3


def spread_of_means(tint, t):
    """Of the noise of 500 images that are asked about at one time."""
    times = (Times("uniform", (t, t + 1e-6)),)
    return float(
        draw_noise_of(replace(DIT, batch=500, tint=tint, times=times)).mean((1, 2, 3)).std()
    )


def draw_noise_of(recipe):
    """Returns the noise of the first batch of a recipe."""
    here, drawn = run.Run(recipe), []

    def loss(x0, labels, at, eps):
        drawn.append(eps)
        return here.parameters[0].sum()

    here.loss = loss
    here.backward()
    return drawn[0]


def test_finishing_asks_near_the_data_half_of_the_time():
    for recipe in table.RECIPES.values():
        finished = table.finish(recipe)
        low, high = finished.times[-1].at
        nodes = [finished.process.at(t) for t in (low, high)]
        assert [node.sigma / node.alpha for node in nodes] == pytest.approx([0.01, 0.5], rel=1e-3)
        asked = np.array(task.make_times(finished.times, finished.process))
        before = np.array(task.make_times(recipe.times, recipe.process))
        inside = [np.mean((low <= times) & (times <= high)) for times in (asked, before)]
        assert inside[0] == pytest.approx((1.0 + inside[1]) / 2, abs=0.01)
        assert finished.tint > 0.0


def test_a_network_is_finished_from_a_folder(monkeypatch, tmp_path, capsys):
    assert typed(monkeypatch, "tiny-dit", "--steps", 2, "--finish", "--out", tmp_path / "a") == 2
    assert "give the folder of one with --start" in capsys.readouterr().err
    assert typed(monkeypatch, "tiny-dit", "--steps", 2, "--out", tmp_path / "a") == 0
    words = ["--steps", 2, "--finish", "--start", tmp_path / "a", "--out", tmp_path / "b"]
    assert typed(monkeypatch, "tiny-dit", *words) == 0
    facts = json.loads((tmp_path / "b" / "card.json").read_text())["trained"]
    assert facts["recipe"]["tint"] > 0.0
    assert facts["started_from"]


# The networks.


def same_weights(a, b):
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(mine, its) for mine, its in pairs)


def test_networks_repeat():
    assert same_weights(build(DIT), build(DIT))
    assert not same_weights(build(DIT), build(replace(DIT, seed=1)))


@pytest.mark.parametrize("recipe", TINY.values(), ids=TINY)
def test_the_borders_of_a_network_compute_in_float32(recipe):
    """All else computes in bf16, where the recipe says so."""
    here, seen = run.Run(replace(recipe, bf16=True)), {}

    def note(name):
        return lambda module, args, output: seen.update({name: output.dtype})

    layers = (torch.nn.Linear, torch.nn.Conv2d)
    for name, module in here.network.named_modules():
        if isinstance(module, layers):
            module.register_forward_hook(note(name))
    here.backward()
    borders = run.BORDERS[recipe.model]
    for name, dtype in seen.items():
        exact = any(name == border or name.startswith(f"{border}.") for border in borders)
        assert dtype == (torch.float32 if exact else torch.bfloat16), name
    assert {torch.float32, torch.bfloat16} == set(seen.values())
    assert all(
        each.grad.dtype == torch.float32 for each in here.parameters if each.grad is not None
    )


def test_the_dit_keeps_the_labels_it_is_given():
    """Its own dropout would replace them a second time, in each block by itself."""
    embedders = [each for each in build(DIT).train().modules() if hasattr(each, "token_drop")]
    assert len(embedders) == 1
    labels = torch.zeros(200, dtype=torch.long)
    assert embedders[0](labels).unique(dim=0).shape[0] == 1
    assert embedders[0].embedding_table.num_embeddings == len(CLASSES) + 1


def test_a_network_that_cannot_be_built_is_refused():
    with pytest.raises(SettingError, match="cannot be built"):
        build(replace(DIT, config={"depth": 3}))
    with pytest.raises(UnknownNameError, match="VQModel"):
        build(replace(DIT, model="VQModel"))


def test_recipes_are_of_the_asked_size_and_complete():
    for name, recipe in table.RECIPES.items():
        assert (recipe in table.ZOO) == name.startswith("zoo-")
        assert 3e5 < parameters_of(recipe) < 3e6
        assert recipe.process.family == recipe.schedule["family"]
        assert recipe_of(name, table.RECIPES) is recipe
        with pytest.raises(SettingError, match="is written"):
            replace(recipe, schedule={"family": "vp"}).process  # noqa: B018


@pytest.mark.parametrize("recipe", table.EMBEDDED, ids=lambda recipe: recipe.name)
def test_recipes_make_the_embedded_networks_again(recipe):
    folder = files("fewstep.models") / "embedded" / recipe.name
    kept = json.loads((folder / "config.json").read_text())
    with torch.device("meta"):
        made = dict(build(recipe).config)
    names = kept.keys() - {"_class_name", "_diffusers_version"}
    assert {each: listed(made[each]) for each in names} == {each: kept[each] for each in names}
    facts = read_card(recipe.name)
    assert facts["class"] == recipe.model
    assert facts["prediction"] == recipe.prediction
    assert noise_schedule(**flat(facts["schedule"])) == recipe.process
    assert tuple(facts["class_names"]) == recipe.classes


def flat(schedule):
    return {"family": schedule["family"], **schedule["params"]}


def listed(value):
    return list(value) if isinstance(value, tuple) else value


def test_recipes_go_through_json(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(write_recipe(TINY_EDM))
    assert recipe_of(str(path), {}) == recipe_of(str(path), {})
    assert write_recipe(recipe_of(str(path), {})) == write_recipe(TINY_EDM)
    path.write_text(write_recipe(DIT).replace('"batch":16', '"batch":0'))
    with pytest.raises(SettingError, match="batch"):
        recipe_of(str(path), {})
    path.write_text(write_recipe(DIT).replace('"batch"', '"bach"'))
    with pytest.raises(SettingError, match="bach"):
        recipe_of(str(path), {})


# The steps.


def test_the_rate_rises_and_falls_to_a_hundredth():
    assert loop.rate(1.0, 4, 0, 0.0) == 0.25
    assert loop.rate(1.0, 4, 3, 0.0) == 1.0
    assert loop.rate(2.0, 4, 99, 0.5) == pytest.approx(1.01)
    assert loop.rate(1.0, 4, 99, 1.0) == pytest.approx(0.01)


def test_a_budget_is_minutes_or_steps():
    assert loop.Budget(minutes=2).used(5, 30.0) == 0.25
    assert loop.Budget(steps=20).used(5, 1e9) == 0.25
    assert loop.Budget(minutes=1).used(0, 61.0) == 1.0
    for wrong in ({}, {"minutes": 1, "steps": 1}, {"minutes": 0}, {"steps": 0}):
        with pytest.raises(SettingError, match=r"give either --minutes|must be"):
            loop.Budget(**wrong)
    with pytest.raises(SettingError, match="above 0"):
        loop.Budget(minutes=math.nan)


def test_the_average_follows_its_formula():
    here = run.Run(DIT)
    expected = [each.clone() for each in here.average]
    for k in range(12):
        here.step(1e-2)
        decay = min(0.9, (1 + k) / (10 + k))
        for mean, weight in zip(expected, here.parameters, strict=True):
            mean.mul_(decay).add_(weight.detach(), alpha=1 - decay)
    for mean, found in zip(expected, here.averaged().values(), strict=True):
        torch.testing.assert_close(found, mean)
        assert found.dtype == torch.float32
    moved = zip(here.average, here.parameters, strict=True)
    assert any(not torch.equal(mean, weight) for mean, weight in moved)


def test_each_step_draws_its_own_batch():
    here = run.Run(DIT)
    first = float(here.backward())
    assert float(here.backward()) == first
    here.progress.steps = 1
    assert float(here.backward()) != first


@pytest.mark.parametrize("recipe", TINY.values(), ids=TINY)
def test_training_lowers_the_loss_below_that_of_the_mean(recipe, tmp_path):
    """The mean of the images as x0 and 0 as eps: what an answer that reads nothing can reach."""
    here = run.Run(replace(recipe, batch=64, rate=1e-2, warmup=5))
    x0 = here.pixels.images.float() / 127.5 - 1.0
    p, q = here.asked.p[:, None], here.asked.q[:, None]
    mean_loss = float((p**2 * (x0 - x0.mean(0)).square().mean() + q**2).mean())
    loop.train(here, loop.Budget(steps=80), loop.Place(tmp_path, 1e9))
    assert np.mean(list(here.progress.losses)[-10:]) < 0.6 * mean_loss


def fail_at(here, steps):
    """The loss is NaN at those steps."""
    inner = here.loss
    here.loss = lambda *batch: inner(*batch) * (math.nan if here.progress.steps in steps else 1.0)


def test_a_step_without_a_finite_gradient_changes_nothing():
    here = run.Run(DIT)
    fail_at(here, {2, 3, 6})
    for _ in range(8):
        before = [each.clone() for each in here.parameters]
        moments = [each["exp_avg"].clone() for each in here.optimizer.state.values()]
        here.step(1e-2)
        kept = all(map(torch.equal, before, here.parameters))
        assert kept == (here.progress.steps - 1 in {2, 3, 6})
        if kept:
            now = [each["exp_avg"] for each in here.optimizer.state.values()]
            assert all(map(torch.equal, moments, now))
    assert here.progress.skipped == 3
    assert here.progress.in_a_row == 0
    assert len(here.progress.losses) == 5
    assert math.isfinite(here.progress.loss)


def test_twenty_of_them_in_a_row_end_the_training(tmp_path):
    trained(DIT, 3, tmp_path, of=100)
    kept = folder_state(tmp_path)
    here = run.Run(DIT)
    checkpoint.restore(here, tmp_path / loop.CHECKPOINT)
    fail_at(here, set(range(5, 10)) | set(range(11, 100)))
    with pytest.raises(NonFiniteError, match="up to step 31"):
        loop.train(here, loop.Budget(steps=100), loop.Place(tmp_path, 1e9))
    assert folder_state(tmp_path) == kept


def test_a_start_from_a_folder_continues_from_its_weights(tmp_path):
    """Also of a network of another prediction; the first step then moves those weights alone."""
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
    store.write_network(first, trained(TINY_EDM, 3, first))
    stored = load_file(first / WEIGHTS)
    again = run.Run(replace(TINY_EDM, **table.FLOW, ema=0.9995), first)
    names = [name for name, _ in again.network.named_parameters()]
    for values in (again.parameters, again.average):
        for name, value in zip(names, values, strict=True):
            assert torch.equal(value, stored[name].float())
    again.step(1e-3)
    moved = max(
        float((value - stored[name].float()).abs().max())
        for name, value in zip(names, again.average, strict=True)
    )
    assert 0.0 < moved < 1e-3 / 40  # a step of the rate, and 1/50 of it in the average
    with pytest.raises(SettingError, match=r"cannot start from .*first"):
        run.Run(DIT, first)
    with pytest.raises(SettingError, match=r"cannot start from .*nowhere"):
        run.Run(TINY_EDM, tmp_path / "nowhere")
    trained(TINY_EDM, 2, second, of=9, start=first)
    here = trained(TINY_EDM, 4, second, start=first)
    with pytest.raises(SettingError, match="--start gives scratch"):
        checkpoint.restore(run.Run(TINY_EDM), second / loop.CHECKPOINT)
    store.write_network(second, here)
    card = json.loads((second / "card.json").read_text())
    assert (
        card["trained"]["started_from"] == json.loads((first / "card.json").read_text())["sha256"]
    )


# Stopping and going on.


def same_training(a, b):
    mine, its = (checkpoint.read_checkpoint(each / loop.CHECKPOINT) for each in (a, b))
    assert mine["progress"].pop("seconds") > 0.0
    its["progress"].pop("seconds")
    assert mine["progress"] == its["progress"]
    assert mine["network"].keys() == its["network"].keys()
    for name, value in mine["network"].items():
        assert torch.equal(value, its["network"][name])
    assert all(map(torch.equal, mine["average"], its["average"]))
    states = zip(
        mine["optimizer"]["state"].values(), its["optimizer"]["state"].values(), strict=True
    )
    for state, other in states:
        assert all(torch.equal(value, other[name]) for name, value in state.items())


@pytest.mark.parametrize("recipe", TINY.values(), ids=TINY)
def test_a_resumed_training_is_the_uninterrupted_one(recipe, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder in (whole, parts):
        folder.mkdir()
    trained(recipe, 9, whole)
    trained(recipe, 4, parts, of=9)
    torch.rand(7)  # other work in between draws numbers too
    trained(recipe, 7, parts, of=9)
    trained(recipe, 9, parts)
    same_training(whole, parts)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_ends(number, tmp_path):
    before = signal.getsignal(number)
    here = run.Run(DIT)
    stop_after(here, 3, number)
    with pytest.raises(loop.Stopped, match="at step 3") as stopped:
        loop.train(here, loop.Budget(steps=50), loop.Place(tmp_path, 1e9))
    assert stopped.value.code == 128 + number
    assert checkpoint.read_checkpoint(tmp_path / loop.CHECKPOINT)["progress"]["steps"] == 3
    assert signal.getsignal(number) == before


def test_the_seconds_of_before_count(tmp_path, monkeypatch):
    """The clock moves by 0.01 s at each look; 0.1 of 3 s are left."""
    ticks = itertools.count()
    monkeypatch.setattr(loop.time, "perf_counter", lambda: 0.01 * next(ticks))
    here = run.Run(DIT)
    here.progress.seconds = 2.9
    loop.train(here, loop.Budget(minutes=0.05), loop.Place(tmp_path, 1e9))
    assert here.progress.seconds == pytest.approx(3.0, abs=0.02)
    assert here.progress.steps < 12


def test_checkpoints_are_whole_and_as_often_as_asked(tmp_path, monkeypatch):
    saved = []
    here = run.Run(DIT)
    monkeypatch.setattr(checkpoint, "save", lambda run, path: saved.append(run.progress.steps))
    loop.train(here, loop.Budget(steps=5), loop.Place(tmp_path, 1e-9))
    assert saved == [1, 2, 3, 4, 5]


def test_a_failed_save_leaves_the_last_one(tmp_path, monkeypatch):
    here = trained(DIT, 2, tmp_path, of=9)
    kept = folder_state(tmp_path)

    def half(content, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(SettingError, match="No space left"):
        checkpoint.save(here, tmp_path / loop.CHECKPOINT)
    assert folder_state(tmp_path) == kept


def test_other_and_damaged_checkpoints_are_refused(tmp_path):
    trained(DIT, 2, tmp_path, of=9)
    place = loop.Place(tmp_path, 60.0)
    assert store.check_out(place, DIT)
    with pytest.raises(SettingError, match="'tiny-dit', not of 'tiny-vp'"):
        store.check_out(place, VP)
    with pytest.raises(SettingError, match="batch = 16, not 8"):
        store.check_out(place, replace(DIT, batch=8))
    whole = place.checkpoint.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"hello"):
        place.checkpoint.write_bytes(damaged)
        with pytest.raises(SettingError, match="cannot go on from"):
            store.check_out(place, DIT)


def test_a_finished_network_is_not_written_over(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    assert not store.check_out(loop.Place(tmp_path, 60.0), DIT)
    (tmp_path / "card.json").write_text("{}")
    with pytest.raises(SettingError, match=r"holds card\.json"):
        store.check_out(loop.Place(tmp_path, 60.0), DIT)


def test_the_log_goes_on_from_the_checkpoint(tmp_path):
    log = tmp_path / loop.LOG
    rows = [{"step": step, "loss": 1.0} for step in (2, 4, 6)]
    log.write_text("\n".join(map(json.dumps, rows)) + '\n{"step": 8, "lo')
    here = trained(DIT, 5, tmp_path)
    found = [json.loads(line) for line in log.read_text().splitlines()]
    assert [row["step"] for row in found] == [5]  # nothing was kept, so all rows were lost steps
    log.write_text(log.read_text() + '{"step": 7, "loss": 1.0}\n{"st')
    trained(DIT, 8, tmp_path)
    found = [json.loads(line) for line in log.read_text().splitlines()]
    assert [row["step"] for row in found] == [5, 8]
    assert found[-1]["rate"] == pytest.approx(0.01 * DIT.rate)
    assert found[0]["loss"] == pytest.approx(here.progress.loss, abs=1e-6)
    assert found[0]["images_per_second"] > 0.0


# The command.


def test_one_command_leaves_a_network_to_sample_from(tmp_path, monkeypatch, capsys):
    out = tmp_path / "deep" / "tiny"
    assert typed(monkeypatch, "tiny-edm", "--steps", 6, "--out", out) == 0
    assert "written to" in capsys.readouterr().out
    names = {path.name for path in out.iterdir()}
    files_first = {WEIGHTS, "config.json", "card.json", "samples.png"}
    assert names == files_first | {"checkpoint.pt", "log.jsonl"}
    network = load(out)
    assert network.schedule == TINY_EDM.process
    assert network.null_class == 3
    facts = json.loads((out / "card.json").read_text())
    assert facts.keys() >= read_card("fashion-dit").keys()
    assert facts["trained"]["steps"] == 6
    assert facts["training"] == "6 steps of recipes/train_network.py tiny-edm"
    assert facts["trained"]["recipe"] == json.loads(write_recipe(TINY_EDM))
    assert facts["parameters"] == parameters_of(TINY_EDM)
    stored = load_file(out / WEIGHTS)
    assert {each.dtype for each in stored.values()} == {torch.float16}
    average = checkpoint.read_checkpoint(out / "checkpoint.pt")["average"]
    names = [name for name, _ in build(TINY_EDM).named_parameters()]
    for name, value in zip(names, average, strict=True):
        assert torch.equal(stored[name], value.half())
    with Image.open(out / "samples.png") as sheet:
        assert sheet.size == (2 * (SIDE + 2) + 2, 3 * (SIDE + 2) + 2)
    before = folder_state(out)
    assert typed(monkeypatch, "tiny-edm", "--steps", 6, "--out", out) == 0
    assert folder_state(out).keys() == before.keys()
    assert folder_state(out)[WEIGHTS] == before[WEIGHTS]


def test_a_card_says_of_which_sets_the_images_are(tmp_path):
    recipe = replace(VP, data={"emoji": 1.0, "emoji:tones": 0.5})
    store.write_network(tmp_path, trained(recipe, 1, tmp_path))
    facts = json.loads((tmp_path / "card.json").read_text())
    assert facts["data"] == "emoji, emoji:tones"
    assert facts["data_licence"] == "Apache-2.0"
    assert facts["num_classes"] == 0


def test_minutes_end_a_training(tmp_path, monkeypatch):
    start = time.perf_counter()
    assert typed(monkeypatch, "tiny-vp", "--minutes", 0.01, "--out", tmp_path / "x") == 0
    facts = json.loads((tmp_path / "x" / "card.json").read_text())["trained"]
    assert 0.6 <= facts["seconds"] < time.perf_counter() - start
    assert facts["steps"] > 1
    last = json.loads((tmp_path / "x" / "log.jsonl").read_text().splitlines()[-1])
    assert last["rate"] == pytest.approx(0.01 * VP.rate)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "name a recipe: tiny-dit"),
        (("tiny-dti", "--steps", 1), "did you mean 'tiny-dit'"),
        (("nowhere.json", "--steps", 1), "cannot read 'nowhere.json'"),
        (("tiny-dit",), "either --minutes or --steps"),
        (("tiny-dit", "--minutes", 1, "--steps", 1), "either --minutes or --steps"),
        (("tiny-dit", "--minutes", 0), "--minutes must be above 0"),
        (("tiny-dit", "--steps", -1), "--steps must be at least 1"),
        (("tiny-dit", "--steps", 1, "--batch", 0), "--batch must be at least 1"),
        (("tiny-dit", "--steps", 1, "--save-every", 0), "--save-every must be above 0"),
        (("tiny-dit", "--steps", 1, "--out", __file__), "is a file"),
    ],
    ids=str,
)
def test_bad_input_is_one_line_and_code_2(words, said, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert typed(monkeypatch, *words) == 2
    told = capsys.readouterr().err
    assert said in told
    assert told.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_missing_data_say_what_fetches_them_and_leave_nothing(monkeypatch, capsys, tmp_path):
    monkeypatch.undo()
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))
    recipe = tmp_path / "mine.json"
    recipe.write_text(write_recipe(replace(DIT, data="cifar10")))
    monkeypatch.setattr(sys, "argv", ["train_network.py"])
    assert command(recipe, "--steps", 1, "--out", tmp_path / "out") == 2
    assert "`fewstep data cifar10` fetches it" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_lack_of_memory_says_what_to_lower(monkeypatch, capsys, tmp_path):
    def step(self, rate):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")

    monkeypatch.setattr(run.Run, "step", step)
    assert typed(monkeypatch, "tiny-dit", "--steps", 3, "--out", tmp_path / "x") == 2
    told = capsys.readouterr().err
    assert "out of memory" in told
    assert "--batch 8" in told


def test_the_list_names_every_recipe(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train_network.py"])
    assert command("--list") == 0
    told = capsys.readouterr().out
    assert all(f"\n{name} " in told for name in table.RECIPES)


# The page.

PAGE = (Path(__file__).parents[1] / "docs" / "training.md").read_text()


def test_the_page_says_what_the_recipes_are():
    for name, recipe in table.RECIPES.items():
        (row,) = (line for line in PAGE.splitlines() if line.startswith(f"| `{name}` "))
        assert f"{parameters_of(recipe) / 1e6:.2f} M" in row
        assert f"| {recipe.prediction} |" in row


def test_the_recipe_on_the_page_is_one(tmp_path):
    path = tmp_path / "page.json"
    path.write_text(PAGE.partition("```json")[2].partition("```")[0])
    recipe = recipe_of(str(path), {})
    assert f"{parameters_of(recipe):,} parameters" in PAGE
    assert float(task.make_nodes(recipe).label.max()) > 900.0


# In processes of their own. The images are made up, so the script is started by a few lines.

DRIVER = f"""
import sys
sys.path[:0] = [{str(RECIPES)!r}, {str(Path(__file__).parent)!r}]
import test_train_network as here
here.pixels.images_of = lambda source: here.halves()
here.task.NODES, here.store.PER_CLASS, here.store.NFE = 2048, 2, 4
here.train_network.RECIPES = here.TINY
here.train_network.main()
"""


def driver(tmp_path):
    path = tmp_path / "driver.py"
    path.write_text(DRIVER)
    return str(path)


@pytest.mark.slow
def test_a_killed_training_goes_on(tmp_path, monkeypatch):
    options = ["tiny-dit", "--steps", "200", "--out", str(tmp_path / "parts")]
    words = [sys.executable, driver(tmp_path), *options, "--save-every", "0.05"]
    threads = str(torch.get_num_threads())  # sums in other parts round otherwise
    child = subprocess.Popen(
        words,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": threads},
    )
    kept = tmp_path / "parts" / loop.CHECKPOINT
    end = time.monotonic() + 100
    while not kept.exists() and time.monotonic() < end:
        time.sleep(0.01)
    child.kill()
    child.wait()
    done = checkpoint.read_checkpoint(kept)["progress"]["steps"]
    assert 0 < done < 200
    assert typed(monkeypatch, *options) == 0
    (tmp_path / "whole").mkdir()
    trained(DIT, 200, tmp_path / "whole")
    same_training(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("recipe", TINY.values(), ids=TINY)
def test_on_a_gpu(recipe, tmp_path):
    """bf16, the fused optimizer, the average, and a step that is skipped."""
    here = run.Run(replace(recipe, batch=64, rate=1e-2, warmup=5, bf16=True))
    assert here.device.type == "cuda"
    fail_at(here, {30, 31})
    loop.train(here, loop.Budget(steps=200), loop.Place(tmp_path, 1e9))
    losses = list(here.progress.losses)
    assert here.progress.skipped == 2
    assert all(each.dtype == torch.float32 for each in here.average)
    again = run.Run(here.recipe)
    checkpoint.restore(again, tmp_path / loop.CHECKPOINT)
    assert again.progress.steps == 200
    assert np.mean(losses[-10:]) < 0.8
    store.write_network(tmp_path, again)
    store.draw(again, tmp_path)
