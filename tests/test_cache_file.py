"""The file that `fewstep calibrate` writes and `sample --cache` reads."""

import json

import pytest
from PIL import Image
from tiny import fused
from typer.testing import CliRunner

from fewstep.cli import app
from fewstep.models.caching import take_cache
from fewstep.models.errors import FewstepError, SettingError
from fewstep.models.load import load
from fewstep.models.probe import hash_loaded, share_weights, sketch
from fewstep.models.registry import format_spec
from fewstep.models.schedule import RectifiedFlow
from fewstep.samplers.cache_file import CacheFigures, CacheFile, resolve_cache
from fewstep.samplers.grid import choose_default_grid
from fewstep.samplers.run_record import Run, read_run

SPEC = "taylorseer:interval=3,level=last-block"
FIGURES = CacheFigures(effective=3.0, quality=0.1, images=4)


@pytest.fixture(scope="module")
def dit():
    return load("fashion-dit")


@pytest.fixture(scope="module")
def made(dit):
    return CacheFile(
        cache=SPEC,
        network="fashion-dit",
        sketch=sketch(dit),
        solver="ddim",
        nfe=6,
        metric="rel-l2",
        wanted=0.2,
        figures=FIGURES,
    )


def run(**choices):
    usual = {"model": "fashion-dit", "solver": "ddim", "nfe": 6, "seeds": (0,)}
    return Run(**{**usual, **choices})


@pytest.mark.parametrize(
    "spec",
    [
        SPEC,
        "taylorseer",
        "cg-taylor:threshold=0.1,lead=2",
        "fixed-mask:compute=[0,1,4]",
        "magcache:ratios=[1.0,0.9,1.1],threshold=0.1",
        "teacache:coefficients=[2.5,0.0],together=false",
        "deepcache:branch=1",
    ],
)
def test_a_policy_and_its_spec_are_the_same(spec):
    policy = take_cache(spec)
    assert take_cache(format_spec(policy)) == policy
    assert len(format_spec(policy)) <= len(spec)


def test_a_file_is_read_as_it_was_written(made, dit, tmp_path):
    made.write(tmp_path / "c.json")
    assert CacheFile.load(tmp_path / "c.json") == made
    assert resolve_cache(str(tmp_path / "c.json"), dit, run()) == SPEC
    assert resolve_cache("taylorseer", dit, run()) == "taylorseer"


SIX, SEVEN, TEN = (choose_default_grid(RectifiedFlow(), nfe) for nfe in (6, 7, 10))
OTHERS = [
    (
        {"nfe": 7},
        f"ddim on {SIX}, 6 evaluations.*not ddim on {SEVEN}, 7 evaluations.*--nfe 6",
    ),
    ({"nfe": None, "steps": 6}, f"not ddim on {SIX}, other steps.*--nfe 6"),
    ({"solver": "dpmpp-2m"}, "not dpmpp-2m.*--solver ddim"),
    (
        {"solver": None, "nfe": None},
        f"not unipc-2 on {TEN}, 10.*--solver ddim --nfe 6 --grid {SIX}",
    ),
    ({"grid": "karras"}, f"on karras.*type --grid {SIX}"),
    ({"cfg_scale": 2.0}, "guidance 2.*--cfg-scale 1"),
]


@pytest.mark.parametrize(("choices", "said"), OTHERS)
def test_another_run_is_refused_but_not_by_force(made, dit, tmp_path, choices, said):
    made.write(tmp_path / "c.json")
    with pytest.raises(SettingError, match=said):
        resolve_cache(str(tmp_path / "c.json"), dit, run(**choices))
    assert resolve_cache(str(tmp_path / "c.json"), dit, run(**choices), force=True) == SPEC


def test_another_network_is_refused_by_what_it_answers_and_not_by_its_name(made, dit):
    other = made.model_copy(update={"sketch": tuple(-each for each in made.sketch)})
    with pytest.raises(SettingError, match="answers differently; run fewstep calibrate"):
        other.check(dit, run())
    made.model_copy(update={"network": "renamed"}).check(dit, run())
    unknown = made.model_copy(update={"network": "renamed", "sketch": None})
    with pytest.raises(SettingError, match="on renamed, not fashion-dit"):
        unknown.check(dit, run())


def test_fused_weights_are_refused_and_another_precision_is_not(made, dit):
    """Of one layer, whose change a sketch of the answer takes for rounding."""
    known = made.model_copy(update={"loaded": hash_loaded(dit)})
    known.check(dit, run())
    with fused(dit):
        made.check(dit, run())
        with pytest.raises(SettingError, match=r"other weights of fashion-dit: a LoRA.*--force"):
            known.check(dit, run())
    known.check(dit, run())
    for dtype in ("bf16", "fp16"):
        known.check(load("fashion-dit", dtype=dtype), run())
    assert share_weights(None, known.loaded)
    assert not share_weights(("a", "b"), known.loaded)


def test_broken_files_are_refused_in_one_line(made, tmp_path):
    path = tmp_path / "c.json"
    with pytest.raises(SettingError, match="cannot read"):
        CacheFile.load(path)
    body = json.loads(made.model_dump_json())
    for change in ({"version": 2}, {"more": 1}, {"nfe": 0}, {"wanted": "much"}):
        path.write_text(json.dumps({**body, **change}))
        with pytest.raises(
            SettingError, match=rf"not a file of fewstep calibrate.*{next(iter(change))}"
        ):
            CacheFile.load(path)
    path.write_text(json.dumps({**body, "cache": "taylorseer:interval=0"}))
    with pytest.raises(FewstepError, match="interval must be at least 1"):
        CacheFile.load(path)
    path.write_text("{")
    with pytest.raises(SettingError, match="not a file of fewstep calibrate"):
        CacheFile.load(path)


def test_a_default_is_the_grid_that_it_names(made, dit):
    plain = Run(model="fashion-dit", solver=made.solver, nfe=made.nfe, seeds=(0,))
    made.model_copy(update={"grid": SIX}).check(dit, plain)
    made.check(dit, plain.model_copy(update={"grid": SIX}))
    with pytest.raises(SettingError, match=f"type --grid {SIX}"):
        made.check(dit, plain.model_copy(update={"grid": "uniform"}))


def test_sample_takes_the_file_and_its_picture_needs_it_no_more(made, tmp_path):
    file, out = tmp_path / "c.json", tmp_path / "a.png"
    made.write(file)
    words = ["sample", "fashion-dit", "--solver", "ddim", "--classes", "3", "--per-class", "2"]
    words += ["--out", str(out)]
    refused = CliRunner().invoke(app, [*words, "--nfe", "8", "--cache", str(file)])
    assert refused.exit_code == 2
    assert "type --nfe 6" in refused.output
    assert not out.exists()
    done = CliRunner().invoke(app, [*words, "--nfe", "6", "--cache", str(file)])
    assert done.exit_code == 0, done.output
    assert "taylorseer: 3 of 6 calls skipped" in done.output
    file.unlink()
    assert read_run(out).cache == SPEC
    again = ["sample", "--from-png", str(out), "--out", str(tmp_path / "b.png")]
    assert CliRunner().invoke(app, again).exit_code == 0
    assert Image.open(out).tobytes() == Image.open(tmp_path / "b.png").tobytes()
    forced = CliRunner().invoke(app, [*words, "--nfe", "8", "--cache", str(file), "--force"])
    assert "cannot read" in forced.output
