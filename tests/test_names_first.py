"""Commands of the evaluation refuse unknown names before a network is loaded."""

import sys
from importlib import import_module
from pkgutil import walk_packages

import pytest
from typer.testing import CliRunner

from fewstep import eval as evaluation
from fewstep.cli import app
from fewstep.models import load as loading

COMMANDS = [
    "bench accuracy fashion-dit --solver nope",
    "bench cache fashion-dit --cache nope",
    "bench cache fashion-dit --solver nope",
    "bench cache fashion-dit --baseline nope",
    "bench guidance --model fashion-dit --guidance nope",
    "bench guidance --model fashion-dit --solver nope",
    "bench inversion --solver nope",
    "bench edit --editor nope",
    "bench edit --distance nope",
    "bench fid-nfe --solver nope",
    "bench fid-nfe --rival nope",
    "bench fid-nfe --solver unipc-2 --metric nope",
    "bench fid-nfe --solver unipc-2 --cache nope",
    "bench fid-nfe --solver unipc-2 --guidance nope",
    "calibrate fashion-dit --cache nope",
    "calibrate fashion-dit --solver nope",
    "calibrate fashion-dit --quality nope=1",
    "calibrate fashion-dit --guidance nope",
    "fit linear-ag fashion-dit --cfg-scale 2 --out a.json --solver nope",
    "search fashion-dit --nfe 4 --strategy nope",
    "search fashion-dit --nfe 4 --objective nope",
    "search fashion-dit --nfe 4 --teacher nope",
    "search fashion-dit --nfe 4 --base nope",
    "search fashion-dit --nfe 4 --grid nope",
    "search fashion-dit --nfe 4 --free nope",
    "search fashion-dit --nfe 4 --afs nope",
    "search fashion-dit --nfe 4 --final nope",
]


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    """Nothing can be loaded, wherever a module asks for it."""

    def refuse(*_, **__):
        raise AssertionError("a network is loaded before all names are checked")

    monkeypatch.chdir(tmp_path)
    for module in walk_packages(evaluation.__path__, f"{evaluation.__name__}."):
        import_module(module.name)
    load = loading.load
    for name, module in list(sys.modules.items()):
        if name.startswith("fewstep.") and getattr(module, "load", None) is load:
            monkeypatch.setattr(module, "load", refuse)


def test_unknown_names_are_refused_before_any_work(no_network, tmp_path):
    for words in COMMANDS:
        done = CliRunner().invoke(app, words.split())
        assert done.exit_code == 2, (words, done.output, done.exception)
        assert "'nope'" in done.output, words
        assert list(tmp_path.iterdir()) == [], words
