"""How costs grow: slopes, memory of fresh processes, shares of the work, what the store refuses."""

import pytest
import torch
from typer.testing import CliRunner

from fewstep.cli import app
from fewstep.eval.bench.runner import run_all
from fewstep.eval.bench.team import Team
from fewstep.eval.experiments import scaling
from fewstep.eval.experiments.scaling import GrowthAxis, ScalingRow, draw_share, merge_digests
from fewstep.eval.experiments.scaling_table import draw_curves, find_slope, write_table
from fewstep.models.errors import SettingError, UnknownNameError


def row(axis, value, seconds, digest=None):
    return ScalingRow.here(
        axis=axis, value=value, seconds=(seconds,) * 3, mebibytes=9.0, turns=1, digest=digest
    )


def test_the_slope_is_the_exponent_of_the_upper_half():
    flat = [row("steps", value, 1.0) for value in (1, 2, 4)]
    steep = [row("steps", value, value**1.5 / 8.0) for value in (4, 16, 64)]
    assert find_slope([*flat[:3], *steep]) == pytest.approx(1.5)
    assert find_slope(flat[:2]) == 0.0


def test_one_axis_is_measured_once(tmp_path, monkeypatch):
    monkeypatch.setitem(scaling.AXES, "steps", GrowthAxis("steps", (2, 4), scaling.take_steps))
    words = ["bench", "scaling", "--axis", "steps", "--repeats", "1", "--quiet"]
    words += ["--store", str(tmp_path / "s.jsonl"), "--plot", str(tmp_path / "s.png")]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert "Slope of the upper half" in done.output
    bench = scaling.open_bench(tmp_path / "s.jsonl", ["steps"])
    run_all(bench)
    assert [each.value for each in bench.rows()] == [2, 4]
    assert len((tmp_path / "s.jsonl").read_text().splitlines()) == 2
    assert all(each.seconds[0] > 0.0 and each.mebibytes > 50.0 for each in bench.rows())
    assert (tmp_path / "s.png").read_bytes().startswith(b"\x89PNG")


def test_a_state_of_a_size_is_stepped_as_often_as_it_says(monkeypatch):
    sizes = []
    monkeypatch.setattr(scaling, "make_ours", lambda pair, steps: lambda x, out: sizes.append(x))
    scaling.step_state(3)()
    assert [x.numel() * x.element_size() for x in sizes] == [3 * 1024]


def test_shares_of_two_processes_are_those_of_one_to_the_bit(monkeypatch):
    monkeypatch.setattr(scaling, "BATCH", 2)
    monkeypatch.setattr(scaling, "EVALUATIONS", 1)
    threads = torch.get_num_threads()
    alone = [draw_share(8, Team())[0]]
    shares = [draw_share(8, Team(rank, 2))[0] for rank in range(2)]
    torch.set_num_threads(threads)
    assert [len(each) for each in (*alone, *shares)] == [4, 2, 2]
    assert merge_digests(shares) == merge_digests(alone)
    assert merge_digests(shares[::-1]) != merge_digests(alone)
    rows = [row("processes", 1, 2.0, "a"), row("processes", 2, 1.0, "a")]
    assert "Samples of all numbers of processes are equal to the bit." in list(write_table(rows))
    rows[1] = row("processes", 2, 1.0, "b")
    assert "Samples of all numbers of processes are NOT EQUAL." in list(write_table(rows))


@pytest.mark.slow
def test_two_processes_draw_what_one_does(tmp_path):
    bench = scaling.open_bench(tmp_path / "s.jsonl", ["processes"], repeats=1)
    run_all(bench)
    one, two = bench.rows()
    assert one.digest == two.digest
    assert two.mebibytes > 1.5 * one.mebibytes


def test_what_is_wrong_is_refused(tmp_path):
    with pytest.raises(UnknownNameError, match="no axis 'stat'"):
        scaling.open_bench(tmp_path / "s.jsonl", ["stat"])
    bench = scaling.open_bench(tmp_path / "s.jsonl", ["steps"])
    bench.store.append(row("steps", 10, 1.0).model_copy(update={"machine": "an abacus"}))
    with pytest.raises(SettingError, match="machine 'an abacus'"):
        scaling.open_bench(tmp_path / "s.jsonl")
    with pytest.raises(SettingError, match="nothing to draw"):
        draw_curves([], tmp_path / "s.png")
