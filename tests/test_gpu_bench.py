"""`fewstep bench gpu` at tiny sizes on the CPU: its figures, its store, its table."""

import json
from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

from fewstep.cli import app
from fewstep.eval.bench.runner import run_cells
from fewstep.eval.experiments.gpu import GpuBench, GpuJob
from fewstep.eval.experiments.gpu_figures import GpuFigure, table
from fewstep.eval.experiments.gpu_jobs import TINY, Large, Small
from fewstep.eval.experiments.gpu_networks import TINY_DIT, TINY_FLUX, dit, flux
from fewstep.models.errors import SettingError
from fewstep.models.speed import Speed
from fewstep.samplers.sampler import Sampler

CPU = torch.device("cpu")
QUICK = replace(TINY, steps=6)


def test_figures_are_found_again_and_half_lines_and_other_machines_are_left(tmp_path):
    path, figure = tmp_path / "x.jsonl", GpuFigure("job", "what", 1.5, "x", 3.0)

    def bench(path=path, where="cpu"):
        made = GpuBench(path, where, CPU, QUICK)
        made.keep = lambda figures: made.store.append(*made.make_rows(figures))
        made.held = lambda job: [row.figure for row in made.find_rows(GpuJob(job, None))]
        return made

    bench().keep([figure])
    path.write_bytes(path.read_bytes() + b'{"job": "half')
    other = json.loads(path.read_text().splitlines()[0]) | {"torch": "1.0", "job": "old"}
    with path.open("a") as file:
        file.write("\n" + json.dumps(other))
    again = bench()
    assert (again.held("job"), again.held("old")) == ([figure], [])
    again.keep([replace(figure, job="next")])
    assert [len(bench().held(job)) for job in ("job", "next", "old")] == [1, 1, 0]
    assert bench(where="cuda").held("job") == []
    with pytest.raises(SettingError, match="does not exist; create it first"):
        bench(tmp_path / "none" / "x.jsonl").keep([figure])


def test_the_table_says_what_was_asked_and_judges_where_it_may():
    figures = [
        GpuFigure("a", "ratio", 2.0, "x", 3.0),
        GpuFigure("a", "share", 1.04, "x", 1.05, "most"),
        GpuFigure("b", "speed", 7.0, " images/s"),
    ]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table(figures, True)][2:]
    assert rows == [
        ["a", "ratio", "2x", "at least 3x", "NOT MET"],
        ["", "share", "1.04x", "at most 1.05x", "met"],
        ["b", "speed", "7 images/s", "", ""],
    ]
    assert "MET" not in "".join(table(figures, False))


@pytest.mark.parametrize(("make", "size"), [(dit, TINY_DIT), (flux, TINY_FLUX)])
def test_a_sized_network_is_what_its_size_says(make, size):
    network = make(size, CPU, torch.bfloat16)
    found = next(network.module.parameters())
    assert (found.dtype, torch.get_default_dtype()) == (torch.bfloat16, torch.float32)
    names = ("transformer_blocks", "single_transformer_blocks")
    blocks = [getattr(network.module, name, ()) for name in names]
    assert sum(map(len, blocks)) == sum(size.layers)
    seen = []
    block = blocks[0][0]
    block.register_forward_pre_hook(
        lambda m, a, k: seen.append([*a, *k.values()][0]), with_kwargs=True
    )
    labels = {"class_labels": 1} if network.num_classes else {}
    assert Sampler(network)(range(1), steps=1, **labels).samples.isfinite().all()
    assert seen[0].shape[-2:] == (size.tokens - size.text, size.heads * size.width)


def test_jobs_measure_what_they_say():
    small = Small("fashion-dit", 1, CPU, QUICK).figures("small")
    named = {each.what: each for each in small}
    ratio = named["eager"].value / named["diffusers eager"].value
    assert named["eager over diffusers eager"].value == pytest.approx(ratio)
    assert named["eager over diffusers eager"].asked == 3.0
    large = Large(TINY_DIT, dit, CPU, QUICK)
    cached = {each.what: each.value for each in large.time_cache("taylorseer, last block")("c")}
    full = 2 + (QUICK.steps - 2) // 4
    assert cached["full over evaluated blocks"] == pytest.approx(QUICK.steps / full)
    allowed = cached["speed-up"] / cached["full over evaluated blocks"]
    assert cached["speed-up of what the blocks allow"] == pytest.approx(allowed)
    run = {each.what: each.value for each in large.overhead("o")}
    share = run[f"run of {QUICK.steps} steps"] / (run["one call of the network"] * QUICK.steps)
    assert run["solver and guidance"] == pytest.approx(100.0 * (1e3 * share - 1.0))


def test_the_loop_of_a_pipeline_gives_the_images_of_ours():
    """Else the two would not be timed at the same work."""
    small = Small("fashion-dit", 2, CPU, QUICK)
    theirs = small._make_theirs(small._network(Speed()))()
    ours = small._make_ours(small._network(Speed()))()
    assert theirs[0].shape == ours.samples.shape
    assert float((theirs[0] - ours.samples).square().mean().sqrt()) < 0.2


def test_a_job_that_fails_is_remarked_upon_and_the_others_go_on(tmp_path, monkeypatch):
    def jobs(self):
        yield GpuJob("bad", lambda name: 1 / 0)
        yield GpuJob("good", lambda name: [GpuFigure(name, "what", 1.0)])

    monkeypatch.setattr(GpuBench, "_jobs", jobs)
    bench = GpuBench(tmp_path / "x.jsonl", "cpu", CPU, QUICK)
    list(run_cells(bench))
    assert bench.remarks == ["bad: ZeroDivisionError: division by zero"]
    assert [each.job for each in bench.rows()] == ["good"]


def test_the_command_measures_once_and_says_that_it_ran_on_the_cpu(tmp_path, monkeypatch):
    ran = []

    def jobs(self):
        figure = GpuFigure("one", "what", 1.0, "x", 3.0)
        yield GpuJob("one", lambda name: [ran.append(name) or figure])

    monkeypatch.setattr(GpuBench, "_jobs", jobs)
    words = ["bench", "gpu", "--device", "cpu", "--tiny", "--store", str(tmp_path / "x.jsonl")]
    for _ in range(2):
        done = CliRunner().invoke(app, [*words, "--quiet"])
        assert done.exit_code == 0
        assert done.stdout.startswith("A run on cpu, tiny sizes: it shows that the benchmark works")
    assert ran == ["one"]
    for extra in (["--device", "nowhere"], ["--store", str(tmp_path)]):
        done = CliRunner().invoke(app, [*words, *extra])
        assert done.exit_code == 2
        assert done.stderr.startswith("error: ")
