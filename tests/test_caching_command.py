"""`sample --cache` and `fewstep list caches`: what is typed, printed, stored and replayed."""

import json

import pytest
from PIL import Image
from typer.testing import CliRunner

from fewstep.cli import app
from fewstep.models.caching import FixedMask, cache, names, take_cache
from fewstep.models.registry import parse_spec
from fewstep.samplers.run_record import read_run

COMMAND = ["sample", "fashion-dit", "--solver", "ddim", "--nfe", "6"]
COMMAND += ["--classes", "3", "--per-class", "2"]


def typed(tmp_path, *arguments):
    return CliRunner().invoke(app, [*COMMAND, "--out", str(tmp_path / "grid.png"), *arguments])


def test_a_cached_run_prints_what_was_skipped_and_is_replayed_to_the_bit(tmp_path):
    spec = "taylorseer:interval=3,level=last-block"
    done = typed(tmp_path, "--cache", spec)
    assert done.exit_code == 0, done.output
    assert "taylorseer: 3 of 6 calls skipped" in done.output
    assert "effective NFE 3." in done.output
    run = read_run(tmp_path / "grid.png")
    assert run.cache == spec
    assert spec in Image.open(tmp_path / "grid.png").text["parameters"]
    again = ["sample", "--from-png", str(tmp_path / "grid.png"), "--out", str(tmp_path / "b.png")]
    assert CliRunner().invoke(app, again).exit_code == 0
    pixels = [Image.open(tmp_path / name).tobytes() for name in ("grid.png", "b.png")]
    assert pixels[0] == pixels[1]


def test_json_holds_the_figures_of_the_cache(tmp_path):
    done = typed(tmp_path, "--cache", "fixed-mask:compute=[0,1,4],order=1", "--json")
    figures = json.loads(done.stdout)["ledger"]
    assert figures["cache"]["full"] == 3
    assert figures["effective_nfe"] < 4


def test_off_draws_the_same_pixels(tmp_path):
    typed(tmp_path)
    plain = Image.open(tmp_path / "grid.png").tobytes()
    typed(tmp_path, "--cache", "cg-taylor:threshold=0")
    assert Image.open(tmp_path / "grid.png").tobytes() == plain


BAD = [
    ("tailorseer", "did you mean 'taylorseer'"),
    ("taylorseer:interval=0", "interval must be at least 1"),
    ("taylorseer:intervall=3", "did you mean 'interval'"),
    ("taylorseer:interval", "write taylorseer:key=value"),
    ("cg-taylor:threshold=-1", "threshold of -1"),
    ("cg-taylor:warmup=9", "leaves none to skip"),
    ("fixed-mask:compute=[0,50]", "the run has 6"),
    ("fixed-mask", "compute"),
    ("deepcache", "use taylorseer or cg-taylor"),
    ("teacache", "no coefficients of teacache are published"),
    ("magcache", "no ratios"),
]


@pytest.mark.parametrize(("spec", "text"), BAD)
def test_bad_input_is_one_line_and_exit_code_2(tmp_path, spec, text):
    done = typed(tmp_path, "--cache", spec)
    assert done.exit_code == 2
    assert text in done.output
    assert len(done.output.strip().splitlines()) == 1
    assert not (tmp_path / "grid.png").exists()


def test_a_cache_that_never_fires_is_warned_of(tmp_path):
    done = typed(tmp_path, "--cache", "cg-taylor:threshold=0.000001")
    assert done.exit_code == 0
    assert "warning: cg-taylor skipped none of 6 calls" in done.output


def test_brackets_hold_commas():
    assert parse_spec("fixed-mask:compute=[0,1, 4],order=2") == (
        "fixed-mask",
        {"compute": [0, 1, 4], "order": 2},
    )
    assert take_cache("fixed-mask:compute=[0,2]") == FixedMask(compute=(0, 2))
    assert take_cache("teacache:coefficients=[1,0]") == cache("teacache", coefficients=(1, 0))


def test_the_list_names_all_caches_and_their_settings():
    shown = CliRunner().invoke(app, ["list", "caches"]).output
    assert all(name in shown for name in names())
    assert "interval=4" in shown
    assert "o1=1" in shown
