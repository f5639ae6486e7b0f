"""Folders and repositories of the Hub, and pipelines, schedules and guiders loaded from them."""

import importlib
import json
import re
import sys
from pathlib import Path

import huggingface_hub.constants
import pytest
import tiny_pipes
from diffusers.pipelines.pipeline_loading_utils import _get_custom_components_and_folders
from test_pipelines import LOADING, fitted, run_anew
from typer.testing import CliRunner

from fewstep import Schedule, SolverScheduler
from fewstep.cli import app
from fewstep.models.errors import ScheduleError, SettingError
from fewstep.models.load import load
from fewstep.samplers.diffusers.publishing import write_import
from fewstep.samplers.grid import time_grid
from fewstep.samplers.run_record import read_run
from fewstep.samplers.schedule_choice import find_schedule
from fewstep.solvers import solver

PAGE = (Path(__file__).parents[1] / "docs" / "hub.md").read_text()
BLOCK, LOADED = re.findall(r"```python\n# (?:block|load)\.py\n(.*?)```", PAGE, re.DOTALL)
COMMIT = "a" * 40


@pytest.fixture(scope="module")
def schedule():
    grid = time_grid("uniform", load("fashion-dit").schedule, 3)
    return Schedule.parse(solver("unipc-2").encode(grid).dump())


# Schedules


def test_a_published_schedule_is_taken_wherever_a_schedule_is(schedule, tmp_path):
    folder, picture = tmp_path / "new" / "folder", tmp_path / "a.png"
    schedule.save_pretrained(folder)
    assert Schedule.from_pretrained(folder) == Schedule.load(str(folder)) == schedule
    flow = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000}
    made = SolverScheduler.from_config(flow, schedule=str(folder))
    assert made.choices.schedule == schedule
    words = ["sample", "fashion-dit", "--schedule", str(folder), "--seeds", "0"]
    done = CliRunner().invoke(app, [*words, "--out", str(picture)])
    assert done.exit_code == 0, done.output
    assert read_run(picture).schedule == schedule


def test_a_schedule_is_found_on_the_hub(schedule, tmp_path, monkeypatch):
    """The cache holds me/steps; a folder of that name comes first."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    repo = tmp_path / "models--me--steps"
    schedule.save_pretrained(repo / "snapshots" / COMMIT)
    (repo / "refs").mkdir()
    for revision in ("main", "v1"):
        (repo / "refs" / revision).write_text(COMMIT)
    for name in ("me/steps", "me/steps@v1"):
        assert find_schedule(name) == schedule
    with pytest.raises(ScheduleError, match=r"no schedule 'me/steps@v2': the hub says: "):
        find_schedule("me/steps@v2")
    Path("me/steps").mkdir(parents=True)
    with pytest.raises(ScheduleError, match=r"me/steps/schedule\.json': there is no such file"):
        find_schedule("me/steps")


# Pipelines


def list_files(folder):
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]


@pytest.mark.slow
def test_a_published_pipeline_loads_on_trust_where_nothing_is_imported(tmp_path):
    pipe = fitted("ddpm", solver="unipc-3", grid="karras")
    pipe.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    before = list_files(tmp_path)
    with pytest.raises(ValueError, match=r"scheduler/fewstep\.py as defined .* does not exist"):
        _get_custom_components_and_folders("me/pipe", index, before)  # of a repository on the Hub
    done = CliRunner().invoke(app, ["hub", str(tmp_path)])
    assert done.exit_code == 0, done.output
    files = list_files(tmp_path)
    assert set(files) - set(before) == {"scheduler/fewstep.py"}
    custom, _ = _get_custom_components_and_folders("me/pipe", index, files)
    assert custom == {"scheduler": "fewstep"}
    pipe.scheduler.set_timesteps(4)
    facts = {"folder": str(tmp_path), "labels": pipe.scheduler.timesteps.tolist()}
    run_anew(LOADING.format(**facts, how={"trust_remote_code": True}))


def test_folders_that_cannot_be_published_are_left_as_they_are(tmp_path):
    other = tmp_path / "other"
    tiny_pipes.pipeline("ddpm").save_pretrained(other)
    before = list_files(tmp_path)
    for folder, said in ((tmp_path, "holds no saved pipeline"), (other, "not .*SolverScheduler")):
        with pytest.raises(SettingError, match=said):
            write_import(folder)
    assert list_files(tmp_path) == before


# Modular pipelines

CHECK = """
pipe.scheduler.set_timesteps(3)
labels = pipe.scheduler.timesteps.tolist()
assert [round(label, 2) for label in labels] == [1000.0, 857.14, 600.0], labels
assert dict(pipe.guider.config)["policy"] == "adaptive:scale=7.0"
"""


def test_the_block_of_the_page_loads_in_a_new_process(tmp_path, monkeypatch):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "block.py").write_text(BLOCK)
    monkeypatch.syspath_prepend(folder)
    importlib.import_module("block").FewStepBlock().save_pretrained(folder)
    monkeypatch.delitem(sys.modules, "block")
    config = json.loads((folder / "modular_config.json").read_text())
    assert config["auto_map"] == {"ModularPipelineBlocks": "block.FewStepBlock"}
    run_anew(f"import os; os.chdir({str(tmp_path)!r})", LOADED, CHECK)
