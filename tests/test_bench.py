"""The benchmarks run, and what they count is what a step must not exceed. Times are not tested."""

from functools import partial

import pytest
import torch

from fewstep.eval.bench.timing import measure_in_turns, time_call
from fewstep.eval.experiments import overhead
from fewstep.eval.experiments.command import measure

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
