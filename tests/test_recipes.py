"""Recipes measure what they say."""

import math
from pathlib import Path
from types import SimpleNamespace

import compare_results
import numpy as np
import pytest
import test_claims
import torch
from accept_cifar import gather
from brute_force_grid import Grid
from choose_defaults import choose, compare_features, rate
from compare_distilled import UPDATES, compare, compare_sprint, compare_update
from draw_front import choose_columns
from measure_networks import find_clean_share, format_blocks
from measure_tint import find_background, find_slope
from more_evaluations import compare_with_least, count_worse, format_ratio, format_rows
from test_fid_nfe import Projection
from test_tune_page import make_report
from write_results import write_page

from fewstep.eval.bench.stamp import find_stale
from fewstep.eval.data import images_of
from fewstep.eval.experiments.distances import Distance, DistantRun
from fewstep.eval.experiments.scaling import ScalingRow
from fewstep.eval.experiments.speed import SpeedRow
from fewstep.eval.tune.costs import predict_ms
from fewstep.eval.tune.report import CostParts, TuneReport
from fewstep.models.load import load
from fewstep.samplers.plan_file import Spread
from fewstep.samplers.recipes import list_recipes


def test_every_recipe_and_update_agrees_with_diffusers_as_their_page_says():
    """If the page is stale: make recipes-page."""
    page = (Path(__file__).parents[1] / "docs" / "recipes.md").read_text()
    rows = [compare_sprint() if "sprint" in name else compare(name) for name in list_recipes()]
    for *cells, off in rows + [compare_update(spec) for spec in UPDATES]:
        assert f"| {' | '.join(cells)} |" in page
        assert float(off) < 1e-5, cells[0]


def test_the_clean_share_counts_two_rows_above_and_below():
    pixels = torch.zeros(2, 1, 32, 32, dtype=torch.uint8)
    assert find_clean_share(pixels) == 1.0
    pixels[:, :, 2:-2] = 200  # the middle does not count
    pixels[0, 0, 1, :16] = 1  # 16 of 256 outer pixels
    assert find_clean_share(pixels) == 1.0 - 16 / 256
    assert find_clean_share(255 - pixels) == 1.0 - 16 / 256
    assert format_blocks([1.0, 2.0, 4.5]) == "2.500 (1.000..4.500)"


def test_the_rule_of_defaults_guards_the_worst_network():
    """Of candidates that are near the best, the one that loses least on any network."""
    candidates = [("unipc-2", "old"), ("unipc-2", "a"), ("unipc-2", "b"), ("unipc-2", "c")]
    figures = ([1.0, 1.0], [0.4, 1.15], [0.48, 0.99], [0.2, 1.3])
    means, worsts = rate([[distance(each) for each in row] for row in figures])
    assert worsts == pytest.approx([1.0, 1.15, 0.99, 1.3])
    assert means[1] == pytest.approx(math.sqrt(2.0 * 1.15 / 0.99))
    assert choose(candidates, means, worsts) == "b", "c is too far away on one network"
    assert choose(candidates, [3.0, 1.0, 1.1, 9.0], worsts) == "a", "b is not near the best"
    assert choose([("unipc-2:coordinate=t", "a")], [1.0], [0.5]) is None
    assert compare_features(distance(0.1, 0.3), distance(0.1, 0.6))[1] == "0.50"
    assert compare_features(distance(0.1), distance(0.1, 0.6)) == ("", "")


def test_more_evaluations_are_worse_where_the_interval_says_so():
    """Every noise twice as far away is worse than the least before it; one of them alone is not."""
    rows = [[4.0] * 9, [1.0] * 9, [4.0] * 9, [1.0] * 8 + [4.0]]
    _, second, third, fourth = compare_with_least(rows)
    assert second == pytest.approx((0.5, 0.5, 0.5))
    assert third == pytest.approx((2.0, 2.0, 2.0))
    assert fourth[1] == 1.0 < fourth[0] < fourth[2]
    assert format_ratio(third) == "**2.00 [2.00, 2.00]**"
    made = [distance(each[0] ** 0.5, each[0]) for each in rows]
    assert count_worse(made) == 2, "in both columns"
    assert "| 5 | `old` | 2.0000 (2.0000..2.0000) | **2.00" in "\n".join(format_rows("net", made))


def test_the_front_is_one_line_for_each_series_beside_fd_or_features():
    """Of two points of a series at one cost the better counts; presets and searched are one."""
    report = make_report()
    columns = choose_columns([report])
    assert list(columns) == ["distance from the converged run", "FD to real images"]
    assert columns["distance from the converged run"] == {
        "diffusers, best scheduler": [(7.0, 0.4 / 6), (8.0, 0.4 / 7)],
        "best hand-made": [(3.0, 0.1234567)],
        "searched": [(2.0, 0.4), (4.0, 0.4 / 3)],
        "tuned plan": [(3.0, 0.1234567), (6.0, 0.0345678)],
    }
    unseen = report.model_dump()
    for point in [*unseen["points"], *(each["plan"]["point"] for each in unseen["plans"])]:
        point["fd"] = None
    *_, second = choose_columns([TuneReport.model_validate(unseen)])
    assert second == "distance of features from the converged run"


def distance(rms, features=None):
    run = DistantRun(network="net", process="vp", reference="", noises=3, nfe=5, grid="old")
    seen = None if features is None else (features**2,) * 3
    return Distance.here(run=run, squares=(rms**2,) * 3, features=seen)


def test_the_share_of_a_tint_is_that_on_the_background():
    images = torch.ones(2, 3, 8, 8)
    images[:, 1, 3:5, 3:5] = 0.2
    where = find_background(images)
    assert int((~where).sum()) == 2 * 3 * 16  # the object, and the pixels around it
    tint = torch.randn(2, 3, 1, 1).expand_as(images)
    left = torch.where(where, 0.4 * tint, 9.0 * tint)
    assert abs(find_slope(tint, left, where) - 0.4) < 1e-6


def test_the_page_of_results_says_what_was_found_and_what_was_not(tmp_path, monkeypatch):
    quality = test_claims.rows()  # tuned is half as far; diffusers' gap is 4, ours 1
    times = {"fewstep": (2.0, 2.0, 2.0), "diffusers": (1.0, 1.0, 1.0)}
    race = {"part": "cache", "name": "a", "sides": times, "turns": 3, "unit": "s", "asked": 2.0}
    races = [SpeedRow.here(**race, ratios={"diffusers": (0.4, 0.5, 0.6)})]
    grown = {"axis": "steps", "seconds": (1.0, 1.0, 1.0), "mebibytes": 9.0, "turns": 1}
    curves = [ScalingRow.here(value=value, **grown, digest="ab") for value in (1, 2)]
    (tmp_path / "cifar.json").write_text('{"fid": 3.3, "published": [3.1, 3.2], "sha256": "cd"}')
    monkeypatch.setattr("write_results.CIFAR", tmp_path / "cifar.json")
    lines = list(write_page(quality, races, curves, ["fid of m: 3 of 3 at NFE 5"]))
    assert lines.index("- fid of m: 3 of 3 at NFE 5") > lines.index("\n## What is missing\n")
    assert not any("missing" in line for line in write_page(quality, races, curves))
    rows = [[cell.strip() for cell in line.split("|")] for line in lines]
    assert {row[1]: row[4] for row in rows if len(row) == 6 and "found" in row[4].lower()} == {
        "searched is at most 0.45 as far as the best hand-made run": "NOT FOUND",
        "its fd-small is not worse beyond the interval": "found",
        "the gap ratio of its fd-small to diffusers' best is at most 0.3": "found",
        "cache: the time of diffusers over ours is at least 2": "NOT FOUND",
        "samples of two processes are those of one to the bit": "found",
        "training against test images is 3.1 to 3.2, as published (`make cifar`)": "NOT FOUND",
    }
    assert any(line.startswith("- quality: `make results`, 20") for line in lines)
    assert "Slope of the upper half: 0.00." in lines
    assert (
        list(write_page([], [], []))[-1]
        == "Nothing has been measured yet on the networks of today."
    )
    (stale,) = find_stale("\n".join(lines))
    assert stale.startswith("figures of m ef")  # the only one that is not of the package


def test_a_repetition_agrees_within_the_intervals_or_not(tmp_path, monkeypatch, capsys):
    def compare_with(rows):
        for name, each in (("a", test_claims.rows()), ("b", rows)):
            (tmp_path / f"{name}.jsonl").write_text("".join(f"{row.line}\n" for row in each))
        paths = [str(tmp_path / f"{name}.jsonl") for name in ("a", "b")]
        monkeypatch.setattr("sys.argv", ["compare_results.py", *paths])
        return compare_results.main(), capsys.readouterr()

    code, out = compare_with(test_claims.rows())
    assert code == 0
    assert "18 of 18 figures agree" in out.out
    moved = test_claims.rows()
    moved[1] = test_claims.grouped(test_claims.tuned(5, 3.2), 0.01, 0.1, moved[0].target)
    assert compare_with(moved)[0] == 0  # the intervals are +-0.4 wide
    moved[1] = test_claims.grouped(test_claims.tuned(5, 4.5), 0.01, 0.1, moved[0].target)
    code, out = compare_with(moved)
    (line,) = [line for line in out.out.splitlines() if "DIFFER" in line]
    assert code == 1
    assert "searched" in line
    assert "17 of 18 figures agree" in out.out
    code, out = compare_with([test_claims.tuned(6, 3.0)])
    assert (code, out.err.count("\n")) == (2, 1)
    assert "no figure with an interval in common" in out.err


def test_statistics_of_a_set_go_on_where_they_were_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr("accept_cifar.PART", 4)
    monkeypatch.setattr("accept_cifar.BATCH", 2)
    pixels = np.random.default_rng(0).integers(0, 255, (10, 2, 2, 1), dtype=np.uint8)
    np.savez(tmp_path / "real.npz", arr_0=pixels)
    images = images_of(tmp_path / "real.npz")
    whole, stopped = Projection(), Projection(stop=3)
    with pytest.raises(KeyboardInterrupt):
        gather(images, stopped, tmp_path)
    found = gather(images, whole, tmp_path)
    assert (found.n, whole.calls) == (10, 3)  # of five batches the first two were done
    rows = whole(torch.from_numpy(pixels).permute(0, 3, 1, 2))["pool"].double().numpy()
    np.testing.assert_allclose(found.mu, rows.mean(0), rtol=1e-6)
    np.testing.assert_allclose(found.cov, np.cov(rows.T), rtol=1e-5, atol=1e-9)


def test_a_brute_force_grid_has_caches_and_partial_guidance_that_fit():
    five, row, pair = (Spread(median=ms, low=ms, high=ms, repeats=5) for ms in (5.0, 20.0, 30.0))
    costs = {"start": five, "row": row, "step": five, "pair": pair}
    parts = CostParts(**costs, partial={"last-block": five}, share=0.25)
    judge = SimpleNamespace(parts=parts, problem=SimpleNamespace(network=load("fashion-dit")))
    for scale, branches, steps in ((1.0, 1, 9), (3.0, 2, 6)):
        settings = list(Grid(judge, scale).list_settings([125.0, 400.0]))
        assert len({str(each) for each in settings}) >= 100
        cached = next(each for each in settings if each.cache)
        assert cached.nfe == steps  # 5 full and 4 forecast, or 3 of 6
        assert cached.cache.startswith("taylorseer:interval=2,first=1")
        assert any(each.guidance_spec for each in settings) == (scale != 1.0)
        most = max(each.nfe for each in settings if not each.cache and not each.guidance_spec)
        over = [predict_ms(n, branches * n, 0, parts) > 400.0 for n in (most, most + 1)]
        assert over == [False, True]
