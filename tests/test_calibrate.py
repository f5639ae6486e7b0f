"""`fewstep calibrate`: what is fitted, what is chosen, what is written."""

import json
import math
from itertools import pairwise

import pytest
import torch
from typer.testing import CliRunner

from fewstep.cli import app
from fewstep.eval.bench.front_table import FrontPoint, FrontRun
from fewstep.eval.cache_calibration import Observed, observe
from fewstep.eval.cache_candidates import list_settings
from fewstep.eval.cache_contest import FURTHER
from fewstep.eval.cache_masks import list_amounts, list_best, list_strategies
from fewstep.eval.cache_slopes import measure_slopes
from fewstep.eval.cache_worth import measure_worth
from fewstep.eval.calibrate import Calibration, Quality
from fewstep.eval.calibration_request import CalibrationRequest
from fewstep.eval.experiments.cache import compare
from fewstep.eval.search.log import Trial
from fewstep.models.architectures.stack import describe
from fewstep.models.caching import MagCache, TeaCache, take_cache
from fewstep.models.denoiser import Network
from fewstep.models.errors import FewstepError, SettingError, UnknownNameError
from fewstep.models.load import load
from fewstep.models.prediction import Prediction
from fewstep.models.schedule import RectifiedFlow
from fewstep.samplers.cache_file import CacheFigures, CacheFile
from fewstep.samplers.grid import time_grid
from fewstep.samplers.sampler import Sampler
from fewstep.solvers import solver
from fewstep.solvers.cached_calls import CachedCalls

CALL = {"class_labels": [0, 1], "solver": "ddim", "nfe": 6}
LITE = "taylorseer:interval=2,level=last-block"


@pytest.fixture(scope="module")
def dit():
    return load("fashion-dit")


@pytest.fixture(scope="module")
def seen(dit):
    return observe(dit, range(2), **CALL)


def test_the_polynomial_is_the_one_that_made_the_changes():
    d = [0.002 * i for i in range(1, 12)]
    p = (900.0, -40.0, 3.0, 0.5, 0.01)
    y = [sum(c * x ** (4 - k) for k, c in enumerate(p)) for x in d]
    assert Observed(d, y).polynomial() == pytest.approx(p, rel=1e-4)
    assert len(Observed(d[:3], y[:3]).polynomial()) == 3
    with pytest.raises(SettingError, match="at least 3 calls"):
        Observed([0.1], [0.1]).polynomial()


def test_what_is_given_is_not_fitted_again(seen):
    mine = TeaCache(coefficients=(1.0, 0.0))
    assert seen.teacache(mine) is mine
    assert seen.magcache(MagCache(ratios=(1.0, 2.0))).ratios == (1.0, 2.0)
    assert len(seen.magcache(MagCache()).ratios) == 6
    assert seen.teacache(TeaCache()).coefficients == seen.polynomial()


def test_signals_are_those_of_the_gate_of_teacache(dit, seen):
    watching = TeaCache(threshold=1e-30, coefficients=(1.0, 0.0), warmup=1, final=0)
    with pytest.warns(UserWarning, match="skipped none"):
        ledger = Sampler(dit)(range(2), cache=watching, **CALL).ledger
    errors = [call.error for call in ledger.cache.calls[1:]]
    assert seen.signal == pytest.approx(errors, rel=1e-5)


def test_ratios_and_outputs_are_what_the_blocks_and_the_network_gave(dit, seen):
    """Noted here by hooks of our own on the first and the last block."""
    blocks, starts, ends, outs = describe(dit.module).blocks, [], [], []
    handles = [
        blocks[0].module.register_forward_pre_hook(lambda m, a: starts.append(a[0].clone())),
        blocks[-1].module.register_forward_hook(lambda m, a, out: ends.append(out.clone())),
        dit.module.register_forward_hook(lambda m, a, out: outs.append(out[0].clone())),
    ]
    Sampler(dit)(range(2), **CALL)
    for handle in handles:
        handle.remove()
    lengths = [(b - a).norm(dim=-1) for a, b in zip(starts, ends, strict=True)]
    ratios = [1.0] + [float((b / a).mean()) for a, b in pairwise(lengths)]
    assert seen.ratios == pytest.approx(ratios, rel=1e-4)
    changes = [float((b - a).abs().sum() / a.abs().sum()) for a, b in pairwise(outs)]
    assert seen.output == pytest.approx(changes, rel=1e-4)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in dit.module.modules())


def test_qualities_are_read_and_have_a_direction():
    assert Quality.parse("psnr=30").met(31.0)
    assert not Quality.parse("psnr=30").met(29.0)
    assert Quality.parse("rel-l2=0.05").met(0.04)
    assert not Quality.parse("rel-l2=0.05").met(0.06)
    with pytest.raises(UnknownNameError, match="rel-l2"):
        Quality.parse("rel-l3=0.05")
    for text in ("psnr", "psnr=much", "psnr=-1", "psnr=nan"):
        with pytest.raises(SettingError, match="is not a quality"):
            Quality.parse(text)


def test_psnr_is_the_mean_over_images():
    target = torch.zeros(2, 1, 4, 4)
    samples = torch.stack([torch.full((1, 4, 4), 0.2), torch.full((1, 4, 4), 0.02)])
    assert compare("psnr to the uncached run", samples, target) == pytest.approx(30.0, abs=1e-4)


class NoBench:
    """Further noises give what the first did, or what `further` says of a policy."""

    remarks = ()

    def __init__(self, further, root):
        self.further, self.root, self.judged = further, root, []

    def judge(self, run, block):
        self.judged.append((run.policy, block))
        figures = self.further[run.policy]
        figures = torch.as_tensor(figures).expand(8) if isinstance(figures, float) else figures
        return figures**2 if self.root else figures


def make_calibration(quality, *points, **further):
    request = CalibrationRequest(network="m", solver="ddim", nfe=10, quality=quality)
    figures = tuple(
        FrontPoint(FrontRun("m", "ddim", 10, f"p{i}"), effective, change=change)
        for i, (effective, change) in enumerate(points)
    )
    known = {each.run.policy: each.change for each in figures}
    bench = NoBench({**known, **further}, quality.startswith("rel"))
    return Calibration(request, bench, figures)


POINTS = ((3.0, 0.2), (5.0, 0.04), (5.0, 0.03), (6.0, 0.01), (8.0, 0.02), (10.0, 0.0))


def name_ranked(calibration):
    return [each.point.run.policy for each in calibration.ranked]


def test_the_cheapest_that_will_do_is_chosen():
    calibration = make_calibration("rel-l2=0.05", *POINTS)
    assert name_ranked(calibration) == ["p2"]
    assert calibration.bench.judged == [("p2", 1), ("p1", 1)]
    front = [each.run.policy for each in calibration.table.front()]
    assert front == ["p0", "p1", "p2", "p3", "p5"]
    with pytest.raises(SettingError, match=r"nearest is p5, 0 at 10.00"):
        name_ranked(make_calibration("rel-l2=0.005", *POINTS))
    decibels = make_calibration("psnr=30", (3.0, 20.0), (5.0, 35.0), (6.0, 40.0), (7.0, 39.0))
    assert name_ranked(decibels) == ["p1"]
    assert [each.run.policy for each in decibels.table.front()] == ["p0", "p1", "p2"]
    with pytest.raises(SettingError, match="no cache was tried"):
        name_ranked(make_calibration("psnr=30"))


def test_further_noises_decide():
    """Between those of one cost, and whether the quality is kept; none is tried without need."""
    turned = make_calibration("rel-l2=0.05", *POINTS, p1=0.02)
    assert name_ranked(turned) == ["p1"]
    assert turned.quality.summarize(turned.ranked[0].figures) == pytest.approx(0.02)
    missed = make_calibration("rel-l2=0.05", *POINTS, p1=0.06, p2=0.07)
    assert name_ranked(missed) == ["p3"]
    assert {block for _, block in missed.bench.judged} == {1}
    noisy = torch.tensor([0.01, 0.04] * 4)
    alike = make_calibration("rel-l2=0.05", *POINTS, p1=noisy, p2=noisy.flip(0))
    assert sorted(name_ranked(alike)) == ["p1", "p2"]
    assert len(alike.bench.judged) == 2 * FURTHER
    assert len(alike.ranked[0].figures) == 8 * FURTHER
    with pytest.raises(SettingError, match=r"keeps rel-l2=0.05 on further noises and"):
        name_ranked(make_calibration("rel-l2=0.05", (5.0, 0.04), p0=0.06))


def test_names_stand_for_their_prepared_settings(dit):
    gates = ("cg-taylor", "first-block", "teacache", "seacache", "easycache", "dicache", "speca")
    for name in (*gates, "magcache", "sencache"):
        assert len(list(list_settings(dit, [name]))) > 1, name
    unet = load("fashion-unet")
    assert len(list(list_settings(unet, ["easycache"]))) > 1
    with pytest.raises(SettingError, match="only of deepcache, easycache, sencache, taylorseer"):
        list(list_settings(unet, ["dicache"]))
    assert list(list_settings(dit, [LITE])) == [LITE]
    assert "deepcache" not in {each.partition(":")[0] for each in list_settings(dit, [])}
    with pytest.raises(SettingError, match="only of cg-taylor, dicache"):
        list(list_settings(dit, ["deepcache"]))
    two = ["taylor", "hermite:order=1,sigma=0.7"]
    assert list(list_settings(dit, [LITE], two)) == [
        f"{LITE},predictor=taylor",
        f"{LITE},predictor=[hermite:order=1,sigma=0.7]",
    ]
    every = list(list_settings(dit, ["taylorseer"], ["all"]))
    assert {take_cache(each).keep.predictor.info.name for each in every} >= {"fitted", "foca"}
    assert all(take_cache(each) for each in list_settings(dit, []))


def typed(*words):
    return CliRunner().invoke(app, ["calibrate", *words])


def test_the_command_writes_a_file_that_sample_takes_and_goes_on_where_it_was(tmp_path):
    out, plot = tmp_path / "c.json", tmp_path / "c.svg"
    words = ["fashion-dit", "--solver", "ddim", "--nfe", "6", "--images", "2", "--out", str(out)]
    words += ["--cache", LITE, "--cache", "magcache:threshold=0.5,max_consecutive=2"]
    words += ["--cache", "deepcache:interval=2", "--quality", "psnr=3", "--plot", str(plot)]
    words += ["--reference-nfe", "12"]
    done = typed(*words)
    assert done.exit_code == 0, done.output
    assert "left out: deepcache:interval=2" in done.output
    kept = (tmp_path / "c.json.figures.jsonl").read_bytes()
    again = typed(*words)
    assert (tmp_path / "c.json.figures.jsonl").read_bytes() == kept
    assert again.exit_code == 0
    assert "asked for" in plot.read_text()
    file = CacheFile.load(out)
    assert (file.metric, file.wanted, file.nfe) == ("psnr", 3.0, 6)
    assert file.cache.startswith("magcache:ratios=[1.0,")
    assert file.figures.effective < 4.0
    line = done.output.strip().splitlines()[-1]
    assert line == f"sample fashion-dit --solver ddim --nfe 6 --cache {out}"
    assert "on 2 other noises" in done.output
    assert "further noises" in done.output
    assert "the cache pays: " in done.output or "the cache does not pay: `sample" in done.output
    nfe = round(file.figures.effective)
    names = [each.run for each in file.held_out.beside]
    assert names == [f"ddim, {nfe} evaluations", f"the default, {nfe} evaluations"]
    drawn = [*line.split(), "--classes", "3", "--per-class", "1", "--out", str(tmp_path / "a.png")]
    assert CliRunner().invoke(app, drawn).exit_code == 0


def test_masks_are_searched_and_stand_beside_plain_runs(tmp_path):
    """The file of a mask says for which run and which network it is, also to `--force`."""
    out = tmp_path / "c.json"
    words = ["fashion-dit", "--solver", "ddim", "--nfe", "6", "--images", "2", "--out", str(out)]
    words += ["--cache", "fixed-mask", "--masks", "mask-even,mask-dp", "--budget", "candidates=12"]
    words += ["--predictor", "reuse", "--quality", "rel-l2=2", "--reference-nfe", "12"]
    done = typed(*words)
    assert done.exit_code == 0, done.output
    rows = [line for line in done.output.splitlines() if line.startswith("| ")]
    assert sum("`fixed-mask:compute=[0" in each for each in rows) >= 3
    plain = [each for each in rows if "ddim, without a cache" in each]
    assert [float(each.split("|")[1]) for each in plain] == [2.0, 3.0, 4.0, 6.0]
    assert all(float(each.split("|")[4]) > 0.0 for each in rows[1:])
    policy = take_cache(CacheFile.load(out).cache)
    assert (policy.calls, policy.parts, len(policy.compute)) == (6, 6, 2)
    assert policy.keep.predictor.info.name == "reuse"
    drawn = ["sample", "fashion-dit", "--solver", "ddim", "--seeds", "0", "--cache", str(out)]
    drawn += ["--out", str(tmp_path / "a.png")]
    refused = CliRunner().invoke(app, [*drawn, "--nfe", "7", "--force"])
    assert (refused.exit_code, "made for runs of 6 calls" in refused.output) == (2, True)
    assert CliRunner().invoke(app, [*drawn, "--nfe", "6"]).exit_code == 0


def test_masks_of_a_calibration_have_the_calls_of_intervals():
    assert list_amounts(30) == [7, 9, 11, 16]
    assert list_amounts(2) == []

    def ask(**choices):
        return list_strategies(CalibrationRequest(network="m", **choices))

    assert ask() == ask(cache=["fixed-mask"]) == ("mask-even", "mask-dp", "mask-climb")
    assert ask(masks="none") == ask(cache=["taylorseer"]) == ()
    assert ask(masks="mask-dp, mask-even") == ("mask-dp", "mask-even")
    for choices, said in (
        ({"masks": "mask-refit"}, "mask-refit does not search masks; take mask-even"),
        ({"masks": "mask-up"}, "no strategy 'mask-up'"),
        ({"masks": "mask-dp", "cache": ["taylorseer"]}, "or give --cache fixed-mask"),
    ):
        with pytest.raises(FewstepError, match=said):
            ask(**choices)


def test_the_best_masks_are_those_of_all_and_of_each_predictor():
    plain = solver("ddim").encode(time_grid("uniform", RectifiedFlow(), 6))

    def tried(score, mask, predictor):
        cache = CachedCalls(compute=mask, predictor=predictor)
        return Trial.of(plain.with_cache(cache), score, strategy="mask-even", seed=0, evals=0)

    trials = [tried(0.1 + 0.1 * i, (0, 1 + i), "foca") for i in range(4)]
    trials += [tried(0.9, (0, 3), "reuse"), tried(math.inf, (0, 4), "taylor:order=1")]
    specs = list_best(trials, ("foca", "reuse", "taylor:order=1"))
    masks = [take_cache(each).compute for each in specs]
    assert masks == [(0, 1), (0, 2), (0, 3), (0, 3)]
    assert [take_cache(each).calls for each in specs] == [None] * 4


def test_a_cache_stands_beside_runs_without_one_on_other_noises(dit):
    """Every figure, by runs made here."""
    file = CacheFile(
        cache=LITE,
        network="fashion-dit",
        solver="ddim",
        nfe=6,
        metric="rel-l2",
        wanted=0.5,
        figures=CacheFigures(effective=3.0, quality=0.1, images=2),
    )
    seeds, call = range(3, 6), {"class_labels": [3, 4, 5]}
    worth = measure_worth(dit, file, seeds, reference_nfe=12)
    sampler = Sampler(dit)
    exact = sampler(seeds, solver="unipc-3", nfe=12, **call).samples

    def distance(target=exact, **choices):
        samples = sampler(seeds, **choices, **call).samples
        return float((samples - target).norm() / exact.norm())

    cached = {"solver": "ddim", "nfe": 6, "cache": LITE}
    plain = sampler(seeds, solver="ddim", nfe=6, **call).samples
    nfe = round(sampler(seeds, **cached, **call).ledger.effective_nfe)
    assert worth.distance.value == pytest.approx(distance(**cached), rel=1e-4)
    assert worth.drift.value == pytest.approx(distance(plain, **cached), rel=1e-4)
    assert worth.uncached.value == pytest.approx(distance(solver="ddim", nfe=6), rel=1e-4)
    for (_, column, ratio), fewer in zip(
        worth.beside, ({"solver": "ddim", "nfe": nfe}, {"nfe": nfe}), strict=True
    ):
        assert column.value == pytest.approx(distance(**fewer), rel=1e-4)
        assert ratio[0] == pytest.approx(worth.distance.value / column.value, rel=1e-6)
    assert worth.held_out().beside[0].ratio == worth.beside[0][2]
    assert next(iter(worth.lines("net"))).startswith("on 3 other noises")


BAD = [
    (("fashion-dit", "--quality", "ssim=1"), "no quality 'ssim'"),
    (("fashion-unet", "--cache", "magcache"), "no settings of 'magcache'"),
    (("fashion-dit", "--cache", "tailor:x=1"), "no cache 'tailor'"),
    (("fashion-dit", "--out", "cache.txt"), "must end in .json"),
    (("fashion-dit", "--solver", "ode-dopri5"), "chooses its steps"),
    (("fashion-dit", "--saving", "0.2"), "--saving belongs to --guidance"),
    (("fashion-dit", "--guidance", "adaptive", "--out", "c.json"), "writes nothing; drop out"),
    (("fashion-dit", "--guidance", "adaptive"), "scale of 1 is no guidance"),
    (("fashion-dit", "--guidance", "cfg", "--cfg-scale", "2"), "only adaptive guidance"),
    (("nowhere",), "nowhere"),
]


@pytest.mark.parametrize(("words", "said"), BAD)
def test_bad_input_is_one_line_and_exit_code_2(tmp_path, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    done = typed(*words)
    assert done.exit_code == 2
    assert said in done.output
    assert len(done.output.strip().splitlines()) == 1
    assert not (tmp_path / "cache.json").exists()


def test_the_threshold_for_a_saving_is_proposed():
    words = ["fashion-dit", "--solver", "ddim", "--nfe", "6", "--cfg-scale", "2", "--images", "4"]
    done = typed(*words, "--guidance", "adaptive:warmup=1,need=1", "--saving", "0.2")
    assert done.exit_code == 0, done.output
    said = next(line for line in done.output.splitlines() if line.startswith("threshold"))
    assert float(said.split()[3]) >= 20.0 - 1e-6
    assert math.isfinite(float(said.split()[1]))
    assert "--guidance adaptive:threshold=" in done.output
    with pytest.raises(FewstepError, match="saves between"):
        raise_of(*words, "--guidance", "adaptive", "--saving", "0.9")


def raise_of(*words):
    raise FewstepError(typed(*words).output)


def test_slopes_are_those_of_a_network_that_is_known():
    """v = 3 x + 2 t of one number in every place: J_x is 3, and J_t 2, at every call."""
    schedule = RectifiedFlow(time_scale=1)

    def forward(x, node, conditions):
        return 3.0 * x + 2.0 * node.t

    network = Network(
        forward=forward, schedule=schedule, prediction=Prediction.FLOW, shape=(1, 4, 4)
    )
    slopes = measure_slopes(network, range(3), solver="ddim", nfe=4, grid="uniform")
    grid = Sampler(network).plan(solver="ddim", nfe=4, grid="uniform").grid
    assert [t for *_, t in slopes] == [node.t for node in grid.nodes[:-1]]
    for by_state, by_time, _ in slopes:
        assert (by_state, by_time) == pytest.approx((3.0, 2.0), rel=1e-4)
    cache = f"sencache:threshold=9,slopes={json.dumps([list(row) for row in slopes])}"
    assert take_cache(cache.replace(" ", "")).slopes == slopes
    with pytest.raises(SettingError, match="no slopes for this"):
        Sampler.from_pretrained("fashion-unet")(range(1), nfe=8, cache="sencache")
    with pytest.raises(SettingError, match="slopes are of a run of 4 calls, and this one has 8"):
        Sampler.from_pretrained("fashion-unet")(range(1), nfe=8, cache=cache.replace(" ", ""))
