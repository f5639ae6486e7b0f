"""Schedules of the package: they are what they say, and stand in where they are best."""

import json
from importlib.resources import files

import pytest
from laws import measure_violations
from typer.testing import CliRunner

from fewstep.cli import app
from fewstep.eval.search.choice import name_weights
from fewstep.eval.search.size import size_of
from fewstep.models.errors import ScheduleError, UnknownNameError
from fewstep.models.load import embedded_names, load, read_card
from fewstep.samplers.guidance import CFG, Unguided
from fewstep.samplers.plan import make_plan
from fewstep.samplers.sampler import Sampler
from fewstep.samplers.schedule_choice import choose_default_schedule, find_schedule
from fewstep.solvers import StepSchedule, presets, solver
from fewstep.solvers.presets import best_preset, is_better, preset, preset_names

PUBLISHED = [name for name in preset_names() if "source" in preset(name).provenance]
PREDICTIONS = ("noise", "data", "data", "noise", "data", "noise", "noise")  # of usf-lsun-nfe6
SEARCHED = [name for name in preset_names() if name not in PUBLISHED]


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_schedules_are_consistent(name):
    schedule = preset(name)
    found = measure_violations(schedule.table())
    assert max(found.state, found.predictions) < 1e-9


def test_the_published_tables_are_the_published_numbers():
    kappas = [node.kappa for node in preset("ays-sd15-nfe10").grid().nodes]
    published = [14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152]
    assert kappas[:-1] == pytest.approx(published, rel=2e-3)
    assert kappas[-1] == 0.0
    text = (files(presets) / "usf-lsun-nfe6.json").read_text(encoding="utf-8")
    lsun = StepSchedule.parse(text)
    assert (lsun.nfe, len(lsun.steps), lsun.afs, lsun.t[1]) == (6, 7, "zero", 0.85729)
    assert [step.pred for step in lsun.steps] == list(PREDICTIONS)
    assert [step.c for step in lsun.steps] == [0.0, -0.1667, 0.0, 0.1667, 0.047, -0.1667, 0.0]
    assert [step.corr.on for step in lsun.steps] == [bool(n in (1, 3)) for n in range(7)]
    assert lsun.steps[4].points == (1, 2)


def test_unknown_names_are_told():
    with pytest.raises(UnknownNameError, match="ays-sd15-nfe10"):
        preset("ays")
    with pytest.raises(ScheduleError, match="fewstep list schedules"):
        find_schedule("ays")
    assert find_schedule("usf-lsun-nfe6") == preset("usf-lsun-nfe6")


def judged(distance, features):
    return {
        "distance": {"value": distance},
        "features": features and {"value": features},
    }


@pytest.fixture
def shelf(monkeypatch):
    """Presets in place of the package's: of those for fashion-dit at NFE 3 two are better."""
    network = load("fashion-dit")

    def made(grid, test, features=0.5, **facts):
        settings = make_plan(network.schedule, "ddim", nfe=3, grid=grid)
        told = {
            "model": "fashion-dit",
            "cfg_scale": 1.0,
            "scores": {"test": test},
            "columns": {
                "searched": judged(test, features),
                "default": judged(1.0, 1.0),
            },
            **facts,
        }
        schedule = solver("ddim").encode(settings.grid)
        return schedule.model_copy(update={"provenance": told})

    held = {
        "near": made("beta", 0.4),
        "nearer": made("uniform", 0.3),
        "farther": made("beta:alpha=1.0", 1.1, cfg_scale=2.0),
        "unlike": made("beta:alpha=0.9", 0.2, features=1.1),
        "unseen": made("beta:alpha=0.8", 0.1, features=None),
    }
    monkeypatch.setattr(presets, "preset", held.__getitem__)
    monkeypatch.setattr(presets, "preset_names", lambda: sorted(held))
    monkeypatch.setattr("fewstep.samplers.schedule_choice.preset", held.__getitem__)
    return held


def test_the_best_stands_in(shelf):
    assert best_preset("fashion-dit", 3, 1.0) == "nearer"
    assert best_preset("fashion-dit", 4, 1.0) is None
    assert best_preset("fashion-dit", 3, 2.0) is None  # there the default is better
    assert best_preset("fashion-unet", 3, 1.0) is None


@pytest.mark.parametrize(
    ("choices", "guidance", "found"),
    [
        ({"nfe": 3}, Unguided(), True),
        ({"nfe": 3, "final": "zero"}, CFG(1.0), True),
        ({}, Unguided(), False),
        ({"nfe": 3, "final": "sigma_min"}, Unguided(), False),
        ({"nfe": 3, "grid": "beta"}, Unguided(), False),
        ({"nfe": 3, "solver": "ddim"}, Unguided(), False),
        ({"steps": 3}, Unguided(), False),
        ({"nfe": 3}, CFG(2.0), False),
        ({"nfe": 3}, CFG(1.5, (0.1, 1.0)), False),
    ],
)
def test_it_stands_in_where_nothing_but_an_nfe_is_asked_for(shelf, choices, guidance, found):
    schedule = choose_default_schedule("fashion-dit", choices, guidance)
    assert schedule == (shelf["nearer"] if found else None)


def test_sampler_and_command_take_it(shelf, tmp_path):
    sampler = Sampler(load("fashion-dit"))
    mine = sampler([5], class_labels=1, nfe=3)
    wanted = sampler([5], class_labels=1, solver=shelf["nearer"])
    assert mine.samples.equal(wanted.samples)
    out = tmp_path / "a.png"
    line = ["sample", "fashion-dit", "--nfe", "3", "--seeds", "5", "--classes", "1", "--json"]
    said = CliRunner().invoke(app, [*line, "--out", str(out)])
    run = json.loads(said.stdout)["run"]
    assert run["schedule"]["t"] == list(shelf["nearer"].t)  # the picture holds it
    assert "nfe" not in run


def is_of_a_shipped_network(facts):
    """Whether a provenance names a network of the package and the hash of its weights."""
    model = facts["model"]
    return model in embedded_names() and facts.get("weights") == read_card(model)["sha256"]


def test_searched_schedules_are_for_a_network_of_the_package():
    for name in SEARCHED:
        schedule, facts = preset(name), preset(name).provenance
        assert is_of_a_shipped_network(facts), name
        network = load(facts["model"])
        make_plan(network.schedule, schedule).solver.check_network(network)
        assert name.startswith(f"{facts['model']}-{size_of(schedule).mark}")


def test_searched_schedules_are_better_than_the_default_in_both_columns():
    """`sample` takes no other, so none is shipped."""
    for name in SEARCHED:
        assert is_better(preset(name).provenance), name


def test_a_search_names_the_weights_of_its_network():
    card = read_card("fashion-dit")
    facts = {"model": "fashion-dit", **name_weights("fashion-dit")}
    assert facts["weights"] == card["sha256"]
    assert is_of_a_shipped_network(facts)
    assert not is_of_a_shipped_network(facts | {"weights": "0" * 64})
    assert not is_of_a_shipped_network({"model": "fashion-dit"})
    assert not is_of_a_shipped_network(facts | {"model": "fashion"})
    assert name_weights("toy") == {}


def test_force_alone_is_refused():
    said = CliRunner().invoke(app, ["sample", "--force"])
    assert said.exit_code == 2
    assert "--force is for --schedule, --cache, --recipe, --plan and --from-png" in said.output
