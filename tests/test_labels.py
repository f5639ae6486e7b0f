"""Classes as they are typed, and what a schedule or a picture says of the run it belongs to."""

import json
from types import SimpleNamespace

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from typer.testing import CliRunner

from fewstep import CFG, Sampler, __version__
from fewstep.cli import sample_app
from fewstep.models.arguments import parse_ranges
from fewstep.models.errors import SettingError
from fewstep.samplers.conditions import parse_classes
from fewstep.samplers.grid import time_grid
from fewstep.samplers.guidance import Interval, PerturbedAttention, Thresholded
from fewstep.samplers.schedule_choice import read_scale
from fewstep.solvers import solver

NETWORK = SimpleNamespace(
    name="clothes", num_classes=3, null_class=3, class_names=("t-shirt", "bag", "boot")
)


def test_names_numbers_and_the_null_class():
    cases = {"t-shirt": [0], "0-1,boot": [0, 1, 2], "bag, 2": [1, 2], "null": None}
    for text, labels in cases.items():
        assert parse_classes(text, NETWORK) == labels
    nameless = SimpleNamespace(name="x", num_classes=3, null_class=None, class_names=())
    assert parse_classes("0-2", nameless) == [0, 1, 2]
    refusals = {
        "3": "classes 0 to 2; no class is",
        "shirt": "known: 0 to 2, or t-shirt",
        "1,null": "or null for none",
    }
    for text, says in refusals.items():
        with pytest.raises(SettingError, match=says):
            parse_classes(text, NETWORK)
    with pytest.raises(SettingError, match="no null class"):
        parse_classes("null", nameless)


def test_ranges_together_hold_a_million_numbers_at_most():
    assert len(parse_ranges("0-499999,0-499999")) == 1_000_000
    for text in ("0-1000000", "0-999999,5", "5-3", "0-" + "9" * 20):
        with pytest.raises(SettingError, match="at most 1,000,000"):
            parse_ranges(text)


def test_the_label_of_the_null_class_is_no_class():
    sampler = Sampler.from_pretrained("fashion-dit")
    for labels in (10, [3, 10]):
        with pytest.raises(SettingError, match="class 10 does not exist"):
            sampler([0, 1], class_labels=labels, nfe=2)


def test_the_command_takes_names_and_null(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(*words):
        result = CliRunner().invoke(sample_app, ["fashion-dit", *words, "--nfe", "2", "--json"])
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)["run"]

    assert run("--classes", "ankle boot,shirt", "--per-class", "2")["classes"] == [9, 9, 6, 6]
    drawn = run("--classes", "null", "--per-class", "3")
    assert "classes" not in drawn
    assert drawn["seeds"] == [0, 1, 2]


def test_the_scale_inside_other_guidance():
    assert read_scale(CFG(1.0)) == 1.0
    assert read_scale(Thresholded(Interval(CFG(2.5), 0.3, 5.0), 0.99)) == 2.5
    assert read_scale(PerturbedAttention(3.0)) == 1.0


def test_a_searched_schedule_keeps_its_guidance_scale():
    sampler = Sampler.from_pretrained("fashion-dit")
    schedule = solver("ddim").encode(time_grid("beta", sampler.network.schedule, 3))
    plain, guided = (
        schedule.model_copy(update={"provenance": {"cfg_scale": scale}}) for scale in (1.0, 2.0)
    )
    for schedule, guidance in ((guided, None), (guided, CFG(3.0)), (plain, CFG(7.0))):
        with pytest.raises(SettingError, match="was searched for guidance scale"):
            sampler([0], solver=schedule, guidance=guidance, class_labels=3)
        result = sampler([0], solver=schedule.for_any(), guidance=guidance, class_labels=3)
        assert result.ledger.nfe == 3
    assert sampler([0], solver=guided, guidance=CFG(2.0), class_labels=3).ledger.nfe == 3


def test_a_picture_of_a_newer_version_is_not_repeated(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = {"model": "fashion-edm", "seeds": [0], "nfe": 2}
    cases = {
        "99.1.0": "made by fewstep 99.1.0, which is newer than this",
        "nonsense": "does not say which version",
        None: "does not say which version",
        __version__: None,
        "0.0.9": None,
    }
    for version, says in cases.items():
        chunks = PngInfo()
        chunks.add_text("fewstep", json.dumps({**run, "version": version}))
        Image.new("L", (4, 4)).save("in.png", pnginfo=chunks)
        result = CliRunner().invoke(sample_app, ["--from-png", "in.png", "--out", "out.png"])
        assert result.exit_code == (2 if says else 0), result.output
        assert (says or "1 image") in result.output
