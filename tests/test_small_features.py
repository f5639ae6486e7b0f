"""The small feature networks: weights, references, what they see, and how they are made."""

import importlib.util
import json
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from fewstep.eval.data import DataError, in_memory
from fewstep.eval.experiments.fid_evaluator import make_evaluator
from fewstep.eval.experiments.fid_sweep import Entry, Sweep
from fewstep.eval.extractors import extractor, origin_of
from fewstep.eval.extractors.small import (
    EMOJI,
    FASHION,
    SMALL_CARDS,
    SmallNetwork,
    load_small,
    small_reference,
)
from fewstep.eval.statistics import Moments, frechet
from fewstep.samplers.images import to_uint8
from fewstep.samplers.sampler import Sampler

RECIPES = Path(__file__).parents[1] / "recipes"
EMBEDDED = files("fewstep.eval") / "embedded"
BOTH = pytest.mark.parametrize("card", SMALL_CARDS.values(), ids=SMALL_CARDS)
IMAGES = 100


@pytest.fixture(scope="module")
def small():
    return load_small()


@pytest.fixture(scope="module")
def reference():
    return small_reference()


@pytest.fixture(scope="module")
def samples():
    """uint8 (IMAGES, 1, 32, 32), class i % 10: the nearest to data that comes with the package."""
    labels = [i % 10 for i in range(IMAGES)]
    sampler = Sampler.from_pretrained("fashion-dit")
    drawn = sampler(range(IMAGES), class_labels=labels, solver="unipc-2", nfe=6).samples
    return to_uint8(drawn).permute(0, 3, 1, 2)


def grey(n, side=32):
    g = torch.Generator().manual_seed(n)
    return torch.randint(0, 256, (n, 1, side, side), generator=g, dtype=torch.uint8)


def distance(small, images, reference):
    moments = Moments(small.outputs["pool"])
    moments.update(small(images)["pool"])
    return frechet(moments.statistics(origin_of(small)), reference)


@BOTH
def test_the_weights_are_those_of_the_card_and_small(card):
    small, folder = load_small(card=card), EMBEDDED / card.name
    facts = json.loads((folder / "config.json").read_text())
    assert (facts["name"], facts["sha256"]) == (card.name, small.sha256)
    assert facts["test_accuracy"] > {FASHION: 0.9, EMOJI: 0.65}[card]
    assert facts["features"] == small.outputs["pool"] == 64
    sizes = {each.name: len(each.read_bytes()) for each in folder.iterdir()}
    assert sizes["model.safetensors"] < 300_000
    assert sum(sizes.values()) < 400_000


@BOTH
def test_the_reference_is_of_these_features_and_scaled(card):
    reference = small_reference(card)
    assert reference.origin == origin_of(load_small(card=card))
    assert (reference.n, reference.dim) == ({FASHION: 60_000, EMOJI: 30_000}[card], 64)
    slack = {FASHION: 1e-3, EMOJI: 1.0}[card]  # emoji are scaled to the set, not to equal classes
    np.testing.assert_allclose(reference.mu, 0.0, atol=slack)
    np.testing.assert_allclose(np.diag(reference.cov), 1.0, atol=slack)
    assert np.linalg.eigvalsh(reference.cov)[0] > 1e-5  # so no feature is dead or doubled


@BOTH
def test_they_are_extractors_whose_metrics_know_their_reference(card):
    small, found = load_small(card=card), extractor(card.name.removeprefix("fd-"))
    assert (found.name, found.sha256, found.resize) == (card.name, small.sha256, card.resize)
    sweep = Sweep(metric=card.name, n=50, entries=(Entry(models=("flow",)),))
    measure = make_evaluator(sweep).measure
    assert (measure.metric, measure.reference) == (card.name, card.reference)


def test_features_are_ordinary_float32_and_independent_of_the_batch(small):
    images = grey(5)
    found = small(images)["pool"]
    assert (found.shape, found.dtype) == ((5, 64), torch.float32)
    assert not found.is_inference()
    torch.testing.assert_close(found, torch.cat([small(each[None])["pool"] for each in images]))


def test_28_is_padded_with_zeros_and_equal_channels_are_grey(small):
    images = grey(3, 28)
    found = small(images)["pool"]
    assert torch.equal(found, small(F.pad(images, [2, 2, 2, 2]))["pool"])
    assert torch.equal(found, small(images.expand(-1, 3, -1, -1))["pool"])


def test_other_images_are_refused(small):
    with pytest.raises(DataError, match=r"not 64x32; take another extractor"):
        small(grey(1).repeat(1, 1, 1, 2))
    colour = grey(2).repeat(1, 3, 1, 1)
    colour[1, 2, 5, 5] ^= 1
    with pytest.raises(DataError, match="these have colour"):
        small(colour)
    emoji = load_small(card=EMOJI)
    assert emoji(colour)["pool"].shape == (2, 64)
    with pytest.raises(DataError, match=r"fd-emoji is for images in colour.* such as small"):
        emoji(grey(2))
    with pytest.raises(DataError, match=r"for 32x32 images, not 28x28"):
        emoji(grey(2, 28).repeat(1, 3, 1, 1))


def test_it_knows_the_classes(small, samples):
    guesses = small.network.head(small(samples)["pool"]).argmax(1)
    right = guesses == torch.arange(IMAGES) % 10
    assert right.double().mean() > 0.7


def test_the_distance_rises_with_damage_and_with_missing_classes(small, reference, samples):
    whole = distance(small, samples, reference)
    noise = torch.randn(samples.shape, generator=torch.Generator().manual_seed(0))
    cases = {
        "blur": [blurred(samples, times) for times in (1, 3, 9)],
        "noise": [(samples + by * noise).clamp(0, 255).to(torch.uint8) for by in (5, 15, 45)],
        "shift": [samples.roll(by, 3) for by in (2, 4, 6)],
        "classes": [samples[torch.arange(IMAGES) % 10 < kept] for kept in (8, 7)],
    }
    for name, damaged in cases.items():
        found = [whole, *(distance(small, images, reference) for images in damaged)]
        assert found == sorted(found), name
        assert found[-1] > 1.2 * whole, name


def blurred(images, times):
    x = images.float()
    for _ in range(times):
        x = F.avg_pool2d(F.pad(x, [0, 1, 0, 1]), 2, 1)
        x = F.avg_pool2d(F.pad(x, [1, 0, 1, 0]), 2, 1)
    return x.round().to(torch.uint8)


# The recipe


@pytest.fixture(scope="module")
def recipe():
    spec = importlib.util.spec_from_file_location("recipe", RECIPES / "train_fd_small.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def shapes():
    """Light and dark pictures, as two classes."""
    images = grey(384)
    labels = torch.arange(384) % 2
    images[labels == 0] //= 2
    return in_memory("shapes", images.numpy(), labels)


def test_folding_rounding_and_scaling_keep_what_the_network_says(recipe, shapes):
    torch.manual_seed(1)
    network = recipe.normed(SmallNetwork()).train()
    x = next(shapes.batches(256)).float() / 255.0
    for _ in range(3):
        recipe.logits(network, x)  # moves the norms off their start
    for layer in recipe.layers(network):
        torch.nn.init.uniform_(layer.norm.weight, 0.5, 2.0)
        torch.nn.init.normal_(layer.norm.bias)
    network.eval()
    with torch.no_grad():
        before = network.head(network.scale(network.extract(x)))
        folded = recipe.folded(network)
        torch.testing.assert_close(folded.head(folded(x)), before, rtol=1e-3, atol=1e-4)
        scaled = recipe.scaled(folded, shapes)
        torch.testing.assert_close(scaled.head(scaled(x)), before, rtol=1e-3, atol=1e-4)
        every = torch.cat([scaled(each.float() / 255.0) for each in shapes.batches()])
    torch.testing.assert_close(every.mean(0), torch.zeros(64), atol=1e-3, rtol=0)
    torch.testing.assert_close(every.std(0), torch.ones(64), atol=1e-3, rtol=0)


def test_training_goes_on_from_the_last_epoch(recipe, shapes, tmp_path, monkeypatch):
    whole = recipe.fit(shapes, 2, tmp_path / "whole.pt")
    keep = recipe.keep

    def kept_then_killed(*args):
        keep(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(recipe, "keep", kept_then_killed)
    with pytest.raises(KeyboardInterrupt):
        recipe.fit(shapes, 2, tmp_path / "killed.pt")
    monkeypatch.setattr(recipe, "keep", keep)
    resumed = recipe.fit(shapes, 2, tmp_path / "killed.pt")
    for name, each in whole.state_dict().items():
        torch.testing.assert_close(each, resumed.state_dict()[name], msg=name)


def test_what_is_written_is_what_was_measured(recipe, shapes, tmp_path):
    torch.manual_seed(2)
    network = recipe.halved(SmallNetwork())
    recipe.write(network, tmp_path, 1, 0.5, FASHION)
    stored = SmallNetwork()
    weights = load_file(tmp_path / "model.safetensors")
    stored.load_state_dict({name: each.float() for name, each in weights.items()})
    x = next(shapes.batches(8)).float() / 255.0
    with torch.no_grad():
        torch.testing.assert_close(stored(x), network(x))


def test_the_edge_goes_on_where_an_image_was_shifted(recipe):
    images = torch.full((32, 3, 32, 32), 255, dtype=torch.uint8)
    images[:, 1, 5:9, 5:9] = 0
    moved = recipe.moved(images, torch.Generator().manual_seed(0))
    assert torch.equal(moved.flatten(2).long().sum(2), images.flatten(2).long().sum(2))


def test_augmented_images_are_shifted_and_mirrored_whole(recipe):
    images = torch.zeros(64, 1, 32, 32, dtype=torch.uint8)
    images[:, :, 10:20, 8:12] = 1
    images[:, :, 10, 8] = 2
    moved = recipe.moved(images, torch.Generator().manual_seed(0))
    assert moved.shape == images.shape
    assert torch.equal(moved.flatten(1).sum(1), images.flatten(1).sum(1))
    rows, columns = (moved == 2).nonzero()[:, 2:].T
    assert set(rows.tolist()) == {8, 9, 10, 11, 12}
    assert set(columns.tolist()) == {*range(6, 11), *range(21, 26)}
