"""`fewstep tune`: sizes that fit, the rule of the two columns, and whole runs on the toy."""

import json
import shutil
import time
import warnings

import pytest
import torch
from tiny_pipes import pipeline
from typer.testing import CliRunner

import fewstep
from fewstep import Sampler
from fewstep.cli import app
from fewstep.eval.search.prepare import prepare_searches
from fewstep.eval.search.size import SearchSize
from fewstep.eval.search.strategies import strategies_of
from fewstep.eval.tune import command
from fewstep.eval.tune.cached_points import extend_table
from fewstep.eval.tune.choice import choose_row, is_better, rank, widen
from fewstep.eval.tune.command import Tuning
from fewstep.eval.tune.costs import RunTimer, describe_cost, predict_ms
from fewstep.eval.tune.judge import PointJudge, PointRow
from fewstep.eval.tune.points import list_presets
from fewstep.eval.tune.report import CostParts, TuneReport
from fewstep.eval.tune.searches import QUICK as BRIEFLY
from fewstep.eval.tune.searches import choose_strategies
from fewstep.eval.tune.sizes import PlanSizes, read_asked, read_flops
from fewstep.eval.tune_request import TuneRequest
from fewstep.models.errors import SettingError
from fewstep.models.ledger import Ledger
from fewstep.models.load import load
from fewstep.samplers.columns import Column, Columns
from fewstep.samplers.plan_file import Asked, JudgedPoint, PlanCost, PlanFile, Spread
from fewstep.samplers.run_settings import RunSettings
from fewstep.solvers.cached_calls import CachedCalls
from fewstep.solvers.presets import preset, preset_names

QUICK = {"budget": "candidates=6", "noises": "24,12,24", "points": "3,4"}


def spread(value):
    return Spread(median=value, low=value, high=value, repeats=5)


PARTS = CostParts(
    start=spread(10.0),
    row=spread(20.0),
    step=spread(0.1),
    pair=spread(30.0),
    partial={"last-block": spread(5.0)},
    share=0.25,
    flops=1e9,
)


def test_a_correction_counts_as_the_share_of_a_row_that_its_flops_are():
    parts = PARTS.model_copy(update={"flops": 1000.0})
    plain = Ledger(images=2, evaluations=10, rows=10)
    corrected = Ledger(images=2, evaluations=10, rows=10, multiplications=250)
    without, cost = (describe_cost(each, parts, guided=False) for each in (plain, corrected))
    assert (without.effective, cost.effective) == (5.0, 5.25)
    assert (without.flops, cost.flops) == (5000.0, 5250.0)
    assert cost.predicted - without.predicted == pytest.approx(0.25 * parts.row.median)


def test_sizes_cost_no_more_than_asked_and_one_more_would():
    for asked, guided, nfe, rows in (
        (Asked(unit="ms", amount=100.0), False, 4, None),
        (Asked(unit="ms", amount=100.0), True, 3, 4),
        (Asked(unit="nfe", amount=7), True, 7, None),
        (Asked(unit="rows", amount=7), True, 3, 7),
        (Asked(unit="effective", amount=6), True, 6, 12),
        (Asked(unit="flops", amount=5.5e9), False, 5, None),
    ):
        sizes = PlanSizes.of(asked, PARTS, guided)
        assert (sizes.nfe, sizes.rows) == (nfe, rows), asked


def test_masks_cost_no_more_than_asked_and_one_more_would():
    sizes = PlanSizes.of(Asked(unit="effective", amount=8), PARTS, False)
    assert SearchSize(6, "full", 12) in sizes.masked
    exact = PlanSizes.of(Asked(unit="effective", amount=8), with_share(0.004), False)
    assert SearchSize(8, "full", 10) in exact.masked  # and not 7, for the sake of two forecasts
    left = PlanSizes.of(Asked(unit="ms", amount=104.0), PARTS, False)
    assert left.nfe == 4
    assert SearchSize(4, "full", 6) in left.masked  # two forecasts of 5 ms fill the rest of 14
    for each in sizes.masked:
        cost = each.amount + 0.25 * (each.nfe - each.amount)
        assert cost <= 8.0 * 1.02 < cost + 0.75
    assert PlanSizes.of(Asked(unit="rows", amount=8), PARTS, True).masked == ()


def with_share(share):
    return PARTS.model_copy(update={"share": share})


def test_the_time_of_a_run_is_the_sum_of_its_parts():
    assert predict_ms(4, 4, 0, PARTS) == 10.0 + 4 * 20.0
    assert predict_ms(4, 8, 0, PARTS) == 10.0 + 4 * 30.0
    assert predict_ms(4, 6, 0, PARTS) == 10.0 + 2 * 30.0 + 2 * 20.0
    assert predict_ms(8, 8, 6, PARTS) == 10.0 + 2 * 20.0 + 6 * 5.0


def test_a_budget_that_cannot_be_is_refused_with_the_least():
    with pytest.raises(SettingError, match=r"nothing costs 25 ms or less here.*costs 30 ms"):
        PlanSizes.of(Asked(unit="ms", amount=25.0), PARTS, True)
    for given, words in (
        ({"nfe": 0}, "below one evaluation; the least is 1"),
        ({"effective": 0.5}, "below one evaluation; the least is 1"),
        ({"ms": 0.0}, "the least is above 0"),
        ({"nfe": 4, "rows": 8}, "give one of nfe, rows"),
        ({"flops": "many"}, "no number of FLOPs"),
    ):
        with pytest.raises(SettingError, match=words):
            read_asked(TuneRequest(network="toy", **given))
    assert read_flops("2.5G") == 2.5e9
    assert read_asked(TuneRequest(network="toy")) is None


def make_row(name, kind, distances, features):
    columns = Columns(
        distance=Column(value=sum(distances), low=0, high=1, median=0),
        features=Column(value=sum(features), low=0, high=1, median=0),
    )
    settings = None if kind == "rival" else RunSettings(solver="ddim", nfe=4)
    cost = PlanCost(nfe=4, rows=4, effective=4)
    point = JudgedPoint(
        name=name, kind=kind, settings=settings, cost=cost, noises="test", count=4, columns=columns
    )
    return PointRow(id=name, point=point, distances=distances, features=features)


def test_a_simple_setting_is_left_only_for_a_better_one_in_both_columns():
    simple = make_row("plain", "named", (1.0, 2.0, 3.0, 4.0), (1.0, 1.0, 2.0, 2.0))
    better = make_row("table", "searched", (0.5, 1.0, 1.5, 2.0), (0.9, 1.2, 1.7, 2.2))
    traded = make_row("traded", "searched", (0.1, 0.2, 0.3, 0.4), (2.0, 2.0, 4.0, 4.0))
    alike = make_row("alike", "searched", (0.9, 2.1, 2.9, 4.1), (0.9, 1.1, 1.9, 2.1))
    rival = make_row("rival", "rival", (0.1, 0.1, 0.1, 0.1), (0.1, 0.1, 0.1, 0.1))
    with pytest.raises(SettingError, match="nothing that was tried ends in finite samples"):
        choose_row([rival])
    assert is_better(better, simple)
    assert not is_better(traded, simple)
    assert not is_better(alike, simple)
    nearly = make_row("nearly", "joint", (0.99, 1.98, 2.97, 3.96), (0.99, 0.99, 1.98, 1.98))
    assert not is_better(nearly, simple), "one percent is no gain, though it is certain"
    assert choose_row([simple, traded, alike, rival]).row is simple
    chosen = choose_row([simple, traded, better, rival])
    assert (chosen.row, chosen.beaten) == (better, simple)
    assert "the best simpler setting: 0.71 [0.71, 0.71] of the distance and" in chosen.reason


def test_a_cache_is_taken_only_if_it_is_better_than_the_table_without_it():
    """Though it ranks first, and is better than the best simple setting: with no table at hand."""
    simple = make_row("plain", "named", (1.0, 2.0, 3.0, 4.0), (1.0, 1.0, 2.0, 2.0))
    table = make_row("table", "searched", (0.5, 1.0, 1.5, 2.0), (0.9, 1.1, 1.8, 2.2))
    cached = make_row("cached", "joint", (0.8, 0.8, 1.8, 1.9), (0.8, 1.3, 1.2, 2.2))
    fresh = make_row("fresh", "joint", (0.25, 0.5, 0.75, 1.0), (0.8, 1.1, 1.6, 2.1))
    assert is_better(cached, simple)
    assert min([simple, table, cached], key=rank) is cached
    assert choose_row([cached, table, simple]).row is table
    chosen = choose_row([cached, fresh, table, simple])
    assert (chosen.row, chosen.beaten) == (fresh, table)


def test_few_noises_have_wider_intervals():
    low, high = widen((1.0, 0.8, 1.25), 1_000_000)[1:]
    assert (low, high) == pytest.approx((0.8, 1.25), rel=1e-4)
    assert widen((1.0, 0.8, 1.25), 16)[1:] == pytest.approx((0.8**1.1232, 1.25**1.1232), rel=1e-3)


def without_times(report):
    """The report without what a clock said."""
    body = report.model_dump(mode="json")
    body = {key: body[key] for key in ("points", "plans", "judged", "searched")}
    for plan in body["plans"]:
        plan["plan"].pop("seconds")
    for point in [*body["points"], *(plan["plan"]["point"] for plan in body["plans"])]:
        point["cost"].pop("ms")
        schedule = (point["settings"] or {}).get("schedule") or {"provenance": {}}
        schedule["provenance"].pop("budget", None)  # with its seconds
    return body


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tuned")
    return folder, fewstep.tune("toy", out=folder / "plan.json", **QUICK)


def test_a_front_has_a_plan_for_each_point_and_a_report(tuned):
    folder, report = tuned
    assert TuneReport.load(folder / "plan.report.json") == report
    assert [each.plan.point.cost.effective for each in report.plans] == [3.0, 4.0]
    kinds = {point.kind for point in report.points}
    assert {"named", "searched", "rival"} <= kinds
    for each in report.plans:
        plan = PlanFile.load(folder / each.file)
        assert plan == each.plan
        assert plan.point.noises == "test"
        assert plan.point.cost.ms.repeats >= 5
        assert {rival.count for rival in plan.rivals} == {24}
    assert all(point.columns.distance.value > 0.0 for point in report.points)


def test_a_search_that_was_killed_gives_what_an_uninterrupted_one_gives(
    tuned, tmp_path, monkeypatch
):
    folder, report = tuned
    measure, count = PointJudge._measure, iter(range(100))

    def stop(self, *args):
        if next(count) == 5:
            raise KeyboardInterrupt
        return measure(self, *args)

    (tmp_path / "plan.tune").mkdir()
    for path in (folder / "plan.tune").glob("costs-*.json"):
        shutil.copy(path, tmp_path / "plan.tune")
    monkeypatch.setattr(PointJudge, "_measure", stop)
    with pytest.raises(KeyboardInterrupt):
        fewstep.tune("toy", out=tmp_path / "plan.json", **QUICK)
    assert not (tmp_path / "plan.report.json").exists()
    again = fewstep.tune("toy", out=tmp_path / "plan.json", **QUICK)
    assert without_times(again)["points"] == without_times(report)["points"]
    assert [each.plan.point.name for each in again.plans] == [
        each.plan.point.name for each in report.plans
    ]


def test_what_there_is_no_time_for_is_left_out_and_said(tuned, tmp_path, monkeypatch):
    folder, report = tuned
    shutil.copytree(folder / "plan.tune", tmp_path / "plan.tune")
    (tmp_path / "plan.tune" / "points.jsonl").unlink()
    monkeypatch.setattr(Tuning, "_count_left", lambda self, share: -1.0)
    hurried = fewstep.tune("toy", out=tmp_path / "plan.json", **QUICK)
    assert any("the time was up" in each for each in hurried.verdicts)
    assert 3 <= len(hurried.points) < len(report.points)
    assert hurried.plans


def test_the_command_prints_its_report_and_refuses_in_one_line(tuned):
    folder, report = tuned
    words = ["tune", "toy", "--out", str(folder / "plan.json")]
    words += [word for name, value in QUICK.items() for word in (f"--{name}", value)]
    done = CliRunner().invoke(app, [*words, "--json", "--quiet"])
    assert done.exit_code == 0, done.output
    assert (
        without_times(TuneReport(**json.loads(done.stdout)))["points"]
        == (without_times(report)["points"])
    )
    done = CliRunner().invoke(app, words)
    assert max(map(len, done.stdout.splitlines())) <= 80 + len(str(folder))
    assert "distance" in done.stdout
    for wrong in (["--ms", "0.0001"], ["--nfe", "0"]):
        refused = CliRunner().invoke(app, [*words, "--quiet", *wrong])
        assert (refused.exit_code, refused.output.count("error:")) == (2, 1), refused.output


def test_tables_go_beyond_linear_ones_where_that_is_asked_for():
    for budget, usual in (("5m", strategies_of("nfe")), ("60s", BRIEFLY)):
        for beyond, more in ((None, ()), ("columns", ("columns",))):
            request = TuneRequest(network="fashion-dit", budget=budget, beyond=beyond)
            assert choose_strategies(request, 5) == (*usual, *more)


def test_a_budget_counts_from_where_the_network_is_there(tmp_path, monkeypatch):
    """However long it takes to load it, or to train it in the file that makes it."""

    def prepare(request):
        late[0] += 3600.0
        return prepare_searches(request)

    def start(searches, request, started):
        begun.append(started)
        raise SettingError("enough")

    late, begun, clock = [0.0], [], time.perf_counter
    before = clock()
    monkeypatch.setattr(command.time, "perf_counter", lambda: clock() + late[0])
    monkeypatch.setattr(command, "prepare_searches", prepare)
    monkeypatch.setattr(command, "start_searches", start)
    with pytest.raises(SettingError, match="enough"):
        fewstep.tune("toy", budget="60s", nfe=3, out=tmp_path / "plan.json")
    assert begun[0] > before + 3600.0


def test_a_refused_time_leaves_nothing_behind(tmp_path):
    with pytest.raises(SettingError, match="nothing costs"):
        fewstep.tune("toy", ms=1e-4, out=tmp_path / "plan.json", **QUICK)
    assert list(tmp_path.iterdir()) == []


def test_a_plan_that_is_measured_above_the_time_is_left_for_a_quicker_one(
    tuned, tmp_path, monkeypatch
):
    """Every run of four evaluations is timed at twice what it is predicted to take."""
    folder, _ = tuned
    shutil.copytree(folder / "plan.tune", tmp_path / "plan.tune")
    (costs,) = (tmp_path / "plan.tune").glob("costs-*.json")
    costs.write_text(PARTS.model_copy(update={"pair": None, "partial": {}}).model_dump_json())

    def time_all(self, runs, seconds=0.0):
        return {name: spread(10.0 + 20.0 * count(each)) for name, each in runs.items()}

    def count(settings):
        nfe = settings.nfe or settings.schedule.nfe
        return 2 * nfe if nfe == 4 else nfe

    monkeypatch.setattr(RunTimer, "time_all", time_all)
    report = fewstep.tune("toy", ms=92.0, out=tmp_path / "plan.json", **QUICK)
    (written,) = report.plans
    assert written.plan.point.cost.nfe == 3
    assert any("measured at 170 ms" in each for each in report.verdicts)


def test_seeds_that_overlap_are_refused_before_any_work(tmp_path):
    seeds = {"train_seeds": "0-23", "validation_seeds": "24-35", "test_seeds": "20-43"}
    with pytest.raises(SettingError, match="the blocks train and test share seed 20"):
        fewstep.tune("fashion-dit", nfe=3, out=tmp_path / "plan.json", **seeds)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_guided_and_cached_plans_stand_beside_tables_on_a_live_network(tmp_path):
    network = load(pipeline("dit"))
    options = {"budget": "candidates=4", "noises": "12,6,12", "teacher_nfe": 14, "batch": 2}
    options |= {"classes": "0,1", "out": tmp_path / "plan.json", "cfg_scale": 3.0}
    report = fewstep.tune(network, effective=4, **options)
    assert {"named", "searched", "guidance", "cache"} <= {point.kind for point in report.points}
    extended = [point for point in report.points if ", extended, computed at" in point.name]
    assert {point.kind for point in extended} == {"joint"}
    assert {point.settings.schedule.guided for point in extended} == {False, True}
    assert [each.part for each in report.compared] == ["cache", "joint"]
    for point in report.points:
        assert point.cost.effective <= 4 * 1.02
        assert (point.cost.flops is not None) == (report.parts.flops is not None)
    (written,) = report.plans
    assert str(written.plan.asked) == "4 effective evaluations"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn = Sampler(network)([0, 1], class_labels=[0, 1], plan=tmp_path / "plan.json")
    cost = written.plan.point.cost
    assert (drawn.ledger.nfe, drawn.ledger.rows_per_image) == (cost.nfe, cost.rows)


def test_a_table_that_is_given_forecasts_ends_where_it_did():
    """Before it is fitted. Where it guides by itself, further evaluations ask one branch."""
    sampler = Sampler.from_pretrained("fashion-dit")
    for name, rows in (("fashion-dit-nfe5", 8), ("fashion-dit-rows16-cfg3", 19)):
        table = preset(name)
        extended, own = extend_table(table, table.nfe + 3)
        assert (extended.nfe, extended.rows, len(own)) == (table.nfe + 3, rows, table.nfe)
        assert [extended.evaluations[n] for n in own] == list(table.evaluations)
        cached = extended.with_cache(CachedCalls(compute=own))
        ends = [
            sampler([0, 1], class_labels=[0, 1], solver=each).samples for each in (table, cached)
        ]
        torch.testing.assert_close(ends[1], ends[0], rtol=0.0, atol=1e-4)


def test_shipped_schedules_are_those_for_this_network_and_scale_that_fit():
    network = load("fashion-dit")
    own = [name for name in preset_names() if name.startswith("fashion-dit")]
    own.sort(key=lambda each: -preset(each).nfe)  # the largest first
    guided = [name for name in own if preset(name).guided]
    assert guided
    for sizes, scale, names in (
        (PlanSizes(99), 1.0, [name for name in own if name not in guided]),
        (PlanSizes(5), 1.0, [n for n in own if n not in guided and preset(n).nfe <= 5]),
        (PlanSizes(8, 16), 3.0, guided),
        (PlanSizes(7, 15), 3.0, []),
        (PlanSizes(8), 3.0, []),
    ):
        points = list(list_presets(network, sizes, scale))
        assert [each.name for each in points] == names, (sizes, scale)
        for each in points:
            assert each.settings.cfg_scale == (1.0 if each.settings.schedule.guided else scale)
