"""LinearAG and its fit, calibration, the front, and guidance as it is typed."""

import json
import math

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from fewstep.cli import app, sample_app
from fewstep.eval import guidance_calibration
from fewstep.eval.bench.rows import ResultStore
from fewstep.eval.bench.runner import run_cells
from fewstep.eval.calibration_request import CalibrationRequest
from fewstep.eval.experiments.guidance import GuidanceBench, GuidanceFront, GuidanceTable
from fewstep.eval.guidance_calibration import Similarity, similarity_log
from fewstep.eval.guidance_fit import Fit, FittingGuide, fit
from fewstep.eval.guidance_runs import Images
from fewstep.models.errors import SettingError
from fewstep.models.load import load
from fewstep.models.schedule import RectifiedFlow
from fewstep.samplers.guidance import CFG, AdaptiveGuidance, GuidanceForecast, LinearAG, Moment
from fewstep.samplers.guidance.forecast import Pattern
from fewstep.samplers.guidance.linear_ag import LinearWeights, PastOutputs, fit_weights
from fewstep.samplers.plan import make_plan
from fewstep.samplers.sampler import Sampler

DRAW = torch.Generator().manual_seed(0)


def noise(*shape):
    return torch.randn(*shape, generator=DRAW, dtype=torch.float64)


@pytest.fixture(scope="module")
def network():
    return load("fashion-dit")


@pytest.fixture(scope="module")
def weights(network):
    """For four steps, the second and the fourth of which are forecast."""
    what = Fit(solver="dpmpp-2m", nfe=4, scale=2.0, pattern=Pattern(1, 2))
    return fit(network, what, Images(count=8, batch=5))


# Least squares


def test_known_weights_are_recovered():
    parts = [noise(6, 2, 3) for _ in range(3)]
    target = 0.7 * parts[0] - 1.3 * parts[1] + 0.2 * parts[2]
    assert fit_weights(target, parts, 0.0) == pytest.approx([0.7, -1.3, 0.2], abs=1e-12)
    assert fit_weights(target.float(), [p.float() for p in parts], 1e-9) == pytest.approx(
        [0.7, -1.3, 0.2], abs=1e-5
    )


def test_a_ridge_bounds_the_weights_of_parts_that_are_alike():
    one = noise(6, 2, 3)
    parts = [one, one + 1e-7 * noise(6, 2, 3)]
    target = noise(6, 2, 3)
    assert max(map(abs, fit_weights(target, parts, 0.0))) > 1e3
    assert max(map(abs, fit_weights(target, parts, 1e-4))) < 2.0
    found = fit_weights(2.0 * one, parts, 1e-4)
    assert sum(found) == pytest.approx(2.0, abs=1e-3)


def test_parts_that_are_the_same_are_shared_among():
    one = noise(4, 2)
    assert fit_weights(one, [one, one], 0.0) == pytest.approx([0.5, 0.5])


def test_the_latest_outputs_are_taken():
    past, outputs = PastOutputs(), [noise(2) for _ in range(3)]
    differences = [noise(2), None, noise(2)]
    for cond, difference in zip(outputs, differences, strict=True):
        past.add(cond, difference)
    now = noise(2)
    found = past.list_regressors(now, 2, 2)
    wanted = [differences[2], differences[0], now - outputs[2], now - outputs[1]]
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    assert past.has(2, 3)
    assert not past.has(3, 3)


# LinearAG


def test_weights_are_for_the_skipped_steps_alone(weights):
    assert weights.mask == "1010"
    assert sorted(weights.steps) == [1, 3]
    assert [len(each.d) for each in weights.steps.values()] == [1, 2]
    assert [len(each.c) for each in weights.steps.values()] == [1, 2]
    assert all(
        w == float(f"{w:.9g}") for each in weights.steps.values() for w in (*each.d, *each.c)
    )
    assert all(0.0 < each.error < 1.0 for each in weights.steps.values())


def test_it_samples_at_fewer_rows_and_nearer_than_holding(network, weights):
    sampler, call = Sampler(network), {"class_labels": [3, 5, 8, 1], "nfe": 4, "solver": "dpmpp-2m"}
    true = sampler(range(4), guidance=CFG(2.0), **call).samples
    found = sampler(range(4), guidance=LinearAG(weights), **call)
    held = sampler(range(4), guidance=GuidanceForecast(2.0, mask="1010"), **call)
    assert found.ledger.rows_per_step == held.ledger.rows_per_step == (2, 1, 2, 1)
    assert float((found.samples - true).norm()) < float((held.samples - true).norm())


def test_the_fit_goes_where_later_runs_will_go():
    """At a skipped step the run that is fitted to goes on with the forecast, not with the truth."""
    guide = FittingGuide(Fit(solver="ddim", nfe=2, scale=3.0), (True, False))
    (u0, c0), (u1, c1) = [(noise(2, 1, 3), noise(2, 1, 3)) for _ in range(2)]
    node = RectifiedFlow().at(0.5)
    true = guide.combine([u0, c0], c0, Moment(node, 0))
    torch.testing.assert_close(true, u0 + 3.0 * (c0 - u0))
    found = guide.combine([u1, c1], c1, Moment(node, 1))
    weights = guide.weights[1]
    forecast = weights.d[0] * (c0 - u0) + weights.c[0] * (c1 - c0)
    torch.testing.assert_close(found, c1 + 2.0 * forecast)
    off = float((forecast - (c1 - u1)).norm() / (c1 - u1).norm())
    assert weights.error == pytest.approx(off)


def test_a_file_carries_them(weights, tmp_path):
    path = tmp_path / "w.json"
    path.write_text(weights.model_dump_json())
    assert LinearWeights.load(path) == weights
    assert LinearAG(str(path)).weights == weights


OTHER = [
    ({"nfe": 5}, "another grid"),
    ({"grid": "uniform"}, "another grid"),
    ({"solver": "unipc-2"}, "another solver"),
    ({"solver": "heun", "nfe": 5}, "one evaluation a step"),
]


@pytest.mark.parametrize(("change", "text"), OTHER)
def test_another_run_is_refused(network, weights, change, text):
    call = {"class_labels": 1, "nfe": 4, "solver": "dpmpp-2m", **change}
    with pytest.raises(SettingError, match=text):
        Sampler(network)([0], guidance=LinearAG(weights), **call)


def test_another_network_and_scale_are_refused(network, weights):
    answer = tuple(-value for value in weights.answer)
    other = weights.model_copy(update={"answer": answer, "network": "mine"})
    with pytest.raises(SettingError, match=r"another network \(mine\)"):
        Sampler(network)([0], class_labels=1, nfe=4, solver="dpmpp-2m", guidance=LinearAG(other))
    with pytest.raises(SettingError, match="fitted to scale 2, not 3"):
        LinearAG(weights, 3.0)


@pytest.mark.parametrize("body", ["", "{}", '{"format": "fewstep-schedule"}', "[1]"])
def test_files_that_are_none(tmp_path, body):
    path = tmp_path / "w.json"
    with pytest.raises(SettingError, match="fewstep fit linear-ag"):
        LinearAG(str(path))
    path.write_text(body)
    with pytest.raises(SettingError, match="no weights of linear-ag"):
        LinearAG(str(path))


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"scale": 1.0}, "no guidance"),
        ({"pattern": Pattern(1, 1)}, "skips no step"),
        ({"pattern": Pattern(1, 2, "1011")}, "4 steps"),
        ({"solver": "heun", "nfe": 5}, "several evaluations"),
        ({"solver": "ode-dopri5", "nfe": 5}, "drop nfe"),
        ({"ridge": -1.0}, "ridge"),
        ({"terms": (0, 2)}, "terms"),
    ],
)
def test_what_cannot_be_fitted(network, settings, text):
    with pytest.raises(SettingError, match=text):
        fit(network, Fit(**{"solver": "ddim", "nfe": 6, "scale": 2.0, **settings}), Images(2, 2))


# Calibration

GAMMA = torch.tensor([[0.1, 0.8, 0.95, 0.99, 0.999], [0.1, 0.2, 0.8, 0.9, 0.99]])


def test_a_log_says_where_it_would_stop():
    log = Similarity(GAMMA, "x0")
    assert log.count_guided_steps(0.7, warmup=1, need=1).tolist() == [2, 3]
    assert log.count_guided_steps(0.7, warmup=1, need=2).tolist() == [3, 4]
    assert log.count_guided_steps(0.7, warmup=4, need=2).tolist() == [4, 4]
    assert log.count_guided_steps(1.0).tolist() == [5, 5]
    assert log.saving(0.7, 1, 1) == pytest.approx((3 + 2) / 2 / 10)


def test_the_threshold_to_type_is_not_rounded_up(monkeypatch):
    gamma = torch.tensor([[0.1234567] * 3 + [0.5] * 5])
    log = guidance_calibration.Similarity(gamma.double(), "x0")
    monkeypatch.setattr(guidance_calibration, "similarity_log", lambda *_, **__: log)
    asked = {"nfe": 8, "images": 2, "guidance": "adaptive", "cfg_scale": 2.0, "saving": 0.15}
    request = CalibrationRequest(network="fashion-dit", **asked)
    lines = list(guidance_calibration.propose_threshold(request))
    assert any(line.startswith("threshold 0.123456 saves 31.2 %") for line in lines), lines
    assert "threshold=0.123456,space=x0" in lines[-1]


def test_a_threshold_is_proposed_for_a_saving():
    log = Similarity(GAMMA, "x0")
    found = log.find_threshold(0.25, warmup=1, need=1)
    assert log.saving(found, 1, 1) >= 0.25
    higher = min(g for g in GAMMA.flatten().tolist() if g > found)
    assert log.saving(higher, 1, 1) < 0.25
    for saving in (0.0, 0.5, -1.0):
        with pytest.raises(SettingError, match="saves between 0 and"):
            log.find_threshold(saving)


def test_the_log_predicts_what_a_run_costs(network):
    plan = make_plan(network.schedule, "dpmpp-2m", nfe=6)
    images = Images(count=3, batch=2, first=0)
    log = similarity_log(network, plan, 2.0, images)
    assert log.gamma.shape == (3, 6)
    threshold = float(log.gamma.min(1).values.max()) - 1e-4
    policy = AdaptiveGuidance(2.0, threshold=threshold, warmup=1, need=1, batch="per-sample")
    call = {"class_labels": [0, 1, 2], "nfe": 6, "solver": "dpmpp-2m", "guidance": policy}
    ledger = Sampler(network)(range(3), **call).ledger
    guided = int(log.count_guided_steps(threshold, 1, 1).sum())
    assert ledger.rows == 18 + guided


# The front


def test_the_front_measures_once_and_compares_with_full_guidance(tmp_path):
    policies = ("cfg", "guidance-forecast:warmup=2", "linear-ag:every=2", "adaptive:threshold=0.5")
    front = GuidanceFront(
        models=("fashion-dit",),
        scales=(2.0,),
        policies=policies,
        steps=(3, 4),
        rows=(4, 8),
        images=4,
        reference_nfe=20,
        fit_images=4,
    )
    store = tmp_path / "front.jsonl"
    bench = GuidanceBench(front, ResultStore(store))
    measured = list(run_cells(bench))
    assert len(measured) == 8
    again = GuidanceBench(front, ResultStore(store))
    assert list(run_cells(again)) == []
    table = GuidanceTable()
    (panel,) = table.panels(again.points())
    assert panel.families == ["cfg", "adaptive", "guidance-forecast", "linear-ag"]
    plain = {point.cost: point.error for point in panel.family("cfg")}
    assert set(plain) == {6.0, 8.0}
    assert panel.baseline_error(7.0) == pytest.approx(math.sqrt(plain[6.0] * plain[8.0]))
    assert math.isnan(panel.baseline_error(5.0))
    text = "\n".join(table.lines(again.points()))
    assert "### fashion-dit, CFG 2" in text
    assert "| guidance-forecast |" in text
    rows = list(table.lines(again.points(), "csv"))
    assert len(rows) == 9
    assert all(len(line.split('"')) in (1, 3) for line in rows)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"policies": ("cgf",)}, "did you mean 'cfg'"),
        ({"policies": ("linear-ag:depth=3",)}, "fitted linear-ag takes"),
        ({"solver": "ode-dopri5"}, "own steps"),
        ({"rows": (20, 12)}, "lower to a higher"),
        ({"images": 1}, "images"),
    ],
)
def test_fronts_that_cannot_be_measured(settings, text):
    with pytest.raises((SettingError, LookupError), match=text):
        GuidanceFront(**settings)


# As it is typed


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def sample(*words):
    return CliRunner().invoke(sample_app, [*map(str, words), "--seeds", "0-1", "--nfe", "4"])


def test_a_guidance_is_carried_by_the_picture_and_replays(folder):
    spec = "guidance-forecast:space=eps,warmup=1,scale=2,every=2+interval:low=0.01,high=50"
    result = sample("--guidance", spec, "--solver", "ddim", "--out", "a.png", "--json")
    assert result.exit_code == 0, result.output
    ledger = json.loads(result.stdout)["ledger"]
    assert ledger["rows_per_step"] == [1.0, 2.0, 2.0, 1.0]
    with Image.open("a.png") as image:
        assert f"Guidance: {spec}" in image.text["parameters"]
        assert json.loads(image.text["fewstep"])["guidance_spec"] == spec
    replay = CliRunner().invoke(sample_app, ["--from-png", "a.png", "--out", "b.png"])
    assert replay.exit_code == 0, replay.output
    with Image.open("a.png") as a, Image.open("b.png") as b:
        assert a.tobytes() == b.tobytes()


def test_scale_and_guidance_agree_or_are_refused(folder):
    sample("--guidance", "cfg:scale=2", "--out", "a.png", "--solver", "ddim")
    sample("--cfg-scale", 2, "--out", "b.png", "--solver", "ddim")
    sample("--cfg-scale", 2, "--guidance", "cfg", "--out", "c.png", "--solver", "ddim")
    pictures = [Image.open(f"{name}.png").tobytes() for name in "abc"]
    assert pictures[0] == pictures[1] == pictures[2]
    result = sample("--cfg-scale", 3, "--guidance", "cfg:scale=2")
    assert result.exit_code == 2
    assert "do not agree" in result.output
    assert sample("--cfg-scale", 1, "--guidance", "cfg:scale=2").exit_code == 2


BAD = [
    (["--guidance", "adaptive"], "adaptive needs scale"),
    (["--guidance", "adaptive:scale=2,threshold=2"], "(-1, 1]"),
    (["--guidance", "adaptive:scale=2,treshold=0.9"], "did you mean 'threshold'"),
    (["--guidance", "adaptiv:scale=2"], "did you mean 'adaptive'"),
    (["--guidance", "adaptive:scale"], "key=value"),
    (["--guidance", "interval:low=0,high=1"], "wraps another guidance"),
    (["--guidance", "cfg:scale=2+interval:low=90,high=95"], "covers no step"),
    (["--guidance", "linear-ag:file=none.json"], "cannot read 'none.json'"),
    (["fashion-dit", "--guidance", "auto:scale=2,network=fashion-unet"], "noise process"),
    (["--guidance", "auto:scale=2,network=nothing"], "nothing"),
    (["--guidance", "cfg-pp:scale=0.6", "--solver", "unipc-2"], "ddim or euler"),
    (["--guidance", "guidance-forecast:scale=2,mask=10"], "2 steps, and this run has 4"),
    (["--guidance", "cfg:scale=2", "--cfg-interval", "0.1,5"], "+interval:low=0.1,high=5"),
]


@pytest.mark.parametrize(("words", "text"), BAD, ids=lambda v: str(v)[-40:])
def test_bad_guidance_is_one_line(folder, words, text):
    result = sample("--solver", "ddim", *words)
    assert result.exit_code == 2, result.output
    assert text in result.output
    assert result.output.count("\n") == 1
    assert not list(folder.iterdir())


def test_fitting_from_the_command_line(folder):
    words = ["fit", "linear-ag", "fashion-dit", "--cfg-scale", "2", "--nfe", "4"]
    result = CliRunner().invoke(app, [*words, "--warmup", "1", "--images", "4", "--out", "w.json"])
    assert result.exit_code == 0, result.output
    *_, command = result.output.strip().splitlines()
    assert command == (
        "sample fashion-dit --solver dpmpp-2m --nfe 4 --guidance linear-ag:file=w.json"
    )
    drawn = CliRunner().invoke(sample_app, [*command.split()[1:], "--seeds", "0", "--json"])
    assert json.loads(drawn.stdout)["ledger"]["rows_per_image"] == 6.0
    for extra, text in (
        (["--mask", "1111"], "skips no step"),
        (["--mask", "0101"], "begins with 1"),
        (["--mask", "1010", "--every", "3"], "drop every\n"),
        (["--mask", "1010", "--tail", "0", "--warmup", "1"], "drop tail, warmup"),
        (["--cfg-scale", "nan"], "must be a number, not nan"),
        (["--cfg-scale", "1"], "give --cfg-scale 3"),
        (["--terms", "2"], "write DIFFERENCES,CHANGES"),
        (["--warmup", "0"], "at least 1"),
        (["--solver", "heun", "--nfe", "5"], "several evaluations"),
    ):
        refused = CliRunner().invoke(app, [*words, "--out", "v.json", *extra])
        assert refused.exit_code == 2
        assert text in refused.output
    assert not (folder / "v.json").exists()


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["adaptive", "--cfg-scale", "1"], "give --cfg-scale 3"),
        (["adaptive:threshold=0.9", "--cfg-scale", "2"], "drop threshold"),
        (["adaptive:landing=hold,batch=mean", "--cfg-scale", "2"], "drop batch, landing"),
        (["pag", "--cfg-scale", "2"], "write --guidance adaptive"),
    ],
)
def test_a_calibration_ignores_nothing(words, text):
    refused = CliRunner().invoke(app, ["calibrate", "fashion-dit", "--guidance", *words])
    assert refused.exit_code == 2
    assert text in refused.output.replace("\n", " ")


def test_the_front_from_the_command_line(folder):
    words = ["bench", "guidance", "--model", "fashion-dit", "--cfg-scale", "2", "--steps", "3-4"]
    words += ["--guidance", "guidance-forecast:warmup=2", "--rows", "5-8", "--images", "2"]
    words += ["--reference-nfe", "20", "--plot", "front.png", "--quiet"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert "| cfg |" in result.output
    with Image.open("front.png") as image:
        assert image.size[0] > 400
    for extra, text in (
        (["--table", "xml"], "known: csv, md"),
        (["--plot", "a.gif"], "must end in"),
        (["--guidance", "apq"], "did you mean"),
        (["--store", "no/where.jsonl"], "does not exist"),
    ):
        refused = CliRunner().invoke(app, [*words, *extra])
        assert refused.exit_code == 2
        assert text in refused.output
