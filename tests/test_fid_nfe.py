"""The sweep: its cells and their order, their figures, resuming, many processes, the command.

Networks are closed-form laws and the extractor is a fixed projection, so that a cell takes
milliseconds; the commands and the two processes use the real ones.
"""

import json
import subprocess
import sys
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from laws import GAUSSIAN
from typer.testing import CliRunner

from fewstep.cli import app
from fewstep.eval.bench.protocol import Drawn, Measure
from fewstep.eval.bench.rows import ResultRow, ResultStore, TimeSpent
from fewstep.eval.bench.runner import run_cells
from fewstep.eval.bench.team import Team, team
from fewstep.eval.experiments import fid_nfe
from fewstep.eval.experiments.fid_converged import quantise
from fewstep.eval.experiments.fid_evaluator import (
    ImageEvaluator,
    Partial,
    features_of,
    make_evaluator,
    merge_parts,
    split_label,
)
from fewstep.eval.experiments.fid_joint import check_joint
from fewstep.eval.experiments.fid_missing import list_missing
from fewstep.eval.experiments.fid_nfe import QualityBench, flops_per_row
from fewstep.eval.experiments.fid_plan import plan_cells
from fewstep.eval.experiments.fid_points import network_label, setting_label
from fewstep.eval.experiments.fid_sweep import ConvergedRun, Entry, Sweep, check_choices
from fewstep.eval.metrics import Features, Need, metric
from fewstep.eval.statistics import FeatureOrigin, Moments, frechet
from fewstep.models.errors import FewstepError, SettingError, UnknownNameError
from fewstep.models.ledger import CacheCall, CacheLedger, Ledger
from fewstep.models.load import embedded_names, load
from fewstep.models.prediction import Prediction
from fewstep.models.schedule import RectifiedFlow, VPDiscrete
from fewstep.samplers.grid import FEW, time_grid
from fewstep.samplers.guidance.forecast import write_forecast
from fewstep.samplers.run_record import Run
from fewstep.samplers.sampler import Sampler
from fewstep.solvers import solver
from fewstep.solvers.presets import preset

SHAPE = (1, 2, 2)
FLOW = GAUSSIAN.network(RectifiedFlow(time_scale=1000), SHAPE, Prediction.FLOW)
NETWORKS = {"flow": FLOW, "vp": GAUSSIAN.network(VPDiscrete(), SHAPE, Prediction.EPS)}


WEIGHTS = torch.tensor([[1.0, 0.5, 0.0], [0.0, 1.0, 0.2], [0.3, 0.0, 1.0], [0.1, 0.2, 0.3]])


class Projection:
    """Four pixels to three features; counts its calls and can be stopped."""

    name, sha256, resize = "fake", "00", "none"

    def __init__(self, stop=None, weights=WEIGHTS):
        self.calls, self.stop, self.weights = 0, stop, weights
        self.outputs = {"pool": 3}

    def __call__(self, images):
        if self.calls == self.stop:
            raise KeyboardInterrupt
        self.calls += 1
        return {"pool": images.flatten(1).float() / 255.0 @ self.weights}


def statistics(features):
    moments = Moments(3)
    moments.update(features)
    return moments.statistics(FeatureOrigin("fake", "00", "none"))


def fake_evaluator(n, name="fd", stop=None):
    rows = torch.rand(500, 3, generator=torch.Generator().manual_seed(0))
    reference = Features(500, {"pool": statistics(rows)}, {"pool": rows})
    measure = Measure(
        metric=f"{name}-fake",
        extractor="fake",
        extractor_sha256="00",
        resize="none",
        reference="rand",
        reference_sha256="11",
        n=n,
    )
    return ImageEvaluator(metric(name), Projection(stop), reference, measure)


def sweep(n=20, batch=8, blocks=1, **entry):
    chosen = {"models": ["flow"], "solvers": ["unipc-2"], "nfe": "4", **entry}
    return Sweep(n=n, batch=batch, blocks=blocks, entries=(Entry(**chosen),))


@pytest.fixture(autouse=True)
def _alone(tmp_path, monkeypatch):
    """A folder of its own, without the data sets that this user may have."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(
        fid_nfe, "load", lambda model, **how: NETWORKS.get(model) or load(model, **how)
    )


def measure(bench):
    return [row for rows in run_cells(bench) for row in rows]


def bench(chosen, store="s.jsonl", stop=None, name="fd"):
    return QualityBench(chosen, fake_evaluator(chosen.n, name, stop), ResultStore(Path(store)))


# ---- cells


def test_cells_run_cheap_first_and_repeats_count_as_dearer():
    chosen = sweep(blocks=2, solvers=["unipc-2"], rivals=["unipc"], nfe="4,6,20")
    cells = plan_cells(chosen, fake_evaluator(20).measure, NETWORKS.__getitem__).cells
    order = [(cell.nfe, cell.block) for cell in cells]
    assert order[::2] == [(4, 0), (6, 0), (4, 1), (6, 1), (20, 0), (20, 1)]
    assert order[::2] == order[1::2]


def test_parts_run_in_turn_and_a_converged_run_just_before_what_is_compared_with_it():
    late = Entry(models=["flow"], solvers=["unipc-2"], nfe="3,5", part=2)
    early = Entry(models=["vp", "flow"], solvers=["unipc-2"], nfe="5", part=1)
    chosen = Sweep(n=20, blocks=2, converged=ConvergedRun(nfe=12), entries=(late, early))
    cells = plan_cells(chosen, fake_evaluator(20).measure, NETWORKS.__getitem__).cells
    order = [(cell.protocol.images.run.model, cell.nfe, cell.block) for cell in cells]
    first = [(model, nfe, b) for b in (0, 1) for model in ("flow", "vp") for nfe in (12, 5)]
    assert order == [*first, ("flow", 3, 0), ("flow", 3, 1)]
    assert [cell.converged for cell in cells[:4]] == [True, False, True, False]
    some = chosen.limit(1, 1)
    assert (some.blocks, some.entries) == (1, (early,))
    assert chosen.limit(None, 9) == chosen
    with pytest.raises(SettingError, match="first part of this sweep is 2, not 1"):
        chosen.model_copy(update={"entries": (late,)}).limit(1, None)


def test_what_a_store_lacks_of_a_sweep_is_told_by_network_and_budget():
    chosen = sweep(blocks=2, models=["flow", "vp"], nfe="4,5")
    rows = measure(bench(chosen.limit(None, 1)))
    lacking = chosen.model_copy(update={"metric": "fd-fake"})
    lines = [f"fd-fake of {name}: 1 of 2 at NFE 4, 1 of 2 at NFE 5" for name in ("flow", "vp")]
    assert list(list_missing(lacking, rows, NETWORKS.__getitem__)) == lines
    assert list(list_missing(lacking.limit(None, 1), rows, NETWORKS.__getitem__)) == []


def test_a_cell_says_everything():
    (cell,) = plan_cells(sweep(), fake_evaluator(20).measure, NETWORKS.__getitem__).cells
    run = cell.protocol.images.run
    assert (run.solver, run.grid, run.nfe, run.final) == ("unipc-2", FEW["flow"][0][1], 4, "zero")
    assert run.seeds == tuple(range(20))
    assert cell.protocol.images.labels == "none"
    with_classes = replace(FLOW, num_classes=7, null_class=7)
    (cell,) = plan_cells(sweep(), fake_evaluator(20).measure, lambda model: with_classes).cells
    assert cell.protocol.images.labels == "seed modulo 7"


def test_a_block_draws_the_next_seeds_and_a_cell_is_named_once():
    chosen = sweep(blocks=3, solvers=["unipc-2", "unipc-2"])
    cells = plan_cells(chosen, fake_evaluator(20).measure, NETWORKS.__getitem__).cells
    assert [cell.protocol.images.run.seeds[0] for cell in cells] == [0, 20, 40]


def test_budgets_that_cannot_be_spent_are_told_and_the_rest_runs():
    chosen = sweep(solvers=["heun"], rivals=["heun"], nfe="4,5")
    plan = plan_cells(chosen, fake_evaluator(20).measure, NETWORKS.__getitem__)
    assert [cell.nfe for cell in plan.cells] == [5, 5]
    assert len(plan.refused) == 2
    assert all("cannot spend exactly 4" in each for each in plan.refused)


@pytest.mark.parametrize(
    ("entry", "error", "message"),
    [
        ({"solvers": ["unipc2"]}, UnknownNameError, "did you mean"),
        ({"rivals": ["unipc2"]}, UnknownNameError, "did you mean"),
        ({"grids": ["bta"]}, UnknownNameError, "did you mean 'beta'"),
        ({"solvers": ["unipc-2:knd=1"]}, UnknownNameError, "no setting of unipc-2"),
        ({"solvers": ["none.json"]}, FewstepError, "none.json"),
        ({"solvers": []}, SettingError, "no solver"),
        ({"solvers": ["heun"], "nfe": "4"}, SettingError, "nothing can be measured"),
        ({"nfe": "4-"}, SettingError, "not a list of numbers"),
        ({"cfg_scales": [2.0]}, SettingError, "cannot be guided"),
    ],
    ids=str,
)
def test_wrong_choices_are_told(entry, error, message):
    with pytest.raises(error, match=message):
        plan_cells(sweep(**entry), fake_evaluator(20).measure, NETWORKS.__getitem__)


def test_choices_that_would_be_ignored_are_refused():
    with pytest.raises(SettingError, match="guidance scale other than 1"):
        check_choices(Entry, models=["flow"], cfg_interval=(0.1, 1.0))
    with pytest.raises(SettingError, match="grids are for named solvers"):
        check_choices(Entry, models=["flow"], rivals=["unipc"], grids=["beta"])


def test_schedule_files_bring_their_own_budget(tmp_path):
    plan = solver("unipc-2").encode(time_grid("beta", RectifiedFlow(), 5))
    (tmp_path / "five.json").write_text(plan.dump())
    chosen = sweep(solvers=["unipc-2", "five.json"], grids=["beta"], nfe="5")
    found = {setting_label(row.protocol.images): row.value for row in measure(bench(chosen))}
    assert found["five"] == pytest.approx(found["unipc-2 beta"], rel=1e-9)


# ---- figures


def expected(n, nfe=4, solver="unipc-2", network=FLOW):
    samples = Sampler(network)(range(n), solver=solver, nfe=nfe, batch=8).samples
    pixels = (samples * 127.5 + 127.5).round().clamp(0, 255)
    features = pixels.flatten(1) / 255.0 @ WEIGHTS
    return frechet(statistics(features), fake_evaluator(n).reference.statistics["pool"])


def test_the_figure_is_that_of_the_quantised_samples():
    (row,) = measure(bench(sweep()))
    assert row.value == pytest.approx(expected(20), rel=1e-9)
    assert (row.cost.nfe, row.cost.rows, row.cost.effective) == (4, 4, 4)
    assert row.clock.total >= row.clock.sampling + row.clock.features > 0.0


def test_quantised_keeps_the_axes():
    samples = torch.tensor([-1.0, 0.0, 0.5, 2.0]).view(1, 1, 2, 2)
    assert quantise(samples).tolist() == [[[[0, 128], [191, 255]]]]
    colour = torch.rand(2, 3, 4, 5) * 2 - 1
    torch.testing.assert_close(
        quantise(colour).float(), (colour * 127.5 + 127.5).round(), rtol=0, atol=0
    )


def test_metrics_that_need_all_features_get_them_in_order():
    (row,) = measure(bench(sweep(n=20), name="kid"))
    samples = quantise(Sampler(FLOW)(range(20), solver="unipc-2", nfe=4, batch=8).samples)
    mine = Features(20, rows=Projection()(samples))
    assert row.value == metric("kid").function(mine, fake_evaluator(20).reference)


def test_guided_rows_and_flops_are_counted():
    network = load("fashion-dit")
    per_row = flops_per_row(network)
    assert 1.6e8 < per_row < 1.8e8  # 6 layers x 128: 0.153 GFLOP of linear layers, and attention
    chosen = sweep(n=4, models=["fashion-dit"], nfe="2", cfg_scales=[2.0])
    found = bench(chosen)
    found.evaluator.extractor.weights = torch.rand(1024, 3)
    (row,) = measure(found)
    assert (row.cost.nfe, row.cost.rows) == (2, 4)
    assert row.cost.flops == 4 * per_row


def test_caches_and_guidance_policies_are_settings():
    forecast = "guidance-forecast:every=2,warmup=1"
    chosen = sweep(
        n=4,
        batch=2,
        models=["fashion-dit"],
        nfe="4",
        cfg_scales=[2.0],
        guidances=["cfg", forecast],
        caches=["taylorseer:level=last-block,interval=2,first=1"],
    )
    found = bench(chosen)
    found.evaluator.extractor.weights = torch.rand(1024, 3)
    plain, skipping = sorted(measure(found), key=lambda row: -row.cost.rows)
    assert (plain.cost.nfe, plain.cost.rows) == (4, 8)
    assert skipping.cost.rows == 6
    assert 4.0 < plain.cost.effective < 5.0  # two full calls of four, and the rim of the others
    assert plain.cost.flops == pytest.approx(
        plain.cost.effective * flops_per_row(load("fashion-dit"))
    )
    label = setting_label(skipping.protocol.images)
    cache = chosen.entries[0].caches[0]
    assert label == f"unipc-2 default grid, {write_forecast(forecast)}, {cache}"


def test_effective_rows_outlive_a_kill_and_add_up(tmp_path):
    call = CacheCall(
        branch="cond", stage=0, index=0, kind="skip", error=None, rows=2, computed=0.0, skipped=()
    )
    cache = CacheLedger(calls=[call], share=lambda call: 0.25)
    needs = [Need(output="pool", form="statistics")]
    one, two = (Partial.empty({"pool": 3}, needs) for _ in range(2))
    one.count(Ledger(images=2, rows=8, cache=cache), TimeSpent())
    assert one.effective == 2.0
    one.save(tmp_path / "p.npz")
    assert two.load(tmp_path / "p.npz")
    assert two.effective == 2.0
    assert merge_parts([one, two]).effective == 4.0


def test_the_first_images_are_kept(tmp_path):
    (row,) = measure(bench(sweep()))
    assert [path.name for path in tmp_path.glob("s.jsonl.pictures/*")] == [f"{row.hash}.png"]


def test_real_images_are_a_row_of_their_own(tmp_path):
    images = np.random.default_rng(0).integers(0, 255, (45, 2, 2, 1), dtype=np.uint8)
    np.savez(tmp_path / "real.npz", arr_0=images)
    chosen = sweep(blocks=3).model_copy(update={"floor": "real.npz"})
    found = bench(chosen)
    rows = [row for row in measure(found) if row.cost is None]
    assert [row.protocol.images.rows for row in rows] == ["0-19", "20-39"]  # 45 are two blocks
    part = torch.from_numpy(images[20:40]).permute(0, 3, 1, 2)
    mine = statistics(Projection()(part)["pool"])
    assert rows[1].value == pytest.approx(
        frechet(mine, found.evaluator.reference.statistics["pool"]), rel=1e-9
    )


def test_a_missing_floor_is_told_or_refused():
    assert "give --floor" in bench(sweep()).remarks[0]
    with pytest.raises(FewstepError, match="nowhere"):
        bench(sweep().model_copy(update={"floor": "nowhere"}))


# ---- distances to the converged run


def converging(n=20, groups=5, **entry):
    chosen = sweep(n=n, grids=["beta"], **entry)
    converged = ConvergedRun(solver="unipc-3", nfe=12)
    return chosen.model_copy(update={"groups": groups, "converged": converged})


def test_distances_and_figures_of_groups_stand_beside_the_figure():
    converged, ours = measure(bench(converging()))
    call = {"grid": "beta", "batch": 8}
    target = Sampler(FLOW)(range(20), solver="unipc-3", nfe=12, **call).samples
    mine = Sampler(FLOW)(range(20), solver="unipc-2", nfe=4, **call).samples
    squares = (mine - target).square().flatten(1).mean(1).view(5, 4).mean(1)
    assert [each.distance for each in ours.groups] == pytest.approx(squares.tolist(), rel=1e-5)
    seen, others = (Projection()(quantise(each))["pool"].double() for each in (mine, target))
    moved = (seen - others).square().mean(1).view(5, 4).mean(1)
    assert [each.features for each in ours.groups] == pytest.approx(moved.tolist(), rel=1e-5)
    rest = statistics(torch.cat([seen[:8], seen[12:]]))  # without the third group of four
    reference = fake_evaluator(20).reference.statistics["pool"]
    assert ours.groups[2].without == pytest.approx(frechet(rest, reference), rel=1e-6)
    assert ours.target == converged.target == converged.protocol.setting
    assert [each.distance for each in converged.groups] == [0.0] * 5


def test_a_converged_run_is_drawn_once_and_kept(tmp_path, monkeypatch):
    measure(bench(converging()))
    files = sorted(tmp_path.glob("s.jsonl.converged/*"))
    assert [path.name.split("-", 1)[1] for path in files] == [
        *("0-7.safetensors", "16-19.safetensors", "8-15.safetensors"),
    ]
    drawn, make = [], fid_nfe.make_draw

    def watch(images, network):
        drawn.append(images.run.nfe)
        return make(images, network)

    monkeypatch.setattr(fid_nfe, "make_draw", watch)
    further = converging(nfe="5", rivals=["euler"])
    measure(bench(further))
    assert set(drawn) == {5}
    files[0].unlink()
    measure(bench(converging(nfe="6")))
    assert drawn.count(12) == 1


def test_a_rival_and_a_guided_schedule_converge_to_their_guidance_scale():
    network = replace(FLOW, num_classes=7, null_class=7)
    chosen = converging(solvers=["unipc-2"], rivals=["euler"], cfg_scales=[3.0])
    cells = plan_cells(chosen, fake_evaluator(20).measure, lambda model: network).cells
    assert [cell.converged for cell in cells] == [True, False, False]
    targets = {cell.target.hash for cell in cells}
    assert targets == {cells[0].protocol.hash}
    run = cells[0].protocol.images.run
    assert (run.cfg_scale, run.solver, run.nfe, run.grid) == (3.0, "unipc-3", 12, "beta")
    guided = Drawn(run=Run(model="m", seeds=(0,), schedule=preset("fashion-dit-rows16-cfg3")))
    assert guided.scale == 3.0
    assert ConvergedRun(nfe=60, guided_nfe=40).count_evaluations(3.0) == 40
    assert ConvergedRun(nfe=60, guided_nfe=40).count_evaluations(1.0) == 60


def test_the_sweeps_of_the_page_of_results_are_of_all_networks():
    of_page = [Sweep.load(RESULTS / f"sweep-{name}.json") for name in ("fashion", "emoji", "fid")]
    assert [(each.n, each.blocks, each.groups) for each in of_page] == [
        *((1000, 3, 10), (1000, 3, 10), (10_000, 1, 10)),
    ]
    named = {model for each in of_page[:2] for entry in each.entries for model in entry.models}
    assert named == set(embedded_names())


def test_tuned_schedules_are_those_of_the_package_at_the_budgets_and_the_scale():
    chosen = sweep(models=["fashion-dit"], solvers=[], tuned=True, nfe="5,8", cfg_scales=[1.0, 3.0])
    cells = plan_cells(chosen, fake_evaluator(20).measure, load).cells
    names = [cell.protocol.images.run.schedule.provenance["name"] for cell in cells]
    assert {"fashion-dit-nfe5", "fashion-dit-nfe8", "fashion-dit-rows16-cfg3"} <= set(names)
    assert {setting_label(cell.protocol.images) for cell in cells} == {"searched"}
    assert {cell.protocol.images.run.cfg_scale for cell in cells} == {1.0}
    assert {network_label(cell.protocol.images) for cell in cells} == {
        "fashion-dit",
        "fashion-dit, CFG 3",
    }


def test_a_store_of_other_versions_weights_or_seeds_is_refused():
    chosen = sweep()
    (row,) = measure(bench(chosen))
    other = row.model_copy(update={"versions": {**row.versions, "torch": "1.0"}})
    with pytest.raises(SettingError, match=r"s.jsonl' was measured by torch '1.0'"):
        ResultStore(stored(other)).check()
    run = row.protocol.images.run.model_copy(update={"seeds": tuple(range(10, 30)), "nfe": 9})
    with pytest.raises(SettingError, match="seeds 0-19 and 10-29 do not stand together"):
        bench(chosen, store=stored(of(row, run=run)))
    mine, theirs = of(row, weights="a" * 64), of(row, weights="b" * 64, run=run)
    with pytest.raises(SettingError, match="rows of weights of flow 'aaaa"):
        check_joint([mine], [theirs.protocol])
    assert measure(bench(chosen, store=stored(row))) == []


def of(row, **images):
    changed = row.protocol.images.model_copy(update=images)
    return ResultRow.now(row.protocol.model_copy(update={"images": changed}), row.value)


def stored(row):
    path = Path("other") / "s.jsonl"
    path.parent.mkdir(exist_ok=True)
    path.write_text(row.line + "\n")
    return path


# ---- resuming


def test_finished_cells_are_not_drawn_again():
    chosen = sweep(nfe="4,5")
    first = measure(bench(chosen))
    again = bench(chosen)
    assert measure(again) == []
    assert again.evaluator.extractor.calls == 0
    assert [row.value for row in again.rows()] == [row.value for row in first]


@pytest.mark.parametrize("name", ["fd", "kid"])
def test_a_killed_cell_goes_on_where_it_was(tmp_path, monkeypatch, name):
    monkeypatch.setattr(fid_nfe, "SAVE_EVERY", 0.0)
    monkeypatch.setattr(fid_nfe, "SAVE_REST", 0.0)
    (whole,) = measure(bench(sweep(), store="whole.jsonl", name=name))
    with pytest.raises(KeyboardInterrupt):
        measure(bench(sweep(), stop=2, name=name))
    again = bench(sweep(), name=name)
    (row,) = measure(again)
    assert again.evaluator.extractor.calls == 1  # of three batches two were done
    assert row.value == whole.value
    assert row.cost.rows == 4
    assert not list(tmp_path.glob("*.parts"))


def test_a_damaged_part_is_begun_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(fid_nfe, "SAVE_EVERY", 0.0)
    monkeypatch.setattr(fid_nfe, "SAVE_REST", 0.0)
    with pytest.raises(KeyboardInterrupt):
        measure(bench(sweep(), stop=2))
    (part,) = tmp_path.glob("s.jsonl.parts/*")
    part.write_bytes(part.read_bytes()[:100])
    again = bench(sweep())
    (row,) = measure(again)
    assert again.evaluator.extractor.calls == 3
    assert row.value == pytest.approx(expected(20), rel=1e-9)


# ---- many processes


@pytest.mark.parametrize("name", ["fd", "kid"])
@pytest.mark.parametrize("size", [2, 3, 5])
def test_shares_add_up_to_the_whole(size, name):
    chosen = converging(n=60, groups=4)
    whole = bench(chosen, name=name)
    _, cell = whole.cells()
    value = whole.measure(cell, lambda rows: None)[0].value
    parts = []
    for rank in range(size):
        one = bench(chosen, name=name)
        one.team = Team(rank, size)
        parts.append(one._gather(cell, lambda rows: None))
    assert sum(part.done for part in parts) == 8
    total = merge_parts(parts)
    assert total.ledger.images == 60
    alone = whole._gather(cell, lambda rows: None)
    for output, batches in alone.batches.items():  # in the order of the images
        assert torch.equal(torch.cat(batches), torch.cat(total.batches[output]))
    assert whole.evaluator.value(total) == pytest.approx(value, rel=1e-12)
    for mine, other in zip(*map(whole.evaluator.list_groups, (alone, total)), strict=True):
        known = {key: each for key, each in mine.model_dump().items() if each is not None}
        assert other.model_dump(exclude_none=True) == pytest.approx(known, rel=1e-9)


def test_an_error_in_one_process_is_raised_in_all(monkeypatch):
    monkeypatch.setattr(Team, "gather", lambda self, value: [value, "no room"])
    with pytest.raises(FewstepError, match=r"no room \(process 1 of 2\)"):
        Team(0, 2).together(lambda: 3)


def test_devices_are_shared_out(monkeypatch):
    assert team("cpu") == Team(0, 1, "cpu")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SettingError, match="write 'cuda'"):
        team("cuda:1")


WORDS = ["bench", "fid-nfe", "--quiet", "--table", "csv"]
WORDS += ["--solver", "unipc-2", "--nfe", "1", "--images", "20", "--batch", "4"]


@pytest.mark.slow
def test_two_processes_give_the_figure_of_one(tmp_path):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    store = ["--store", str(tmp_path / "two.jsonl")]
    subprocess.run([*launcher, "-m", "fewstep.cli", *WORDS, *store], check=True, timeout=120)
    (two,) = ResultStore(tmp_path / "two.jsonl").rows.values()
    result = CliRunner().invoke(app, [*WORDS, "--store", "one.jsonl"])
    assert result.exit_code == 0, result.output
    one = json.loads((tmp_path / "one.jsonl").read_text())
    assert (two.processes, one["processes"]) == (2, 1)
    assert two.value == pytest.approx(one["value"], rel=1e-10)


LEAVES = """
import atexit, os
from pathlib import Path

def check():  # threads that outlive the interpreter can abort the process
    names = [(task / "comm").read_text() for task in Path("/proc/self/task").iterdir()]
    os._exit(any("gloo" in name for name in names))

atexit.register(check)  # runs last
from fewstep.eval.bench.team import team
team().gather(1)
import torch.distributed.nn
"""


@pytest.mark.skipif(sys.platform != "linux", reason="threads are read from /proc")
def test_no_thread_of_a_team_outlives_the_command(tmp_path):
    (tmp_path / "leaves.py").write_text(LEAVES)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    subprocess.run([*launcher, str(tmp_path / "leaves.py")], check=True, timeout=120)


# ---- the judge and the command


def test_labels_name_metric_and_network():
    assert split_label("fd-small") == ("fd", "small")
    assert split_label("fid") == ("fid", "inception")
    found = make_evaluator(Sweep(n=50, entries=(Entry(models=("flow",)),)))
    assert found.measure.metric == "fd-small"
    assert found.measure.reference == "fashion-mnist"
    assert found.reference.statistics["pool"].n == 60_000


REFUSED = [
    (["--solver", "unipc2"], "did you mean"),
    ([], "no solver"),
    (["--solver", "ddim", "--metric", "fdd-small"], "no metric"),
    (["--solver", "ddim", "--metric", "psnr"], "pairs"),
    (["--solver", "ddim", "--metric", "fid-small"], "inception network"),
    (["--solver", "ddim", "--metric", "fd-smal"], "no extractor"),
    (["--solver", "ddim", "--reference", "nowhere.npz"], "nowhere.npz"),
    (["--solver", "ddim", "--n", "1"], "n:"),
    (["--solver", "ddim", "--blocks", "0"], "'--blocks'"),
    (["--solver", "ddim", "--table", "html"], "no table"),
    (["--solver", "ddim", "--plot", "x.gif"], ".png"),
    (["--solver", "ddim", "--html", "no/where.html"], "does not exist"),
    (["--solver", "ddim", "--store", "no/where.jsonl"], "does not exist"),
    (["--solver", "ddim", "--cfg-interval", "1,2"], "guidance scale"),
    (["--solver", "ddim", "--cache", "taylor"], "did you mean"),
    (["--solver", "ddim", "--guidance", "adaptiv"], "adaptive"),
    (["--solver", "ddim", "--rival", "unipc", "--cache", "taylorseer"], "another entry"),
    (["--sweep", "none.json"], "cannot read"),
    (["--sweep", "bad.json"], "not a valid sweep"),
    (["--sweep", "good.json", "--solver", "ddim"], "drop solver"),
    (["--solver", "ddim", "--parts", "1"], "only a --sweep has parts"),
    (["--sweep", "good.json", "--parts", "0"], "the first part of this sweep is 1, not 0"),
    (["--model", "nowhere", "--solver", "ddim"], "nowhere"),
    (["--solver", "ddim", "--dtype", "fp8"], "fp8"),
    (["--solver", "ddim", "--device", "gpu"], "gpu"),
]


@pytest.mark.parametrize(("words", "message"), REFUSED, ids=str)
def test_bad_input_is_one_line(words, message, tmp_path):
    (tmp_path / "bad.json").write_text('{"entries": [{"models": ["flow"], "solver": "x"}]}')
    (tmp_path / "good.json").write_text(sweep().model_dump_json())
    result = CliRunner().invoke(app, ["bench", "fid-nfe", *words])
    assert result.exit_code == 2, result.output
    assert result.output.startswith("error: ")
    assert message in result.output
    assert result.output.count("\n") == 1


def test_the_command_draws_stores_and_prints(tmp_path):
    words = ["--solver", "ddim", "--rival", "euler-flux", "--nfe", "1,2", "--n", "20"]
    result = CliRunner().invoke(app, ["bench", "fid-nfe", *words])
    assert result.exit_code == 0, result.output
    assert "diffusers euler-flux" in result.output
    assert len(ResultStore(tmp_path / "results.jsonl").rows) == 4
    again = CliRunner().invoke(app, ["bench", "fid-nfe", *words])
    assert "seeds 0-19" in result.output
    assert "seeds 0-19" not in again.output  # nothing was left to do


def test_an_empty_partial_refuses_what_the_extractor_lacks():
    with pytest.raises(FewstepError, match="no probs features"):
        Partial.empty({"pool": 3}, metric("is").needs)
    part = Partial.empty({"pool": 3}, metric("fd").needs)
    with pytest.raises(FewstepError, match="NaN"):
        part.add({"pool": torch.full((2, 3), torch.nan)}, torch.zeros(2, dtype=torch.int64))
    part.add({"pool": torch.rand(4, 3)}, torch.zeros(4, dtype=torch.int64))
    part.count(Ledger(images=4), part.clock)
    origin = SimpleNamespace(name="fake", sha256="", resize="")
    assert features_of(part, metric("fd").needs, origin).n == 4


RESULTS = Path(__file__).parents[1] / "results"
SWEEPS = [path for kind in ("sweep", "guidance") for path in sorted(RESULTS.glob(f"{kind}-*.json"))]


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_the_sweeps_of_the_results_page_name_what_there_is(path):
    cells = plan_cells(Sweep.load(path), fake_evaluator(20).measure, lru_cache(load)).cells
    assert cells
