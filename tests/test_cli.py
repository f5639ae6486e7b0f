"""The commands as typed: what they write, and one clear line for every bad input."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from typer.testing import CliRunner

from fewstep.cli import app, sample_app
from fewstep.models.schedule import EDM, RectifiedFlow
from fewstep.samplers.grid import time_grid
from fewstep.samplers.run_record import read_run
from fewstep.solvers import solver

FLOW = RectifiedFlow()
QUICK = ["--nfe", "2", "--seeds", "0-3"]


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def sample(*words):
    return CliRunner().invoke(sample_app, [str(word) for word in words])


def refused(result, *parts):
    """Asserts exit code 2 and a single error line that contains the parts."""
    assert result.exit_code == 2, result.output
    text = result.output.strip()
    assert text.startswith("error: ")
    assert "\n" not in text
    for part in parts:
        assert part in text
    return text


def test_sample_draws_a_grid_and_prints_the_ledger(tmp_path):
    result = sample("--nfe", 3)
    assert result.exit_code == 0, result.output
    assert re.search(r"18 images \| NFE 3 \| 6 network rows per image \| 3 calls", result.output)
    with Image.open("samples.png") as image:
        assert image.size == (5 * (6 * 34 + 2), 5 * (3 * 34 + 2))  # about 1,000 pixels wide
    assert [path.name for path in tmp_path.iterdir()] == ["samples.png"]


def test_emoji_are_shown_with_guidance_where_nothing_else_is_typed():
    def run(*words):
        return json.loads(sample("--nfe", 2, "--json", *words).stdout)["run"]

    shown = run("--seeds", "0-3")
    assert shown["model"] == "emoji"
    assert (shown["classes"], shown["cfg_scale"]) == ([6, 2, 5, 6], 2.0)
    assert run("--seeds", "0", "--classes", "flags", "--cfg-scale", 1)["cfg_scale"] == 1.0
    assert run("--classes", "null", "--per-class", 1)["cfg_scale"] == 1.0
    assert run("--seeds", "0", "--guidance", "cfg:scale=1.5")["cfg_scale"] == 1.0
    grey = run("fashion-dit", "--seeds", "0-3")
    assert (grey["classes"], grey["cfg_scale"]) == ([0, 1, 2, 3], 1.0)


FEW = "grid beta:alpha=0.8,beta=0.8,shift=1.2"
BY_ITSELF = "searched for this network and NFE, and taken by itself; --solver takes another"
LAST_LINES = {
    "--nfe 2": f"solver unipc-2 | {FEW} | CFG scale 2",
    "fashion-dit --nfe 5": f"schedule fashion-dit-nfe5 | {BY_ITSELF}",
    "fashion-dit --nfe 2 --solver ddim --cfg-scale 2 --cfg-interval 0,3": f"solver ddim | {FEW}"
    " | CFG scale 2 | CFG interval 0 to 3",
    "fashion-dit --schedule fashion-dit-nfe8": "schedule fashion-dit-nfe8 | from fashion-dit-nfe8",
    "--from-png samples.png": "schedule fashion-dit-nfe8 | as in samples.png",
    "fashion-dit --solver ddim --times 0.9,0 --guidance cfg:scale=1.5": "solver ddim | grid 0.9,0"
    " | guidance cfg:scale=1.5",
    "fashion-dit --schedule file.json": "schedule of 3 evaluations | from file.json",
}


def test_the_last_line_says_what_was_run_and_who_chose_it():
    Path("file.json").write_text(solver("unipc-3").encode(time_grid("beta", FLOW, 3)).dump())
    for words, last in LAST_LINES.items():
        given = words.split()
        more = ["--out", "again.png"] if "--from-png" in given else ["--seeds", "0"]
        assert sample(*given, *more).stdout.splitlines()[-1] == last


def test_classes_fill_rows():
    result = sample("--nfe", 2, "--classes", "3,5-6", "--per-class", 5, "--json")
    run = json.loads(result.stdout)["run"]
    assert run["classes"] == [3] * 5 + [5] * 5 + [6] * 5
    assert run["seeds"] == list(range(15))
    with Image.open("samples.png") as image:
        assert image.size == (6 * (5 * 34 + 2), 6 * (3 * 34 + 2))


def test_json_counts_guidance_in_rows():
    result = sample(*QUICK, "--cfg-scale", 2, "--json")
    ledger = json.loads(result.stdout)["ledger"]
    assert (ledger["nfe"], ledger["rows_per_image"], ledger["calls"]) == (2, 4, 2)


def test_guidance_interval_costs_only_inside():
    result = sample("--nfe", 4, "--seeds", 0, "--cfg-scale", 2, "--cfg-interval", "0.5,2", "--json")
    ledger = json.loads(result.stdout)["ledger"]
    assert ledger["nfe"] == 4
    assert 4 < ledger["rows_per_image"] < 8


def test_a_preview_is_for_terminals():
    result = sample(*QUICK, "--preview", "--quiet")
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == "no preview: the output goes to no terminal\n"


def test_quiet_prints_nothing():
    assert sample(*QUICK, "--quiet").output == ""


def test_metadata_is_readable_and_replays_to_the_bit():
    sample("fashion-unet", *QUICK, "--cfg-scale", 1.5, "--grid", "karras:rho=5", "--out", "a.png")
    with Image.open("a.png") as image:
        assert "NFE: 2, CFG scale: 1.5, Seed: 0-3, Model: fashion-unet" in image.text["parameters"]
        assert json.loads(image.text["fewstep"])["seeds"] == [0, 1, 2, 3]
    assert sample("--from-png", "a.png", "--out", "b.png").exit_code == 0
    with Image.open("a.png") as a, Image.open("b.png") as b:
        assert a.tobytes() == b.tobytes()
        assert a.text == b.text


def test_a_picture_is_repeated_when_the_defaults_are_others(monkeypatch):
    sample("fashion-dit", "--nfe", 12, "--seeds", "0-3", "--out", "a.png")
    run = read_run(Path("a.png"))
    assert (run.solver, run.grid, run.nfe) == ("unipc-2", "beta:shift=1.5", 12)
    monkeypatch.setattr("fewstep.samplers.grid.FEW", {"flow": ((12, "uniform"),)})
    assert sample("--from-png", "a.png", "--out", "b.png").exit_code == 0
    sample("fashion-dit", "--nfe", 12, "--seeds", "0-3", "--out", "c.png")
    a, b, c = (Image.open(f"{name}.png").tobytes() for name in "abc")
    assert a == b != c


def test_times_are_the_grid_and_replay():
    sample("--seeds", "0-3", "--solver", "ddim", "--times", "0.9,.45,0", "--out", "a.png")
    sample("--seeds", "0-3", "--solver", "ddim", "--grid", "uniform:start=.9", "--nfe", 2)
    with Image.open("a.png") as a, Image.open("samples.png") as b:
        assert a.tobytes() == b.tobytes()
        assert json.loads(a.text["fewstep"])["grid"] == [0.9, 0.45, 0.0]
    assert sample("--from-png", "a.png", "--out", "c.png").exit_code == 0
    with Image.open("a.png") as a, Image.open("c.png") as c:
        assert a.tobytes() == c.tobytes()


def test_saved_images_are_the_cells_of_the_grid_whatever_its_zoom_and_replay():
    words = ["--nfe", 2, "--classes", "7", "--per-class", 2, "--seed", 5, "--save-images", "all/of"]
    sample(*words, "--zoom", 3, "--class-names")
    enlarged = Image.open("samples.png")
    enlarged.load()
    assert sample("--from-png", "samples.png", "--out", "one.png", "--zoom", 1).exit_code == 0
    with Image.open("all/of/000006-7.png") as image, Image.open("one.png") as grid:
        assert image.tobytes() == grid.crop((36, 2, 68, 34)).tobytes()
        assert grid.text == enlarged.text
        margin = enlarged.width - 3 * grid.width
        pixels = enlarged.crop((margin, 0, *enlarged.size))
        assert pixels.tobytes() == grid.resize(pixels.size, Image.Resampling.NEAREST).tobytes()
        name = enlarged.crop((0, 0, margin, enlarged.height)).convert("L")
        assert 20 < margin < 200
        assert name.getextrema() == (0, 255)
    assert sample("--from-png", "all/of/000006-7.png", "--out", "one.png").exit_code == 0


def test_schedule_file_gives_what_its_solver_gives(tmp_path):
    grid = time_grid("uniform", RectifiedFlow(), 3)
    (tmp_path / "s.json").write_text(solver("unipc-3").encode(grid).dump())
    sample("--schedule", "s.json", "--seeds", "0-3", "--out", "a.png")
    sample(
        "--cfg-scale",
        1,
        "--solver",
        "unipc-3",
        "--grid",
        "uniform",
        "--nfe",
        3,
        "--seeds",
        "0-3",
        "--out",
        "b.png",
    )
    with Image.open("a.png") as a, Image.open("b.png") as b:
        assert a.tobytes() == b.tobytes()
        assert json.loads(a.text["fewstep"])["schedule"]["nfe"] == 3
    assert sample("--from-png", "a.png", "--out", "c.png").exit_code == 0


def list_names(*words, columns="80"):
    result = CliRunner().invoke(app, ["list", *words], env={"COLUMNS": columns})
    assert result.exit_code == 0, result.output
    return result.output


def test_list_alone_explains_every_list_and_each_fits_a_narrow_terminal():
    from fewstep.commands.catalogue import LISTINGS, RECOMMENDED, recommend
    from fewstep.commands.lists import KINDS

    assert KINDS.keys() == LISTINGS.keys() > RECOMMENDED.keys()
    overview = list_names()
    for kind, listing in LISTINGS.items():
        assert f" {kind} " in overview
        shown, names = list_names(kind), [row[0] for row in listing()[1:]]
        assert max(map(len, shown.splitlines())) <= 80
        starts = [line.split()[:2] for line in shown.splitlines() if line.strip()]
        for name in names:
            marked = [name, "*"] in starts
            assert marked == (name in recommend(kind)), name
            assert marked or name in [words[0] for words in starts]
        assert recommend(kind).keys() <= set(names)
    assert "Returns" not in list_names("grids")
    assert list_names("networks") == list_names("models")
    refused(CliRunner().invoke(app, ["list", "solver"]), "did you mean 'solvers'")


def test_a_list_in_a_pipe_has_a_line_for_each_name_with_all_of_it(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    lines = CliRunner().invoke(app, ["list", "solvers"]).output.splitlines()
    (line,) = (line for line in lines if line.split()[:1] == ["ddim"])
    assert "dpmpp-1m" in line
    assert "eq. 12 with eta = 0" in line


def test_recommended_are_the_defaults():
    from fewstep.commands.catalogue import RECOMMENDED, recommend
    from fewstep.models.registry import parse_spec
    from fewstep.models.schedule import VPLinear
    from fewstep.samplers.grid import choose_default_grid
    from fewstep.samplers.plan import DEFAULT_SOLVER

    assert DEFAULT_SOLVER in RECOMMENDED["solvers"]
    processes, budgets = (VPLinear(), EDM(), RectifiedFlow()), (5, 8, 10, 15, 30, None)
    grids = {parse_spec(choose_default_grid(p, n))[0] for p in processes for n in budgets}
    assert grids == RECOMMENDED["grids"].keys()
    assert "fashion-dit-nfe5" in recommend("schedules")
    assert "ays-sd15-nfe10" not in recommend("schedules")


def test_version():
    from fewstep import __version__

    assert CliRunner().invoke(app, ["--version"]).output == f"fewstep {__version__}\n"


def test_sample_is_also_a_command_of_fewstep():
    assert CliRunner().invoke(app, ["sample", *QUICK]).exit_code == 0


BAD = [
    (["--solver", "unipc2"], "no solver 'unipc2'", "did you mean 'unipc-2'"),
    (["--solver", "unipc"], "no solver 'unipc'", "did you mean 'unipc-2'"),
    (["--solver", "unipc3"], "no solver 'unipc3'", "did you mean 'unipc-3'"),
    (["--solver", "unipc-2:order=3"], "no setting of unipc-2 'order'", "known:"),
    (["--solver", "unipc-2:solver_type=bh3"], "unipc-2", "solver_type", "bh3"),
    (["--solver", "ddim:order=3"], "ddim has no settings"),
    (["--solver", "unipc-2:bh1"], "'bh1'", "key=value"),
    (["--grid", "karas"], "no grid 'karas'", "did you mean 'karras'"),
    (["--grid", "karras:rho=-1"], "rho"),
    (["--grid", "uniform:rho=1"], "uniform", "rho"),
    (["--final", "none"], "no end rule 'none'", "zero"),
    (["fashion-net"], "did you mean 'fashion-", "no hub id"),
    (["--classes", "9-12"], "class 9", "0 to 8", "null"),
    (["--classes", "9"], "class 9 does not exist", "0 to 8", "null"),
    (["--classes", "3,null"], "no class 'null'", "smileys", "null for none"),
    (["--classes", "a-b"], "'a-b'", "0 to 8", "smileys"),
    (["--classes", ""], "an empty string"),
    (["--nfe", "10001"], "at most 10,000", "float32"),
    (["--steps", "1" + "0" * 20], "at most 10,000", "float32"),
    (["--seeds", "0-1000000"], "1,000,000"),
    (["--per-class", "333334"], "1000002 images", "1,000,000"),
    (["--cfg-scale", "1e39"], "within 1e+06"),
    (["--device", "meta"], "device 'meta' cannot be used"),
    (["--classes", "5-3"], "must rise"),
    (["--per-class", "0"], "--per-class"),
    (["--seeds", "0-3", "--classes", "1,2", "--per-class", "3"], "4 images", "6"),
    (["--seeds", "99999999999999999999"], "2^63"),
    (["--seed", "-1"], "seed -1"),
    (["--seed", "3", "--seeds", "0-3"], "not both"),
    (["--cfg-interval", "0.3,5", "--cfg-scale", "1"], "scale other than 1"),
    (["--nfe", "0"], "nfe must be at least 1"),
    (["--steps", "0"], "at least 1 step"),
    (["--nfe", "4", "--steps", "4"], "not both"),
    (["--solver", "heun", "--nfe", "8"], "heun", "7 or 9"),
    (["--batch", "0"], "batch"),
    (["--cfg-scale", "nan"], "1 is off"),
    (["--cfg-scale", "2", "--cfg-interval", "5,1"], "empty"),
    (["--cfg-interval", "5"], "LOW,HIGH"),
    (["--threshold", "1.5"], "(0, 1]", "0.995"),
    (["--dtype", "fp8"], "no dtype 'fp8'", "bf16"),
    (["--device", "quantum"], "device 'quantum'", "try cpu"),
    (["--out", "no/such/folder.png"], "does not exist"),
    (["--out", "."], "folder"),
    (["--schedule", "none.json"], "none.json"),
    (["--from-png", "none.png"], "cannot read 'none.png'", "no such file"),
    (["fashion-dit", "--from-png", "a.png", "--nfe", "3"], "as it was; drop model, nfe"),
    (["--save-images", "new/folder", "--nfe", "0"], "nfe must be at least 1"),
    (["--zoom", "0"], "--zoom"),
    (["--zoom", "2", "--out", "a.safetensors"], "--zoom is for pictures", ".png"),
    (["--class-names", "--seeds", "0-3"], "a class for each row", "--per-class"),
    (["--class-names", "--classes", "null"], "no classes"),
]


@pytest.mark.parametrize("words", BAD, ids=lambda words: " ".join(words[0]))
def test_bad_input_gets_one_line_and_leaves_nothing(words, tmp_path):
    refused(sample(*words[0]), *words[1:])
    assert list(tmp_path.iterdir()) == []


def test_a_file_where_a_folder_should_be(tmp_path):
    (tmp_path / "taken").write_text("")
    refused(sample(*QUICK, "--save-images", "taken"), "cannot create folder")


def test_corrupt_pictures(tmp_path):
    sample(*QUICK, "--out", "good.png")
    whole = (tmp_path / "good.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.png").write_text("no picture")
    Image.new("L", (4, 4)).save("plain.png")
    for name in ("cut.png", "text.png"):
        refused(sample("--from-png", name), "not a readable picture")
    refused(sample("--from-png", "plain.png"), "no fewstep run")


@pytest.mark.parametrize("text", ["{", "[]", '{"model": "fashion-dit", "seeds": []}', '{"x": 1}'])
def test_damaged_metadata(text):
    chunks = PngInfo()
    chunks.add_text("fewstep", text)
    Image.new("L", (4, 4)).save("odd.png", pnginfo=chunks)
    refused(sample("--from-png", "odd.png"), "damaged")


def test_schedules_that_do_not_fit(tmp_path):
    schedule = solver("ddim").encode(time_grid("karras", EDM(), 3))
    (tmp_path / "edm.json").write_text(schedule.dump())
    refused(sample("--schedule", "edm.json"), "made for process edm", "flow")
    (tmp_path / "cut.json").write_text(schedule.dump()[:40])
    refused(sample("--schedule", "cut.json"), "not a valid schedule")
    rising = json.loads(schedule.dump())
    rising["t"][0] = 0.001
    (tmp_path / "rising.json").write_text(json.dumps(rising))
    refused(sample("--schedule", "rising.json"), "a time grid must fall")
    refused(sample("--schedule", "edm.json", "--nfe", 3), "a schedule decides the steps")
    refused(sample("--schedule", "edm.json", "--final", "denoise"), "a schedule decides the steps")
    refused(sample("--schedule", "edm.json", "--solver", "ddim"), "drop the solver")
    flow = solver("ddim").encode(time_grid("beta", RectifiedFlow(), 3))
    flow = flow.model_copy(update={"provenance": {"cfg_scale": 2.0}})
    (tmp_path / "two.json").write_text(flow.dump())
    refused(sample("--schedule", "two.json"), "guidance scale 2", "has 1 ", "--force")
    refused(sample("--schedule", "two.json", "--cfg-scale", 7), "guidance scale 2,", "has 7 ")


def test_unconditional_networks_refuse_guidance_and_classes(tmp_path):
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    unet = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    )
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(tmp_path / "pipe")
    assert sample("pipe", *QUICK).exit_code == 0
    refused(sample("pipe", *QUICK, "--cfg-scale", 2), "no unconditional branch")
    refused(sample("pipe", *QUICK, "--classes", "1"), "no classes")


def test_nan_from_the_network_is_reported_and_nothing_written(tmp_path, monkeypatch):
    from fewstep.models import load as loading

    real = loading.load

    def broken(*args, **kwargs):
        from dataclasses import replace

        network = real(*args, **kwargs)
        return replace(network, forward=lambda x, node, conditions: x * float("nan"))

    monkeypatch.setattr(loading, "load", broken)
    refused(sample(*QUICK), "NaN", "t=1")
    assert list(tmp_path.iterdir()) == []


def test_help_is_instant_and_errors_leave_the_shell_with_2():
    command = [sys.executable, "-m", "fewstep.cli", "sample", "--solver", "nope"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: no solver 'nope'")


def test_a_user_with_an_empty_home_draws_and_leaves_it_empty(tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    code = "import sys; from fewstep.cli import sample_app; sample_app(sys.argv[1:])"
    words = ["--seeds", "0", "--nfe", "2", "--out", str(tmp_path / "a.png")]
    command = [sys.executable, "-c", code, *words]
    done = subprocess.run(command, env={**kept, "HOME": str(home)}, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "1 images | NFE 2" in done.stdout
    assert (tmp_path / "a.png").is_file()
    assert list(home.iterdir()) == []
