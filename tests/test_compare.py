"""`fewstep.compare`, `fewstep.evaluate` of a network, and the page that shows them."""

import json
import re
import shlex
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from test_plan_file import make_plan_file
from typer.testing import CliRunner

import fewstep
from fewstep import RectifiedFlow, Sampler, from_module
from fewstep.cli import app
from fewstep.eval.comparison_picture import find_limits
from fewstep.eval.comparison_settings import find_scale, parse_setting
from fewstep.models.errors import FewstepError, SettingError, UnknownNameError
from fewstep.samplers.run_settings import RunSettings

PAGE = Path(__file__).parents[1] / "docs" / "your-own-network.md"
CONVERGED = {"solver": "unipc-3", "nfe": 30}
FIVE, TEN = {"solver": "ddim", "nfe": 5}, {"solver": "ddim", "nfe": 10}


def make_network(shape=(3, 8, 8), **facts):
    mean = torch.linspace(-0.8, 0.8, 8)

    def flow(x, time, class_labels=None):
        t = time.reshape(-1, *[1] * (x.ndim - 1))
        shift = 0.0 if class_labels is None else 0.3 * class_labels.reshape(t.shape)
        target = 0.5 * x.tanh() + shift + (mean if x.ndim == 4 else 0.0)
        return (x - target) / t.clamp(min=1e-3)

    facts = {"schedule": RectifiedFlow(time_scale=1), "prediction": "flow", **facts}
    return from_module(flow, shape=shape, **facts)


def test_distances_costs_and_own_metrics_are_what_they_say():
    network = make_network()
    seen = []

    def worst(samples, reference):
        seen.append((samples.shape, reference.shape))
        return (samples - reference).abs().flatten(1).amax(1)

    comparison = fewstep.compare(
        network,
        {"five": FIVE, "ten": TEN},
        seeds=[3, 1],
        converged=CONVERGED,
        metrics={"worst": worst, "two": lambda *_: 2},
        repeats=2,
    )
    five, ten = comparison.runs
    exact = Sampler(network)([3, 1], **CONVERGED).samples
    drawn = Sampler(network)([3, 1], **FIVE).samples
    assert torch.equal(comparison.reference, exact)
    assert torch.equal(five.samples, drawn)
    assert five.distance.value == pytest.approx(float((drawn - exact).square().mean().sqrt()))
    assert (five.to_first.value, ten.ledger.nfe, ten.ms.repeats) == (0.0, 10.0, 2)
    assert ten.to_first.value == pytest.approx(float((ten.samples - drawn).square().mean().sqrt()))
    assert ten.distance.value < five.distance.value
    assert five.figures["worst"] == pytest.approx(
        float((drawn - exact).abs().flatten(1).amax(1).mean())
    )
    assert five.figures["two"] == 2.0
    assert seen == [((2, 3, 8, 8), (2, 3, 8, 8))] * 2
    body = json.loads(comparison.as_json())
    assert body["runs"][1]["distance"]["value"] == ten.distance.value
    assert [line.split("|")[1].strip() for line in comparison.table().splitlines()] == [
        *("setting", "-" * 9, "five", "ten")
    ]


def test_each_setting_is_held_to_the_converged_run_of_its_scale():
    network = make_network(num_classes=2, null_class=2)
    guided = {**FIVE, "guidance": "cfg:scale=2"}
    comparison = fewstep.compare(network, [FIVE, guided], seeds=range(3), converged={"nfe": 30})
    call = {"class_labels": [0, 1, 0]}  # all classes in turn
    for run, extra in zip(comparison.runs, ({}, {"guidance": "cfg:scale=2"}), strict=True):
        exact = Sampler(network)(range(3), **CONVERGED, **call, **extra).samples
        mean = (run.samples - exact).square().mean()
        assert run.distance.value == pytest.approx(float(mean.sqrt()))
    assert comparison.runs[1].name == "solver ddim, nfe 5, guidance cfg:scale=2"
    assert find_scale({"guidance": "cfg:scale=3+interval:low=0.1,high=2"}) == 3.0


def test_the_picture_has_a_row_of_images_for_each_setting_or_a_panel_of_points(tmp_path):
    comparison = fewstep.compare(make_network(), [FIVE], seeds=range(3), converged=TEN, repeats=0)
    comparison.save(tmp_path / "a.png", images=2)
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.height == 2 * (8 * 12 + 16)  # rows of 8 pixels and margins, 8 times, a name
        pixel = comparison.reference[0, :, 0, 7].tolist()
        levels = [min(255, max(0, round(127.5 * (x + 1)))) for x in pixel]
        assert max(levels) > 0
        assert picture.getpixel((8 * (2 + 7) + 4, 16 + 8 * 2 + 4)) == tuple(levels)
    points = fewstep.compare(make_network((2,)), [FIVE], seeds=range(3), converged=TEN)
    points.save(tmp_path / "b.svg")
    assert "<svg" in (tmp_path / "b.svg").read_text()
    limits = find_limits(torch.tensor([[0.0, 0.0], [10.0, 20.0], [torch.nan, 99.0]]))
    assert limits == [[-0.5, 10.5], [-1.0, 21.0]]
    odd = fewstep.compare(make_network((5,)), [FIVE], seeds=range(3), converged=TEN)
    with pytest.raises(SettingError, match=r"shape \(5,\) are neither images nor points"):
        odd.save(tmp_path / "c.png")
    assert not (tmp_path / "c.png").exists()


def test_a_picture_of_points_without_matplotlib_is_refused_before_anything_is_drawn(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "points.py").write_text(
        "import fewstep\ndef never(x, time):\n    raise RuntimeError('it was called')\n"
        "def points():\n    flow = fewstep.RectifiedFlow(time_scale=1)\n"
        "    return fewstep.from_module(never, schedule=flow, prediction='flow', shape=(2,))\n"
    )
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    words = ["compare", "points.py:points", "--setting", "nfe=2", "--out", "a.png"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 2
    assert "matplotlib is not installed; pip install 'fewstep[report]'" in done.output


def test_what_cannot_be_compared_is_refused():
    network = make_network()
    for settings, text in (([], "nothing to compare"), ([FIVE, FIVE], "two settings are alike")):
        with pytest.raises(SettingError, match=text):
            fewstep.compare(network, settings)
    with pytest.raises(SettingError, match=r"metric 'bad' returns numbers of shape \(2, 3, 8, 8\)"):
        fewstep.compare(
            network, [FIVE], seeds=range(2), converged=TEN, metrics={"bad": lambda a, b: a}
        )
    counted, asked = make_network(), []
    forward = counted.forward
    watched = replace(counted, forward=lambda *args: asked.append(1) or forward(*args))
    with pytest.raises(FewstepError, match="nfe"):
        fewstep.compare(watched, [{**FIVE, "nfe": 40}, {**FIVE, "nfe": 0}], seeds=range(2))
    assert len(asked) <= 41  # one seed of the first, and nothing of the converged run
    assert parse_setting("solver=dpmpp-2m:kind=taylor nfe=5 cfg-scale=2") == {
        **{"solver": "dpmpp-2m:kind=taylor", "nfe": 5, "guidance": "cfg:scale=2"}
    }
    with pytest.raises(UnknownNameError, match="no choice 'nef'; did you mean 'nfe'"):
        parse_setting("nef=5")
    for text in ("nfe", "nfe=", "nfe=five"):
        with pytest.raises(SettingError):
            parse_setting(text)


def test_an_evaluation_of_a_network_gives_what_the_function_does(tmp_path):
    network = make_network()

    def brightness(samples):
        return samples.mean()

    table = fewstep.evaluate(network, solvers=["ddim"], nfe=[2, 3], n=4, metric=brightness)
    assert [point.nfe for point in table.points] == [2, 3]
    for point in table.points:
        images = point.rows[0].protocol.images.run
        drawn = Sampler(network)(range(4), solver="ddim", nfe=point.nfe, grid=images.grid)
        assert point.mean == pytest.approx(float(drawn.samples.mean()))
    assert table.table().startswith("brightness, n = 4, lower is better")
    with pytest.raises(SettingError, match="returns a tensor of shape"):
        fewstep.evaluate(network, nfe=2, n=4, metric=lambda samples: samples)
    with pytest.raises(UnknownNameError, match="no option 'nef'"):
        fewstep.evaluate(network, nef=2)
    with pytest.raises(SettingError, match="a store cannot tell one function from another"):
        fewstep.evaluate(network, metric=brightness, store=tmp_path / "a.jsonl")


def test_an_evaluation_by_a_named_metric_is_kept_in_a_store(tmp_path):
    call = {"solvers": ["ddim"], "nfe": 2, "n": 4, "store": tmp_path / "a.jsonl"}
    network = fewstep.load("fashion-dit")
    with pytest.warns(UserWarning, match="too few"):
        (point,) = fewstep.evaluate(network, **call).points
    (again,) = fewstep.evaluate(network, **call).points
    assert (point.rows, point.network) == (again.rows, "fashion-dit")
    assert point.rows[0].protocol.measure.metric == "fd-small"


def test_the_command_prints_the_table_and_draws(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["fashion-dit", "--setting", "nfe=2", "--setting", "nfe=3 cfg-scale=2", "--metric"]
    words += ["psnr", "--seeds", "0-1", "--reference-nfe", "4", "--repeats", "1", "--out", "a.png"]
    done = CliRunner().invoke(app, ["compare", *words, "--classes", "3", "--json"])
    assert done.exit_code == 0, done.output
    first, second = json.loads(done.stdout)["runs"]
    assert (first["nfe"], second["nfe"], second["rows"]) == (2, 3, 6)
    assert first["figures"]["psnr"] > 0
    assert (tmp_path / "a.png").exists()
    for bad, text in (
        (["fashion-dit"], "nothing to compare"),
        (["fashion-dit", "--setting", "solver=dimm"], "no solver 'dimm'"),
        (["fashion-dit", "--setting", "nfe=2", "--classes", "null"], "draws with classes"),
    ):
        done = CliRunner().invoke(app, ["compare", *bad])
        assert (done.exit_code, text in done.output) == (2, True), done.output


BLOCKS = re.findall(r"```(\w+)\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
PARTS = {kind: [body for each, body in BLOCKS if each == kind] for kind in ("python", "sh")}


@pytest.fixture
def _page(tmp_path, monkeypatch):
    """The files of the page, trained for a moment, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    folder = PAGE.parents[1] / "examples"
    shutil.copy(folder / "own_unet.py", tmp_path)
    text = (folder / "own_mlp.py").read_text()
    assert "steps=1500" in text
    (tmp_path / "own_mlp.py").write_text(text.replace("steps=1500", "steps=3"))
    yield
    sys.modules.pop("own_mlp", None)


@pytest.mark.usefixtures("_page")
def test_the_python_of_the_page_runs(tmp_path, capsys):
    names = {}
    exec(PARTS["python"][-1].replace("range(64)", "range(4)").replace("n=64", "n=4"), names)
    assert "gap" in capsys.readouterr().out
    assert (tmp_path / "compared.png").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("_page")
def test_the_commands_of_the_page_run(tmp_path):
    for line in "".join(PARTS["sh"]).splitlines():
        words = shlex.split(re.sub(r"--budget \w+", "--budget candidates=4 --noises 8,4,8", line))
        group, *rest = words if words[0] == "fewstep" else ["", *words]
        done = CliRunner().invoke(app, rest)
        assert done.exit_code == 0, (group, done.output)
    made = {path.name for path in tmp_path.iterdir()}
    assert {"moons.html", "moons.png", "unet.html", "unet.png", "unet.jsonl"} <= made


def test_a_plan_is_evaluated_as_it_is_drawn_with(tmp_path):
    network, path = make_network(), tmp_path / "plan.json"
    settings = RunSettings(solver="ddim", nfe=3, grid="uniform")
    make_plan_file(network, settings).write(path)
    table = fewstep.evaluate(network, plans=[str(path)], n=4, metric=torch.mean)
    drawn = Sampler(network)(range(4), plan=path, batch=2).samples
    assert [(each.nfe, each.setting) for each in table.points] == [(3, "ddim uniform")]
    assert table.points[0].mean == pytest.approx(float(drawn.mean()))
    with pytest.raises(SettingError, match="this plan was made on another network"):
        fewstep.evaluate(make_network(prediction="flow-to-data"), plans=[str(path)], n=4)
    with pytest.raises(SettingError, match="plans bring guidance and cache"):
        fewstep.evaluate(network, plans=[str(path)], n=4, cfg_scales=[2.0])
