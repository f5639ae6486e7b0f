"""The benchmarks run, and what they count is what a step must not exceed. Times are not tested."""

from functools import partial
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch

from fewstep.eval.bench.runner import run_all, run_cells
from fewstep.eval.bench.timing import measure_in_turns, time_call
from fewstep.eval.experiments import overhead, speed, speed_races
from fewstep.eval.experiments.command import measure
from fewstep.eval.experiments.distances import Distance, DistantRun
from fewstep.eval.experiments.speed_races import OURS, Contest, Race
from fewstep.models.errors import SettingError, UnknownNameError
from fewstep.solvers import Executor, drive
from fewstep.solvers.presets import preset

MOST = {  # full-size tensor operations per step
    "ddim": 2,
    "euler": 2,
    "dpmpp-2m": 3,
    "dpmpp-3m": 4,
    "unipc-2": 4,
    "unipc-3": 5,
    "dpm-2m": 5,
    "deis-2": 5,
    "deis-3": 6,
    "deis-tab3": 7,
    "ipndm-4": 7,
    "lms": 7,
    "dpmpp-2s": 4,
    "dpmpp-3s": 4,
    "heun": 5,
    "dpm2": 5,
    "rf-solver": 5,
    "ddpm": 4,
    "sde-dpmpp-2": 5,
    "sa-solver": 6,
    "er-sde-3": 6,
}
UNCOUNTED = {"evodiff"}  # test_evodiff.py


@pytest.mark.parametrize(
    "pair", [p for p in overhead.PAIRS if p.name not in UNCOUNTED], ids=lambda pair: pair.name
)
def test_operations_per_step(pair):
    full, tiny = overhead.count_operations(overhead.make_ours(pair, 20), 20)
    assert full <= MOST[pair.name]
    assert tiny == 0


def test_counting_sees_full_and_tiny_operations():
    x = torch.ones(2, 3)
    with overhead.CountOps(6) as count:
        x.mul(2.0).add_(x)
        x.sum()
        x.view(6)
    assert (count.full, count.tiny) == (2, 1)


def test_report_has_a_line_per_solver_and_shape():
    lines = overhead.report(steps=3, repeats=1).splitlines()
    assert len(lines) == 2 + len(overhead.PAIRS) * len(overhead.SHAPES)


def test_times_are_taken_in_turns_and_the_first_ones_left_out(monkeypatch):
    order, now = [], [0.0]
    costs = {"a": [90.0, 90.0, 1.0, 3.0, 2.0], "b": [90.0, 90.0, 20.0, 30.0, 10.0]}

    def work(name):
        def run():
            order.append(name)
            now[0] += costs[name][order.count(name) - 1]

        return run

    monkeypatch.setattr("fewstep.eval.bench.timing.time.perf_counter", lambda: now[0])
    works = {name: partial(time_call, work(name)) for name in costs}
    assert measure_in_turns(works, repeats=3, warm=2) == {"a": 2.0, "b": 20.0}
    assert order == ["a", "b"] * 5


def test_commands_are_measured(tmp_path):
    seconds, megabytes = measure(("sample", "--help"), str(tmp_path))
    assert 0.0 < seconds < 60.0
    assert megabytes > 1.0


def make_race(values, name="a", **more):
    """A race whose sides measure given values in turn; the first turn does not count."""
    turns = {side: iter((99.0, *each)) for side, each in values.items()}
    works = {side: partial(next, each) for side, each in turns.items()}
    return Race("part", name, lambda: Contest(works, "so", **more), asked=2.0)


@pytest.fixture
def races(tmp_path, monkeypatch):
    """A bench of `bench speed` with other races, and the list of them."""
    listed = []
    bench = speed.open_bench(tmp_path / "speed.jsonl", repeats=12)  # of a long part three
    monkeypatch.setattr(type(bench), "_races", lambda self: iter(listed))
    return bench, listed


def test_a_race_is_judged_turn_by_turn(races):
    bench, listed = races
    listed.append(
        make_race({OURS: (1.0, 2.0, 4.0), "theirs": (2.0, 6.0, 4.0), "plain": (9.0,) * 3})
    )
    ((row,),) = run_cells(bench)
    assert row.sides[OURS] == (1.5, 2.0, 3.0)
    assert row.ratios == {"theirs": (1.5, 2.0, 2.5), "plain": (3.375, 4.5, 6.75)}
    assert (row.rival, row.verdict, row.turns) == ("theirs", "at least 2: met", 3)
    assert row.model_copy(update={"asked": 2.1}).verdict == "at least 2.1: NOT MET"
    assert row.model_copy(update={"equal": False}).verdict == "at least 2: NOT MET"
    assert list(run_cells(bench)) == []  # it is in the store
    (line,) = [line for line in speed.write_table([row]) if line.startswith("| a |")]
    assert "| 2.00 (1.50..2.50) | at least 2: met | so; plain 9.00 (9.00..9.00) s |" in line


def test_a_search_pays_after_as_many_images_as_save_its_time(races):
    bench, listed = races
    listed += [
        make_race({OURS: (1.0,) * 3, "theirs": (3.0,) * 3}, spent=60.0, images=4),
        make_race({OURS: (3.0,) * 3, "theirs": (1.0,) * 3}, "b", spent=60.0),
    ]
    run_all(bench)
    saving, losing = bench.rows()
    assert (saving.break_even, losing.break_even) == (120.0, None)
    *_, line = speed.write_table(bench.rows())
    assert line == "- a: the search of its schedule took 60 s, which 120 images save."


@pytest.mark.parametrize("changed", [{"machine": "an abacus"}, {"versions": {"fewstep": "0.0.9"}}])
def test_times_of_another_machine_or_version_are_refused(races, changed):
    bench, listed = races
    listed.append(make_race({OURS: (1.0,) * 3, "theirs": (2.0,) * 3}))
    run_all(bench)
    (row,) = bench.rows()
    assert speed.open_bench(bench.store.path).store.rows == {row.key: row}
    bench.store.append(row.model_copy(update=changed))
    with pytest.raises(SettingError, match="was measured by"):
        speed.open_bench(bench.store.path)


def test_every_part_has_races_and_only_those_are_asked_for(tmp_path):
    every = speed.open_bench(tmp_path / "s.jsonl", networks=["a", "b"]).cells()
    assert len({(race.part, race.name) for race in every}) == len(every) == 11 + 5 + 1 + 4
    (one,) = speed.open_bench(tmp_path / "s.jsonl", ["commands"]).cells()
    assert one.part == "cold start"
    with pytest.raises(UnknownNameError, match="no part 'step'"):
        speed.open_bench(tmp_path / "s.jsonl", ["step"])


def test_a_tuned_schedule_steps_as_it_runs():
    schedule, out = preset("fashion-dit-nfe5"), torch.full((1, 1, 2, 2), 0.5)
    stepped = speed_races._make_tuned(speed_races.TUNED, 5)(torch.ones(1, 1, 2, 2), out)
    x, solver = torch.ones(1, 1, 2, 2), Executor(schedule)
    state = solver.init()
    for t, s in pairwise(schedule.grid().nodes):
        x, state = drive(solver.step(x, state, t, s), lambda query, node: out)
    assert torch.equal(stepped, x)


def test_equal_quality_is_the_first_run_that_is_as_near():
    def near(nfe, error):
        run = DistantRun(network="n", process="p", reference="", noises=1, nfe=nfe, rival="unipc")
        return Distance.here(run=run, squares=(error**2,))

    meter = SimpleNamespace(name="n", measure_sampled=lambda nfe: near(nfe, 1.0 / nfe))
    assert speed_races.find_equal(meter, near(20, 0.125)).run.nfe == 8
    assert speed_races.find_equal(meter, near(6, 0.1)).run.nfe == 6  # none is
