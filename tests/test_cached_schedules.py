"""A cache inside the artefact of a schedule: what is run, what is written, and what is refused."""

import json

import pytest
import torch
from tiny import fused
from tiny_pipes import call, pipeline
from typer.testing import CliRunner

from fewstep import CFG, CachedCalls, Sampler, SolverScheduler, caching
from fewstep.cli import app
from fewstep.models.caching import FixedMask, find_attachment
from fewstep.models.errors import ScheduleError, SettingError
from fewstep.models.probe import are_alike, hash_loaded, sketch
from fewstep.samplers.grid import time_grid
from fewstep.samplers.loop import integrate
from fewstep.solvers import Schedule, solver
from fewstep.solvers.artefact import ANSWER, LOADED, PARTS
from fewstep.solvers.presets import preset

MASK = (0, 1, 4)
IDS = {
    "ays-sd15-nfe10": "d68086d97d6c",
    "ays-sdxl-nfe10": "4c3d6020bb23",
    "ays-svd-nfe10": "4ea3f8bce6ad",
    "usf-cifar10-nfe9": "553ebeb61791",
    "usf-lsun-nfe6": "ac8aa068db87",
    "usf-lsun-nfe9": "a2306007dff1",
}


@pytest.fixture(scope="module")
def sampler():
    return Sampler.from_pretrained("fashion-dit")


@pytest.fixture(scope="module")
def plain(sampler):
    return solver("dpmpp-2m").encode(sampler.plan(solver="dpmpp-2m", nfe=6).grid)


@pytest.fixture(scope="module")
def cached(plain):
    return plain.with_cache(CachedCalls(compute=MASK))


def draw(sampler, **choices):
    return sampler(range(3), class_labels=3, **choices)


def test_schedules_without_a_cache_keep_their_ids():
    assert {name: preset(name).schedule_id[:12] for name in IDS} == IDS
    assert "cache" not in json.loads(preset("usf-lsun-nfe6").dump())


def test_a_cache_is_part_of_the_schedule(plain, cached):
    body = json.loads(cached.dump())
    assert (body["version"], body["cache"]["compute"]) == (3, list(MASK))
    assert Schedule.parse(cached.dump()) == cached
    other = plain.with_cache(CachedCalls(compute=MASK, predictor="reuse"))
    assert len({plain.schedule_id, cached.schedule_id, other.schedule_id}) == 3
    assert cached.nfe == plain.nfe == 6
    assert (plain.cache_policy, cached.cache_policy.calls) == (None, 6)


def test_it_runs_as_the_policy_does(sampler, plain, cached, tmp_path):
    """By the sampler, around it, on the command line and from its picture; both branches alike."""
    policy = FixedMask(compute=MASK, basis="published")
    known = draw(sampler, solver=plain, cache=policy)
    result = draw(sampler, solver=cached)
    assert torch.equal(known.samples, result.samples)
    assert [record.index for record in result.ledger.cache.calls if record.kind == "full"] == [
        *MASK
    ]
    assert result.ledger.effective_nfe == pytest.approx(known.ledger.effective_nfe)
    assert find_attachment(sampler.network) is None
    with caching(sampler, cached) as ledger:
        assert torch.equal(draw(sampler, solver=cached).samples, known.samples)
    assert ledger.hits == 3
    guided = {"guidance": CFG(2.0)}
    both = draw(sampler, solver=plain, cache=policy, **guided)
    assert torch.equal(draw(sampler, solver=cached.for_any(), **guided).samples, both.samples)


def test_the_command_line_and_pictures_take_it(cached, tmp_path):
    def run(*arguments):
        return CliRunner().invoke(app, ["sample", *map(str, arguments), "--json"])

    file, first, again = (tmp_path / name for name in ("nine.json", "a.png", "b.png"))
    file.write_text(cached.dump())
    done = run("fashion-dit", "--schedule", file, "--seeds", "0-2", "--out", first)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["ledger"]["cache"]["skipped"] == 3
    file.unlink()
    repeated = run("--from-png", first, "--out", again)
    assert repeated.exit_code == 0, repeated.output
    assert first.read_bytes()[-2000:] == again.read_bytes()[-2000:]
    file.write_text(cached.dump())
    both = run(
        "fashion-dit", "--schedule", file, "--cache", "taylorseer", "--out", tmp_path / "c.png"
    )
    assert both.exit_code == 2
    assert "this schedule brings a cache; drop the other one" in both.stderr
    assert not (tmp_path / "c.png").exists()


def test_a_mask_of_all_calls_is_no_cache(sampler, plain):
    """To the bit, at both levels, and without storing anything."""
    known = draw(sampler, solver=plain).samples
    for level in ("last-block", "module"):
        every = plain.with_cache(CachedCalls(compute=tuple(range(6)), level=level))
        result = draw(sampler, solver=every)
        assert torch.equal(result.samples, known)
        assert (result.ledger.cache.bytes_held, every.cache_policy.off) == (0, True)
    with pytest.warns(UserWarning, match="skipped none of 6 calls"):
        unsized = draw(sampler, solver=plain, cache=FixedMask(compute=tuple(range(6))))
    assert torch.equal(unsized.samples, known)


def test_indices_count_calls_where_a_step_makes_none(sampler):
    """After an analytic first step, call 0 is that of step 1."""
    grid = sampler.plan(solver="ddim", nfe=5).grid
    table = solver("ddim").step_schedule(grid).model_copy(update={"afs": "zero", "nfe": 4})
    schedule = Schedule.of_steps(table)
    assert schedule.nfe == 4
    every = schedule.with_cache(CachedCalls(compute=(0, 1, 2, 3)))
    assert torch.equal(draw(sampler, solver=every).samples, draw(sampler, solver=schedule).samples)
    with pytest.raises(ScheduleError, match="lists call 4, but the run has 4"):
        schedule.with_cache(CachedCalls(compute=(0, 4)))


def test_it_is_never_run_without_its_cache(sampler, cached):
    """Neither in a loop of one's own, nor beside another cache."""
    with pytest.raises(SettingError, match="this schedule brings a cache"):
        draw(sampler, solver=cached, cache="taylorseer")
    with caching(sampler, "taylorseer"), pytest.raises(SettingError, match="has a cache already"):
        draw(sampler, solver=cached)
    from fewstep.models.denoiser import Denoiser
    from fewstep.samplers.guidance import Unguided

    plan = sampler.plan(solver=cached)
    with pytest.raises(SettingError, match="with caching"):
        integrate(
            Denoiser(sampler.network), plan.solver, plan.grid, torch.zeros(1, 1, 32, 32), Unguided()
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "version 3 with a cache"),
        ({"cache": None}, "version 3 with a cache"),
        ({"version": 6}, "newer than this fewstep"),
        ({"cache": {"compute": [0, 6]}}, "lists call 6, but the run has 6, 0 to 5"),
        ({"cache": {"compute": [1, 2]}}, "rising call indices from 0"),
        ({"cache": {"compute": []}}, "rising call indices from 0"),
        ({"cache": {"compute": [0, 2], "predictor": "tailor"}}, "did you mean 'taylor'"),
        ({"cache": {"compute": [0, 2], "predictor": "taylor:order=9"}}, "order must be 0"),
        ({"cache": {"compute": [0, 2], "level": "first"}}, "level"),
        ({"cache": {"compute": [0, 2], "gate": 1}}, "gate"),
        ({"provenance": {PARTS: "six"}}, "parts='six'"),
        ({"provenance": {LOADED: [6]}}, "must be a list of texts"),
    ],
)
def test_what_cannot_be_a_cache_is_refused(cached, change, message):
    with pytest.raises(ScheduleError, match=message):
        Schedule.parse(json.dumps(json.loads(cached.dump()) | change))


def test_another_number_of_blocks_is_refused(sampler, cached):
    """As where layers are skipped; also with `for_any`, which `--force` is."""
    other = cached.model_copy(update={"provenance": {PARTS: 5}})
    for each in (other, other.for_any()):
        with pytest.raises(SettingError, match=r"a network with 5 parts .* this one has 6"):
            draw(sampler, solver=each)
        assert find_attachment(sampler.network) is None
    mine = cached.model_copy(update={"provenance": {PARTS: 6}})
    assert torch.equal(draw(sampler, solver=mine).samples, draw(sampler, solver=cached).samples)


def test_fused_weights_are_refused(sampler, cached):
    """A change of one layer that a sketch of the answer takes for rounding."""
    network = sampler.network
    facts = {ANSWER: sketch(network), LOADED: hash_loaded(network)}
    mine = cached.model_copy(update={"provenance": facts})
    known = draw(sampler, solver=mine).samples
    with fused(network):
        assert are_alike(sketch(network), facts[ANSWER])
        with pytest.raises(ScheduleError, match=r"a LoRA was fused.*--force"):
            draw(sampler, solver=mine)
        draw(sampler, solver=mine.for_any())
    assert torch.equal(draw(sampler, solver=mine).samples, known)


def test_another_number_of_calls_is_refused(sampler, cached):
    message = "made for runs of 6 calls, and this one has 8"
    with pytest.raises(SettingError, match=message), caching(sampler, cached):
        draw(sampler, solver="dpmpp-2m", nfe=8)


def make_pipe(name="dit", **choices):
    pipe = pipeline(name)
    pipe.scheduler = SolverScheduler.from_config(pipe.scheduler.config, **choices)
    return pipe


def test_a_pipeline_takes_it():
    """The scheduler runs the steps, and `caching(pipe)` puts the cache of the schedule on."""
    process = make_pipe(solver="ddim").scheduler.process.fixed
    plain = solver("ddim").encode(time_grid("uniform", process, 6))
    cached = plain.with_cache(CachedCalls(compute=MASK))
    pipe = make_pipe(schedule=cached)
    with caching(pipe) as ledger:
        image = call("dit", pipe, num_inference_steps=6)
    kinds = ["full" if index in MASK else "skip" for index in range(6)]
    assert [record.kind for record in ledger.calls] == kinds
    reference = make_pipe(schedule=plain)
    with caching(reference, FixedMask(compute=MASK, basis="published")):
        known = call("dit", reference, num_inference_steps=6)
    assert torch.equal(torch.as_tensor(image), torch.as_tensor(known))


def test_a_pipeline_that_runs_something_else_is_refused(cached):
    with pytest.raises(SettingError, match="for its own steps, and the pipeline runs others"):
        caching(make_pipe(solver="ddim"), cached).__enter__()
    with pytest.raises(SettingError, match="no schedule brings a cache here"):
        caching(make_pipe(solver="ddim")).__enter__()
