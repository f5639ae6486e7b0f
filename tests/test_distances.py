"""Distances from the converged run: their figures, their store, and the default beside rivals."""

import pytest
import torch
from test_rivals import NETWORKS

from fewstep.eval.bench.store import RowStore
from fewstep.eval.experiments import distances, rival_bench
from fewstep.eval.experiments.distances import (
    Distance,
    DistanceMeter,
    DistantRun,
    format_parts,
    open_distances,
)
from fewstep.eval.experiments.rival_bench import format_matches, measure_matches
from fewstep.eval.experiments.rivals import RivalSampler
from fewstep.eval.search.objective import find_features
from fewstep.models.errors import SettingError
from fewstep.models.load import load
from fewstep.models.schedule import RectifiedFlow
from fewstep.samplers.grid import choose_default_grid
from fewstep.samplers.sampler import Sampler

SEEDS = range(40, 46)


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setattr(distances.Sampler, "from_pretrained", lambda name: Sampler(NETWORKS[name]))
    return RowStore(tmp_path / "distances.jsonl", Distance)


def test_distances_are_those_of_single_noises_from_the_converged_run(store):
    meter = DistanceMeter("flow", SEEDS, store)
    sampler = Sampler(NETWORKS["flow"])
    converged = sampler(SEEDS, solver="unipc-3", grid="beta", nfe=100).samples
    grid = choose_default_grid(RectifiedFlow(), 5)
    ours = sampler(SEEDS, solver="unipc-2", grid=grid, nfe=5).samples
    row = meter.measure_default(5)
    assert (row.run.solver, row.run.grid) == ("unipc-2", grid)
    torch.testing.assert_close(
        torch.tensor(row.squares), (ours - converged).square().flatten(1).mean(1)
    )
    assert row.rms == pytest.approx(float((ours - converged).square().mean().sqrt()), rel=1e-5)
    theirs = RivalSampler(NETWORKS["flow"], "unipc", 5)(SEEDS).samples
    few = meter.measure_rival("unipc", 5, 2)
    assert few.rms == pytest.approx(
        float((theirs - converged)[:2].square().mean().sqrt()), rel=1e-5
    )
    assert len(meter.measure_rival("unipc", 5).squares) == 6


def test_what_was_measured_is_not_measured_again(store, monkeypatch):
    first = DistanceMeter("flow", SEEDS, store).measure_rival("unipc", 5)
    monkeypatch.setattr(distances, "RivalSampler", None)
    again = RowStore(store.path, Distance)
    assert DistanceMeter("flow", SEEDS, again).measure_rival("unipc", 5) == first
    with pytest.raises(SettingError, match="flow with other weights or on other noises"):
        DistanceMeter("flow", range(40, 45), again).measure_rival("unipc", 5)


def test_a_run_that_cannot_be_has_no_distance(store):
    row = DistanceMeter("flow", SEEDS, store).measure_rival("heun", 4)
    assert row.rms == float("inf")
    assert "cannot spend exactly 4" in row.failure


def test_features_stand_beside_distances_where_they_are_asked_for(store, monkeypatch):
    monkeypatch.setattr(
        distances.Sampler, "from_pretrained", lambda name: Sampler(load("fashion-dit"))
    )
    monkeypatch.setattr(distances, "REFERENCE", {"solver": "unipc-2", "nfe": 4})
    plain = DistanceMeter("a", range(3), store).measure_default(2)
    assert plain.features is None
    meter = DistanceMeter("b", range(3), store)
    row = meter.measure_default(2, seen=True)
    assert row.squares == plain.squares
    network, samples = (
        meter.sampler.network,
        meter.sampler(range(3), class_labels=[0, 1, 2], nfe=2).samples,
    )
    compared = find_features("auto", network, None).compare(samples, meter.reference)
    assert row.features == pytest.approx(compared.tolist())


def test_a_store_of_another_version_is_refused(store, monkeypatch):
    DistanceMeter("vp", SEEDS, store).measure_default(3)
    assert open_distances(store.path).rows == store.rows
    monkeypatch.setattr("fewstep.eval.bench.rows.__version__", "9.9")
    with pytest.raises(SettingError, match=r"here it is '9\.9'"):
        open_distances(store.path)


def test_the_range_is_that_of_three_blocks():
    assert format_parts([1.0, 1.0, 4.0, 4.0, 9.0, 9.0]) == "2.1602 (1.0000..3.0000)"


def test_the_table_holds_the_nearest_of_the_finalists(store, monkeypatch):
    """On noises other than the few on which they are chosen, another one may be."""
    errors = {"euler": 0.2, "unipc": 0.3, "deis": 0.25}
    monkeypatch.setattr(rival_bench, "choose_rivals", lambda schedule, judge: list(errors))
    monkeypatch.setattr(
        DistanceMeter, "measure_rival", lambda self, spec, nfe: made(spec, errors[spec])
    )
    monkeypatch.setattr(DistanceMeter, "measure_default", lambda self, nfe: made("ours", 0.3))
    matches = list(measure_matches("vp", [5, 8], SEEDS, store))
    _, _, five, eight, _, last = "\n".join(format_matches(matches)).split("\n")
    assert "| `euler` | 0.2000 (0.2000..0.2000) | 1.50 |" in five
    assert five.startswith("| net | 5 |")
    assert eight == five
    assert last == "The default is nearer in 0 of 2; the worst ratio is 1.50."
    monkeypatch.setattr(rival_bench, "choose_rivals", lambda schedule, judge: [])
    with pytest.raises(SettingError, match="no scheduler of diffusers runs on vp"):
        list(measure_matches("vp", [5], SEEDS, store))


def made(rival, error):
    run = DistantRun(network="net", process="vp", reference="", noises=3, nfe=5, rival=rival)
    return Distance.here(run=run, squares=(error**2,) * 3)
