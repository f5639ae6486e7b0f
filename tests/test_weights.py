"""What names a network holds the hash of its weights, and is refused on others."""

import json
import shutil
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from fewstep.cli import sample_app
from fewstep.models.checkpoint import WEIGHTS
from fewstep.models.errors import SettingError
from fewstep.models.hashing import hash_file, hash_sampled
from fewstep.models.load import load, read_card
from fewstep.models.schedule import RectifiedFlow
from fewstep.models.weights import REPLACED, hash_weights
from fewstep.samplers.cache_file import CacheFigures, CacheFile
from fewstep.samplers.grid import time_grid
from fewstep.samplers.inversion import Inversion, invert, reconstruct
from fewstep.samplers.run_record import CHUNK, Run
from fewstep.samplers.sampler import Sampler
from fewstep.solvers import solver

QUICK = ["--seeds", "0", "--solver", "ddim", "--nfe", "2", "--quiet"]


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def copy_embedded(name, folder):
    """Puts a copy of an embedded network into a folder."""
    shutil.copytree(str(files("fewstep.models.embedded") / name), folder)


def train(folder):
    """Changes the weights in a folder, and its card with them, as training does."""
    path, card = Path(folder) / WEIGHTS, Path(folder) / "card.json"
    save_file({name: each * 1.02 for name, each in load_file(path).items()}, path)
    card.write_text(json.dumps({**json.loads(card.read_text()), "sha256": hash_file(path)}))


def sample(*words):
    """Runs `sample`; returns its exit code and what it says."""
    result = CliRunner().invoke(sample_app, list(words))
    return result.exit_code, result.output.strip()


def pixels(path):
    with Image.open(path) as image:
        return image.tobytes()


def read_record(path):
    with Image.open(path) as image:
        return json.loads(image.text[CHUNK])


def write_record(path, record):
    chunks = PngInfo()
    chunks.add_text(CHUNK, json.dumps(record))
    Image.new("L", (4, 4)).save(path, pnginfo=chunks)


def test_weights_are_hashed_where_they_are(tmp_path):
    assert hash_weights("fashion-dit") == read_card("fashion-dit")["sha256"]
    assert hash_weights("owner/name") is None
    (tmp_path / "unet").mkdir()
    file = tmp_path / "unet" / "a.safetensors"
    hashes = set()
    for body in (b"one", b"two"):
        file.write_bytes(body)
        hashes.add(hash_weights(str(tmp_path)))
        assert hash_weights(str(tmp_path)) == hash_weights(str(tmp_path), whole=True)
    assert len(hashes) == 2


def test_large_files_are_hashed_in_samples(tmp_path):
    """The size, both ends and the blocks between count; a file of no more bytes counts whole."""
    path, body = tmp_path / "a", bytearray(1000)
    path.write_bytes(body)
    assert hash_sampled(path, 10, 100) == hash_file(path)
    hashes = [hash_sampled(path, 4, 10)]
    for place in (0, 335, 999):
        path.write_bytes(body[:place] + b"\1" + body[place + 1 :])
        hashes.append(hash_sampled(path, 4, 10))
    path.write_bytes(body + b"\0")
    assert len({*hashes, hash_sampled(path, 4, 10)}) == 5


def test_a_picture_of_other_weights_is_drawn_by_force_alone():
    copy_embedded("fashion-unet", "net")
    before = hash_weights("net")
    assert sample("net", *QUICK, "--out", "a.png") == (0, "")
    assert read_record("a.png")["weights"] == {"net": before}
    assert sample("--from-png", "a.png", "--out", "b.png")[0] == 0
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes()

    train("net")
    code, says = sample("--from-png", "a.png", "--out", "c.png")
    assert (code, says.count("\n"), Path("c.png").exists()) == (2, 0, False)
    for part in ("other weights of 'net'", before[:12], hash_weights("net")[:12], "--force"):
        assert part in says
    assert sample("--from-png", "a.png", "--out", "c.png", "--force")[0] == 0
    assert pixels("c.png") != pixels("a.png")
    assert sample("--from-png", "c.png", "--out", "d.png")[0] == 0  # it names the new weights


def test_a_picture_of_the_first_edition_is_known_by_the_hash_that_it_lacks():
    assert set(REPLACED) == {"fashion-dit", "fashion-unet"}
    record = {"seeds": [0], "solver": "ddim", "nfe": 2, "version": "0.1.0"}
    for name in REPLACED:
        write_record("old.png", {"model": name, **record})
        code, says = sample("--from-png", "old.png", "--out", "new.png")
        assert (code, says.count("\n"), Path("new.png").exists()) == (2, 0, False)
        assert f"by older weights of {name}: it holds no hash" in says
        assert sample("--from-png", "old.png", "--out", "new.png", "--force")[0] == 0
        assert read_record("new.png")["weights"] == {name: hash_weights(name)}
        Path("new.png").unlink()
    write_record("old.png", {"model": "fashion-edm", **record})
    assert sample("--from-png", "old.png", "--out", "new.png")[0] == 0


def test_the_weak_network_of_guidance_counts():
    copy_embedded("fashion-unet", "weak")
    words = ["fashion-unet", *QUICK, "--guidance", "auto:network=weak,scale=2", "--out", "a.png"]
    assert sample(*words) == (0, "")
    assert set(read_record("a.png")["weights"]) == {"fashion-unet", "weak"}
    train("weak")
    code, says = sample("--from-png", "a.png", "--out", "b.png")
    assert code == 2
    assert "other weights of 'weak'" in says


def test_force_takes_the_schedule_of_other_weights_too():
    schedule = solver("ddim").encode(time_grid("uniform", RectifiedFlow(), 2))
    facts = {"network_answer": [1.0] * 16, "cfg_scale": 1.0}
    bound = schedule.model_copy(update={"provenance": facts})
    run = Run(model="fashion-edm", seeds=(0,), schedule=bound)
    assert run.bind().schedule == bound
    assert "network_answer" not in run.bind(force=True).schedule.provenance


def test_a_noise_goes_back_through_the_weights_that_found_it():
    copy_embedded("fashion-unet", "net")
    image = torch.sin(torch.arange(1024.0)).reshape(1, 1, 32, 32)
    sampler = Sampler.from_pretrained("net")
    there = invert(sampler, image, nfe=4)
    there.save(Path("n.safetensors"))
    kept = Inversion.load(Path("n.safetensors"), sampler.network.schedule)
    assert (kept.source, kept.weights) == ("net", hash_weights("net"))
    back = reconstruct(sampler, kept).samples
    shutil.copytree("net", "moved")  # the weights count, not their name
    assert torch.equal(reconstruct(Sampler.from_pretrained("moved"), kept).samples, back)
    train("net")
    changed = Sampler.from_pretrained("net")
    with pytest.raises(SettingError, match=r"found by other weights of 'net'.*for_any"):
        reconstruct(changed, kept)
    assert not torch.equal(reconstruct(changed, kept.for_any()).samples, back)
    older = replace(kept, source="fashion-unet", weights=None)  # of the first edition
    assert torch.equal(reconstruct(sampler, older).samples, back)
    with pytest.raises(SettingError, match="found by older weights of fashion-unet"):
        reconstruct(Sampler.from_pretrained("fashion-unet"), older)


def test_a_cache_of_a_network_that_cannot_be_asked_is_held_to_its_weights():
    copy_embedded("fashion-unet", "net")
    file = CacheFile(
        cache="taylorseer:interval=2",
        network="net",
        weights=hash_weights("net"),
        solver="ddim",
        nfe=2,
        metric="rel-l2",
        wanted=0.1,
        figures=CacheFigures(effective=1.0, quality=0.1, images=4),
    )
    run = Run(model="net", seeds=(0,), solver="ddim", nfe=2)
    network = load("net")
    file.check(network, run)
    train("net")
    with pytest.raises(SettingError, match=r"calibrated by other weights of 'net'.*--force"):
        file.check(network, run)
    file.model_copy(update={"weights": None}).check(network, run)
