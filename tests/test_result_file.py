"""`Result.save`: the file of a call in Python is that of the same command."""

import pytest
import torch
from guided import SCALED
from PIL import Image
from safetensors import safe_open
from typer.testing import CliRunner

from fewstep import CFG, Sampler, load, solver, time_grid
from fewstep.cli import sample_app
from fewstep.models.errors import SettingError
from fewstep.samplers import schedule_choice
from fewstep.samplers.run_record import CHUNK, Run, read_run

BASE = {"model": "fashion-dit", "solver": "ddim", "nfe": 4, "seeds": (1, 2), "classes": (2, 5)}
CALL = {"class_labels": [2, 5], "solver": "ddim", "nfe": 2}


@pytest.fixture(scope="module")
def sampler():
    return Sampler.from_pretrained("fashion-dit")


def test_a_picture_is_that_of_the_command(sampler, tmp_path):
    sampler(iter([3, 1]), guidance=CFG(2.0), **CALL).save(tmp_path / "a.png")
    words = ["fashion-dit", "--seeds", "3,1", "--classes", "2,5", "--solver", "ddim", "--nfe", "2"]
    words += ["--cfg-scale", "2", "--out", str(tmp_path / "b.png"), "--quiet"]
    assert CliRunner().invoke(sample_app, words).exit_code == 0
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert read_run(tmp_path / "a.png").classes == (2, 5)


@pytest.mark.parametrize(
    "choices",
    [
        {"nfe": 5},  # the schedule of the package is recorded, not its absence
        {"solver": "unipc-2", "steps": 2, "grid": "karras", "final": "sigma_min"},
        {"solver": "ddim", "nfe": 2, "guidance": CFG(3.0, (0.5, 2.0))},
        {"solver": "ddim", "nfe": 2, "guidance": "apg:scale=3"},
        {"solver": "ddim", "nfe": 3, "cache": "taylorseer:interval=2", "batch": 1},
    ],
    ids=["default", "grid", "interval", "guidance", "cache"],
)
def test_a_recorded_run_gives_the_same_samples(sampler, tmp_path, choices, monkeypatch):
    grid = time_grid("beta", sampler.network.schedule, 5)
    monkeypatch.setattr(schedule_choice, "best_preset", lambda *about: "five")
    monkeypatch.setattr(schedule_choice, "preset", lambda name: solver("unipc-2").encode(grid))
    result = sampler(range(2), class_labels=4, **choices)
    result.save(tmp_path / "a.png")
    run = read_run(tmp_path / "a.png")
    assert run.classes == (4, 4)
    assert (run.schedule is not None) == (choices == {"nfe": 5})
    assert torch.equal(sampler(**run.arguments()).samples, result.samples)


def test_every_guidance_made_from_a_scale_is_recorded_and_repeated(sampler, tmp_path):
    for name in SCALED:
        result = sampler([1], class_labels=4, solver="ddim", nfe=4, guidance=f"{name}:scale=2")
        result.save(path := tmp_path / f"{name}.png")
        assert torch.equal(sampler(**read_run(path).arguments()).samples, result.samples), name


def test_a_record_without_the_defaults_of_its_forecast_has_older_ones(sampler, tmp_path):
    """They were x0 and a warm-up of one step. Pictures name those that they were drawn with."""
    today, old = "space=eps,warmup=3", "space=x0,warmup=1"
    drawn = {
        each: sampler([1, 2], **CALL | {"nfe": 5}, guidance=f"guidance-forecast:{each},scale=3")
        for each in (today, old, "space=eps,warmup=1")
    }
    assert drawn[today].ledger.rows_per_image == 9.0
    for spec, like in {"scale=3": old, "space=eps,scale=3": "space=eps,warmup=1"}.items():
        older = Run(**BASE | {"nfe": 5}, guidance_spec=f"guidance-forecast:{spec}")
        assert torch.equal(sampler(**older.arguments()).samples, drawn[like].samples)
    result = sampler([1, 2], **CALL | {"nfe": 5}, guidance="guidance-forecast:scale=3")
    result.save(tmp_path / "a.png")
    assert torch.equal(result.samples, drawn[today].samples)
    assert read_run(tmp_path / "a.png").guidance_spec == f"guidance-forecast:{today},scale=3"


def test_samples_are_kept_as_they_are(sampler, tmp_path):
    result = sampler([7, 8], **CALL)
    result.save(str(tmp_path / "a.safetensors"))
    with safe_open(str(tmp_path / "a.safetensors"), "pt") as file:
        assert torch.equal(file.get_tensor("samples"), result.samples)
        run = Run.model_validate_json(file.metadata()[CHUNK])
    assert (run.model, run.seeds, run.nfe) == ("fashion-dit", (7, 8), 2)


def test_what_has_no_text_is_written_without_a_record(sampler, tmp_path):
    path = tmp_path / "a.png"
    result = Sampler(load("fashion-dit"))([1], **CALL | {"class_labels": 0})
    with pytest.warns(UserWarning, match="its network was not loaded by a name"):
        result.save(path)
    assert Image.open(path).size == (28 * 36, 28 * 36)  # 2 pixels of white around it
    assert result.grid(zoom=1).size == (36, 36)
    assert result.grid(2, zoom=2).size == (2 * 70, 2 * 36)
    for wrong in ({"columns": 0}, {"zoom": 0}, {"zoom": 101}):
        with pytest.raises(SettingError, match="between 1 and"):
            result.grid(**wrong)
    with pytest.raises(SettingError, match="carries no fewstep run"):
        read_run(path)
    for name, value in (("guidance", CFG(2.0, rescale=0.7)), ("callback", lambda *_: None)):
        with pytest.warns(UserWarning, match=f"carries no record of its run: its {name}"):
            sampler([1], **CALL | {"class_labels": 0, name: value}).save(path)


def test_other_names_are_refused_and_nothing_is_written(sampler, tmp_path):
    result = sampler([1], solver="ddim", nfe=2)
    for name in ("a.jpg", "none/a.png"):
        with pytest.raises(SettingError, match=r"must end in .png, .safetensors|does not exist"):
            result.save(tmp_path / name)
    assert list(tmp_path.iterdir()) == []
