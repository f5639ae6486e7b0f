"""Plans as files: what they unfold into, and what they refuse."""

import json
import warnings

import pytest
import torch
from typer.testing import CliRunner

from fewstep import CFG, Sampler, Schedule, SolverScheduler, solver, time_grid
from fewstep.cli import app
from fewstep.models.errors import SettingError
from fewstep.models.load import load
from fewstep.models.probe import sketch
from fewstep.samplers.columns import Column, Columns
from fewstep.samplers.plan_file import (
    Asked,
    JudgedOn,
    JudgedPoint,
    MeasuredAt,
    PlanCost,
    PlanFile,
    Spread,
)
from fewstep.samplers.run_settings import RunSettings

HERE = MeasuredAt(batch=2, device="cpu", dtype="fp32", machine="a machine", versions={})


def make_plan_file(network, settings, where=HERE):
    column = Column(value=0.1, low=0.09, high=0.11, median=0.1)
    point = JudgedPoint(
        name="a setting",
        kind="named",
        settings=settings,
        cost=PlanCost(nfe=3, rows=3, effective=3, ms=Spread(median=9, low=8, high=10, repeats=5)),
        noises="test",
        count=4,
        columns=Columns(distance=column),
    )
    return PlanFile(
        network=network.name,
        sketch=sketch(network),
        point=point,
        verdict="because",
        where=where,
        judged=JudgedOn(reference="unipc-3", size=1.0, seeds={"test": "0-3"}),
        seconds=1.0,
        searched=10,
    )


@pytest.fixture(scope="module")
def network():
    return load("fashion-dit")


def make_schedule(network):
    grid = time_grid("beta", network.schedule, steps=3)
    return Schedule.of_steps(solver("unipc-2").step_schedule(grid))


CHOICES = {
    "named": ({"solver": "unipc-2", "grid": "beta:end=0.05", "nfe": 3}, None),
    "cached": ({"solver": "dpmpp-2m", "grid": "beta", "nfe": 4}, "taylorseer:interval=2"),
    "table": (None, None),
}


@pytest.mark.parametrize("name", CHOICES)
def test_a_plan_draws_what_its_settings_draw(network, tmp_path, name):
    choices, cache = CHOICES[name]
    schedule = make_schedule(network) if choices is None else None
    settings = RunSettings(**(choices or {}), schedule=schedule, cache=cache, cfg_scale=2.0)
    path = tmp_path / "plan.json"
    make_plan_file(network, settings).write(path)
    assert PlanFile.load(path) == make_plan_file(network, settings)
    call = {"class_labels": 3, "batch": 2}
    typed = choices or {"solver": schedule}
    expected = Sampler(network)([0, 1], **call, **typed, cache=cache, guidance=CFG(2.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn = Sampler(network)([0, 1], **call, plan=path)
    assert torch.equal(drawn.samples, expected.samples)
    assert drawn.ledger.rows == expected.ledger.rows


def test_sample_draws_a_plan_and_its_picture_repeats_it(network, tmp_path):
    path, out = tmp_path / "plan.json", tmp_path / "a.png"
    settings = RunSettings(schedule=make_schedule(network), cfg_scale=2.0)
    make_plan_file(network, settings).write(path)
    words = ["sample", "fashion-dit", "--plan", str(path), "--seeds", "0-1", "--out", str(out)]
    done = CliRunner().invoke(app, [*words, "--json"])
    assert done.exit_code == 0, done.output
    run = json.loads(done.stdout)["run"]
    assert (run["cfg_scale"], run["schedule"]["nfe"]) == (2.0, 3)
    again = ["sample", "--from-png", str(out), "--out", str(tmp_path / "b.png"), "--quiet"]
    assert CliRunner().invoke(app, again).exit_code == 0
    assert (tmp_path / "b.png").read_bytes() == out.read_bytes()
    refused = CliRunner().invoke(app, [*words, "--nfe", "4"])
    assert refused.exit_code == 2
    assert "--plan is the whole run; drop nfe" in refused.output


def test_a_plan_of_another_network_is_refused(network, tmp_path):
    path = tmp_path / "plan.json"
    make_plan_file(network, RunSettings(solver="ddim", nfe=2)).write(path)
    other = load("fashion-unet")
    with pytest.raises(
        SettingError, match=r"made on another network \(fashion-dit\).*fewstep tune"
    ):
        Sampler(other)([0, 1], plan=path)
    words = ["sample", "fashion-unet", "--plan", str(path), "--seeds", "0-1", "--force"]
    assert CliRunner().invoke(app, [*words, "--out", str(tmp_path / "a.png")]).exit_code == 0


def test_a_plan_for_another_batch_or_device_warns(network):
    plan = make_plan_file(network, RunSettings(solver="ddim", nfe=1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Sampler(network)([0], plan=plan)  # nobody asked for a time
    timed = plan.model_copy(update={"asked": Asked(unit="ms", amount=9.0)})
    with pytest.warns(UserWarning, match="with 2 images at once, and this run has 1"):
        Sampler(network)([0], plan=timed)
    there = HERE.model_copy(update={"device": "cuda:0"})
    with pytest.warns(UserWarning, match="measured on cuda, and this run is on cpu"):
        Sampler(network)([0, 1], plan=plan.model_copy(update={"where": there}))


def test_what_a_plan_decides_is_not_given_beside_it(network, tmp_path):
    plan = make_plan_file(network, RunSettings(solver="ddim", nfe=1))
    with pytest.raises(SettingError, match="a plan decides guidance, nfe; drop"):
        Sampler(network)([0, 1], plan=plan, nfe=3, guidance=CFG(2.0))
    (tmp_path / "other.json").write_text('{"cache": "pab"}')
    with pytest.raises(SettingError, match="is not a plan of fewstep tune"):
        Sampler(network)([0, 1], plan=tmp_path / "other.json")


CONFIG = {
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "num_train_timesteps": 1000,
    "shift": 1.0,
}


def test_a_scheduler_runs_what_a_plan_names_and_refuses_the_rest(network, tmp_path):
    path = tmp_path / "plan.json"
    named = RunSettings(solver="dpmpp-2m", grid="beta:end=0.05", nfe=4)
    make_plan_file(network, named).write(path)
    mine = SolverScheduler.from_config(CONFIG, plan=path)
    typed = SolverScheduler.from_config(CONFIG, solver="dpmpp-2m", grid="beta:end=0.05", nfe=4)
    assert mine.config == typed.config
    table = make_plan_file(network, RunSettings(schedule=make_schedule(network), cfg_scale=3.0))
    with pytest.warns(UserWarning, match="give it guidance_scale=3"):
        made = SolverScheduler.from_config(CONFIG, plan=table)
    expected = SolverScheduler.from_config(CONFIG, schedule=make_schedule(network))
    assert made.config == expected.config
    cached = make_plan_file(network, named.model_copy(update={"cache": "pab"}))
    with pytest.raises(SettingError, match="has a cache, which a scheduler cannot run"):
        SolverScheduler.from_config(CONFIG, plan=cached)
    spec = {"guidance_spec": "cfg-zero-star:scale=2"}
    with pytest.raises(SettingError, match=r"cfg-zero-star:scale=2\), which a scheduler"):
        SolverScheduler.from_config(CONFIG, plan=make_plan_file(network, RunSettings(**spec)))
    with pytest.raises(SettingError, match="a plan decides nfe; drop"):
        SolverScheduler.from_config(CONFIG, plan=path, nfe=3)
