"""`fewstep bench cache`: cells, figures, the baseline, rivals, table and plot."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner

from fewstep.cli import app
from fewstep.eval.bench.front_table import FrontPanel, FrontPoint, FrontRun
from fewstep.eval.bench.rows import ResultRow, ResultStore
from fewstep.eval.bench.runner import run_cells
from fewstep.eval.experiments import cache_front, caches
from fewstep.eval.experiments.cache import (
    TIME,
    TO_EXACT,
    TO_UNCACHED,
    UNCACHED,
    CacheBench,
)
from fewstep.eval.experiments.cache_front import CacheFront
from fewstep.eval.experiments.cache_table import CacheTable
from fewstep.eval.experiments.cache_times import CacheTimes
from fewstep.eval.experiments.caches import POLICIES, count_rival, is_rival, rival_run
from fewstep.models.caching import caching, take_cache
from fewstep.models.errors import FewstepError, SettingError
from fewstep.models.load import load
from fewstep.samplers.diffusers.scheduler import SolverScheduler
from fewstep.samplers.noise import Noise
from fewstep.samplers.sampler import Sampler
from fewstep.solvers import solver
from fewstep.solvers.cached_calls import CachedCalls

TABLE = CacheTable()
LITE = "taylorseer:interval=2,level=last-block"
OFF = "diffusers-first-block:threshold=0"
THEIRS = "diffusers-taylorseer:cache_interval=2,max_order=1,disable_cache_before_step=2"


def front(**changes):
    usual = {
        "models": ("fashion-dit",),
        "policies": (LITE, OFF, THEIRS, "teacache:threshold=0.1", "deepcache"),
        "solvers": ("ddim",),
        "steps": (6,),
        "baselines": ("ddim", "dpmpp-2m"),
        "budgets": (3, 4),
        "images": 2,
        "reference_nfe": 12,
    }
    return CacheFront(**{**usual, **changes})


@pytest.fixture(autouse=True, scope="module")
def no_presets():
    """Runs of the package's own schedules are left out: others may be shipped."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache_front, "best_preset", lambda *asked: None)
        yield


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    made = CacheBench(front(), ResultStore(tmp_path_factory.mktemp("front") / "cache.jsonl"))
    made.ran = list(run_cells(made))
    return made


def of(bench, policy, nfe=6):
    run = FrontRun("fashion-dit", "ddim", nfe, policy)
    return next(each for each in bench.points() if each.run == run)


def test_every_prepared_cache_exists():
    for policies in POLICIES.values():
        assert len(set(policies)) == len(policies) > 10
        assert all(is_rival(each) or take_cache(each) for each in policies)


CALL = {"solver": "ddim", "class_labels": 3}
CACHE_DIT = "cache-dit:Fn_compute_blocks=1,max_warmup_steps=3,residual_diff_threshold=0.3"


def test_pab_of_diffusers_is_ours_to_the_bit_in_the_same_window():
    network = load("fashion-dit")
    spec = "diffusers-pab:range=3,window=[0.3,0.8]"
    theirs, effective = count_rival(network, spec, range(2), 10, **CALL)
    ours = Sampler(network)(
        range(2), nfe=10, cache="pab:spatial=3,window=[0.3,0.8]", batch=2, **CALL
    )
    plain = Sampler(network)(range(2), nfe=10, batch=2, **CALL)
    assert torch.equal(theirs.samples, ours.samples)
    assert not torch.equal(theirs.samples, plain.samples)
    assert effective == pytest.approx(ours.ledger.effective_nfe)


def test_the_calibrators_of_cache_dit_forecast_where_without_one_it_repeats():
    pytest.importorskip("cache_dit")
    network = load("fashion-dit")
    repeated = rival_run(network, CACHE_DIT, [0], 20, **CALL).samples
    for name in ("taylor", "foca", "dmd"):
        forecast = rival_run(network, f"{CACHE_DIT},{name}=1", [0], 20, **CALL).samples
        assert not torch.equal(forecast, repeated)


def test_our_scheduler_runs_under_cache_dit_and_our_caches_do_not():
    pytest.importorskip("cache_dit")
    network, runs = load("fashion-dit"), []
    config = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000}
    for _ in range(2):
        scheduler = SolverScheduler.from_config(config, solver="heun")
        scheduler.set_timesteps(6)
        settings = {"residual_diff_threshold": 0.3, "Fn_compute_blocks": 1, "max_warmup_steps": 3}
        detach = caches._cache_dit(network.module, settings, len(scheduler.timesteps))
        with pytest.raises(SettingError, match="cache-dit already"), caching(network, LITE):
            pass
        x, blocks = Noise([0], network.shape).draw(), CountCalls(network.module)
        for t in scheduler.timesteps:
            labels = {"timestep": t.expand(1), "class_labels": torch.tensor([3])}
            out = network.module(x, **labels, return_dict=False)[0]
            x = scheduler.step(out, t, x, return_dict=False)[0]
        detach()
        runs.append((x, blocks.first, blocks.last))
    (x, first, last), (again, *_) = runs
    assert torch.equal(x, again)
    assert first == len(scheduler.timesteps) == 11  # its steps are evaluations
    assert 3 <= last < first


class CountCalls:
    """Counts the calls of the first and the last block of a transformer."""

    def __init__(self, module):
        self.first = self.last = 0
        blocks = module.transformer_blocks
        blocks[0].register_forward_hook(lambda *_: setattr(self, "first", self.first + 1))
        blocks[-1].register_forward_hook(lambda *_: setattr(self, "last", self.last + 1))


def test_uncached_runs_come_first_and_only_solvers_of_caches_have_all_steps():
    cells = [(c.solver, c.nfe, c.policy) for c in front(policies=(LITE,)).cells()]
    free = [(s, n, None) for n in (3, 4) for s in ("ddim", "dpmpp-2m")]
    assert cells == [*free, ("ddim", 6, None), ("ddim", 6, LITE)]


def test_figures_are_measured_once(bench):
    assert len(bench.ran) == 9
    again = CacheBench(bench.front, ResultStore(bench.store.path))
    assert list(run_cells(again)) == []
    assert again.points() == bench.points()
    assert [r.partition(":")[0] for r in bench.remarks] == ["deepcache"]


def test_a_store_with_rows_of_other_weights_is_refused(bench, tmp_path):
    row, store = bench.rows()[0], ResultStore(tmp_path / "other.jsonl")
    images = row.protocol.images.model_copy(update={"weights": "a" * 64})
    other = row.protocol.model_copy(update={"images": images})
    store.append(ResultRow.now(other, row.value))
    with pytest.raises(SettingError, match="fashion-dit with other weights"):
        CacheBench(bench.front, store).rows()


def test_errors_are_relative_to_the_uncached_and_the_converged_run(bench):
    network = bench.network("fashion-dit")
    call = {"class_labels": [0, 1], "solver": "ddim", "nfe": 6}
    plain = Sampler(network)(range(2), **call).samples
    cached = Sampler(network)(range(2), cache=take_cache(LITE), **call)
    exact = Sampler(network)(range(2), **{**call, "solver": "unipc-3", "nfe": 12}).samples
    figure = of(bench, LITE)
    assert figure.change == pytest.approx(float((cached.samples - plain).norm() / plain.norm()))
    assert figure.error == pytest.approx(float((cached.samples - exact).norm() / exact.norm()))
    assert figure.cost == pytest.approx(cached.ledger.effective_nfe)
    assert of(bench, None).error == pytest.approx(float((plain - exact).norm() / exact.norm()))
    assert (of(bench, None).change, of(bench, None).cost) == (0.0, 6.0)


def test_rivals_that_are_off_change_nothing_and_cost_all(bench):
    figure = of(bench, OFF)
    assert (figure.change, figure.cost) == (0.0, 6.0)
    on = of(bench, THEIRS)
    assert 3.0 < on.cost < 6.0
    assert on.change > 0.0


def test_rivals_leave_the_network_as_it_was(bench):
    network = bench.network("fashion-dit")
    call = {"class_labels": [0, 1], "solver": "ddim"}
    plain = Sampler(network)(range(2), nfe=6, **call).samples
    first, second = (rival_run(network, THEIRS, range(2), 6, **call).samples for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(Sampler(network)(range(2), nfe=6, **call).samples, plain)
    assert not any("_diffusers_hook" in vars(each) for each in network.module.modules())
    with pytest.raises(SettingError, match="diffusers-taylorseer:no=1: TypeError"):
        rival_run(network, "diffusers-taylorseer:no=1", range(2), 6, **call)


def test_calibrated_caches_bring_what_they_are_fitted_to(bench):
    spec = bench.spec(FrontRun("fashion-dit", "ddim", 6, "teacache:threshold=0.1"))
    assert "coefficients=[" in spec
    assert len(take_cache(spec).coefficients) == 5


def test_times_are_medians_over_those_of_the_uncached_run(bench, monkeypatch):
    turns = {None: [9.0, 4.0, 5.0], LITE: [2.0, 2.5, 50.0]}
    asked = []

    def seconds(self, cell):
        asked.append(cell.policy)
        return turns[cell.policy][asked.count(cell.policy) - 1 - (cell.policy is not None)]

    monkeypatch.setattr(CacheBench, "time_run", seconds)
    turns[LITE].insert(0, 1.0)  # the run that warms up counts nothing
    turns[LITE] = turns[LITE][1:]
    timed = CacheBench(front(policies=(LITE,)), bench.store)
    ((row,),) = run_cells(CacheTimes(timed, 3))
    assert (row.protocol.measure.metric, row.protocol.images.run.cache) == (TIME, LITE)
    assert asked == [LITE, None, LITE, None, LITE, None, LITE]
    figure = next(each for each in timed.points() if each.run.policy == LITE)
    assert figure.ratio == pytest.approx(2.5 / 4.0), "of single turns"
    assert figure.quartiles == pytest.approx(((2.0 / 9.0 + 2.5 / 4.0) / 2.0, (0.625 + 10.0) / 2.0))
    assert figure.seconds == 2.5
    assert list(run_cells(CacheTimes(timed, 3))) == []
    assert "| `taylorseer:interval=2,level=last-block` | ddim | 6 |" in "\n".join(
        TABLE.lines(timed.points())
    )


def test_blocks_and_searched_schedules_stand_in_one_table(tmp_path):
    """A mask in a file is the run of its policy; a point has the mean and the shares of blocks."""
    plain = solver("ddim").encode(Sampler(load("fashion-dit")).plan(solver="ddim", nfe=6).grid)
    path = tmp_path / "mask.json"
    mask = plain.with_cache(CachedCalls(compute=(0, 1, 2, 3, 5)))
    path.write_text(mask.model_copy(update={"provenance": {"model": "fashion-dit"}}).dump())
    same = "fixed-mask:compute=[0,1,2,3,5],predictor=taylor"
    settings = {"policies": (same,), "schedules": (str(path),), "blocks": 2, "budgets": (3, 6)}
    bench = CacheBench(front(**settings), ResultStore(tmp_path / "rows.jsonl"))
    cells = bench.cells()
    half = len(cells) // 2
    assert [cell.block for cell in cells] == [0] * half + [1] * half
    assert list(bench.front._list_searched("emoji")) == []
    for done, _ in enumerate(run_cells(bench), 1):
        assert done > half or bench.points() == [], "a point stands for all blocks"
    named = next(each for each in bench.points() if each.run.schedule)
    typed = next(each for each in bench.points() if each.run.policy == same and each is not named)
    assert named.run.family == "searched mask"
    assert (named.cost, named.error) == (typed.cost, typed.error)
    first, second = named.parts
    assert named.error == pytest.approx((first.error + second.error) / 2.0)
    assert first.error != second.error
    panel = FrontPanel("m", tuple(bench.points()), UNCACHED)
    low, high = panel.spread(named)
    assert low <= panel.share(named) <= high
    row = next(row for row in TABLE.list_best(panel) if str(path) in row)
    assert f"| {low:.2f} to {high:.2f} |" in row


def test_rows_name_the_grid_that_is_the_default(bench):
    """A default that becomes another one is another row."""
    grids = {row.protocol.images.run.grid for row in bench.store.rows.values()}
    assert None not in grids
    cell = bench.cells()[0]
    assert bench.protocol_of(cell, TIME).images.run.grid == bench.grid("fashion-dit", "ddim", 3)
    assert "on " in bench.protocol_of(cell, TO_EXACT).measure.reference


def figure(effective, error, policy=None, by="a"):
    return FrontPoint(FrontRun("m", by, 9, policy), effective, error)


POINTS = (
    figure(10.0, 0.10),
    figure(20.0, 0.01),
    figure(10.0, 0.05, by="b"),
    figure(12.0, 0.04, by="b"),
    figure(12.0, 0.03, "cg-taylor:threshold=0.1"),
    figure(12.9, 0.02, "cg-taylor:threshold=0.2"),
    figure(13.5, 0.01, "cg-taylor:threshold=0.3"),
    figure(5.0, 0.001, "cg-taylor:threshold=0.4"),
)


def test_the_baseline_is_the_best_solver_between_its_steps():
    panel = FrontPanel("m", POINTS, UNCACHED)
    assert panel.baseline_error(15.0) == pytest.approx(math.sqrt(0.10 * 0.01))
    assert panel.baseline_error(11.0) == pytest.approx(math.sqrt(0.05 * 0.04))
    assert panel.baseline_error(12.0) == pytest.approx(0.04)
    assert math.isnan(panel.baseline_error(9.0))
    assert panel.families == [UNCACHED, "cg-taylor"]


def test_the_best_within_a_budget_is_shown_beside_the_baseline():
    panel = FrontPanel("m", POINTS, UNCACHED)
    assert TABLE.best(panel, "cg-taylor", 12).cost == 12.9  # 13.5 is more than the budget
    text = "\n".join(TABLE.lines(POINTS))
    assert "| cg-taylor |" in text
    assert f"0.0200 ({0.02 / panel.baseline_error(12.9):.2f})" in text
    rows = list(TABLE.lines(POINTS, "csv"))
    assert len(rows) == 1 + len(POINTS)
    assert 'm,a,9,"cg-taylor:threshold=0.1",12.000,0.03,0.75,,,' in rows


def test_times_stand_beside_the_flops_that_were_saved():
    """Three times as fast at a quarter of the FLOPs is three quarters of what they promise."""
    timed = FrontPoint(FrontRun("m", "a", 12, "p"), 3.0, ratio=1.0 / 3.0, seconds=0.5)
    lines = list(TABLE.append(FrontPanel("m", (timed,), UNCACHED)))
    assert "| `p` | a | 12 | 3.00 | 3.00 | 0.75 | 500.0 |" in lines
    spread = replace(timed, quartiles=(0.25, 0.5))
    lines = list(TABLE.append(FrontPanel("m", (spread,), UNCACHED)))
    assert "| `p` | a | 12 | 3.00 | 3.00 | 0.75 [0.50, 1.00] | 500.0 |" in lines


def test_the_plot_shows_every_family_and_the_baseline(tmp_path):
    TABLE.draw(POINTS, tmp_path / "front.svg")
    text = (tmp_path / "front.svg").read_text()
    assert "cg-taylor" in text
    assert "fewer steps, best solver" in text


BAD = [
    (("--solver", "ode-dopri5"), "chooses its steps"),
    (("--cache", "tailor"), "no cache 'tailor'"),
    (("--steps", "1"), "steps"),
    (("--images", "1"), "images"),
    (("--table", "tex"), "no table 'tex'"),
    (("--plot", "front.gif"), "must end in .png"),
    (("--store", "no/where.jsonl"), "does not exist"),
    (("--cache", "taylorseer:interval=0"), "interval must be at least 1"),
]


@pytest.mark.parametrize(("words", "said"), BAD)
def test_bad_input_is_one_line_and_exit_code_2(tmp_path, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["bench", "cache", "fashion-dit", *words])
    assert done.exit_code == 2
    assert said in done.output
    assert len(done.output.strip().splitlines()) == 1


def test_a_run_is_timed_per_image(bench, monkeypatch):
    result = SimpleNamespace(ledger=SimpleNamespace(seconds=6.0))
    monkeypatch.setattr(bench, "execute", lambda cell, seeds: result)
    assert bench.time_run(bench.cells()[0]) == 6.0 / bench.front.images


def test_other_networks_need_their_caches_named():
    with pytest.raises(FewstepError, match="give them with --cache"):
        front(models=("elsewhere",), policies=()).cells()


def test_the_command_prints_and_draws(bench, tmp_path):
    words = ["bench", "cache", "fashion-dit", "--solver", "ddim", "--steps", "6", "--images", "2"]
    words += ["--baseline", "ddim", "--baseline", "dpmpp-2m", "--budgets", "3,4", "--cache", LITE]
    words += ["--reference-nfe", "12", "--store", str(bench.store.path)]
    done = CliRunner().invoke(app, [*words, "--table", "csv", "--plot", str(tmp_path / "a.png")])
    assert done.exit_code == 0, done.output
    assert done.output.startswith("model,solver,nfe,cache,effective,error,of_baseline,change")
    assert (tmp_path / "a.png").stat().st_size > 10_000
    assert TO_UNCACHED in {r.protocol.measure.metric for r in bench.store.rows.values()}
