"""Optional dependencies that are missing: one line that names the extra, before anything is run."""

import json
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from PIL import Image
from typer.testing import CliRunner

from fewstep.cli import app
from fewstep.models.extras import EXTRAS, check_installed

NEEDED_BY = {  # modules, each with commands that cannot do without it
    "matplotlib": ["bench table a.jsonl --plot a.png", "bench scaling --plot a.png"],
    "jinja2": ["bench table a.jsonl --html a.html", "tune fashion-dit --html a.html"],
    "torchmetrics": [
        "compare fashion-dit --setting nfe=2 --metric ssim",
        "fid one --reference one --metrics ssim",
    ],
    "transformers": ["fid one --reference one --extractor clip", "sample pipeline"],
    "cache_dit": ["bench cache fashion-dit --cache cache-dit:"],
}


def test_each_missing_extra_is_named_in_one_line(tmp_path, monkeypatch):
    assert NEEDED_BY.keys() == EXTRAS.keys()
    monkeypatch.chdir(tmp_path)
    Path("one").mkdir()
    Image.linear_gradient("L").resize((32, 32)).save("one/a.png")
    Path("pipeline").mkdir()
    index = {"_class_name": "X", "text_encoder": ["transformers", "CLIPTextModel"]}
    Path("pipeline/model_index.json").write_text(json.dumps(index))
    for module, commands in NEEDED_BY.items():
        with monkeypatch.context() as absent:
            absent.setitem(sys.modules, module, None)
            for command in commands:
                done = CliRunner().invoke(app, command.split())
                name = module.replace("_", "-")
                line = f"{name} is not installed; pip install 'fewstep[{EXTRAS[module]}]'\n"
                assert (done.exit_code, done.output.count("\n")) == (2, 1), (command, done.output)
                assert done.output.endswith(line)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["one", "pipeline"]


def test_the_extras_bring_what_they_are_named_for():
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    for module, extra in EXTRAS.items():
        brought = {Requirement(each).name for each in project["optional-dependencies"][extra]}
        assert module.replace("_", "-") in brought
    check_installed("jinja2")
    with pytest.raises(KeyError):
        check_installed("no_such_module_at_all")  # of no extra: a fault of ours
