"""What `from fewstep import ...` gives, and that the documents use it."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fewstep
from fewstep.models.deprecated import RENAMED

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
IMPORT = re.compile(r"^ *from (fewstep[.\w]*) import ([\w, ]+)$", re.MULTILINE)
IMPORTS = [
    (page.name, home, name.strip())
    for page in PAGES
    for home, names in IMPORT.findall(page.read_text(encoding="utf-8"))
    for name in names.split(",")
]


@pytest.mark.parametrize("name", fewstep.__all__)
def test_every_public_name_is_there(name):
    found = getattr(fewstep, name)
    assert getattr(found, "__name__", name) == name
    assert name in dir(fewstep)


def test_documents_import_what_there_is_from_where_it_is_shortest():
    assert len(IMPORTS) > 20
    for page, home, name in IMPORTS:
        module = __import__(home, fromlist=[name])
        assert hasattr(module, name), f"{page}: {home} has no {name}"
        if home != "fewstep":
            assert name not in fewstep.__all__, f"{page}: from fewstep import {name}"


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, fewstep; print(*{'torch', 'diffusers', 'numpy'} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == ""


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'Sampelr'"):
        fewstep.Sampelr  # noqa: B018


def test_the_scheduler_is_of_the_module_that_users_import():
    """diffusers writes it into a saved pipeline, and looks there for the bases of its parts."""
    assert fewstep.SolverScheduler.__module__ == "fewstep"
    assert issubclass(fewstep.SolverScheduler, fewstep.SchedulerMixin)
    assert "SchedulerMixin" not in fewstep.__all__
    assert importlib.import_module("fewstep.samplers.scheduler").SolverScheduler


def test_old_names_of_packages_warn_and_are_the_new_ones():
    for package, names in RENAMED.items():
        module = importlib.import_module(package)
        for old, new in names.items():
            with pytest.warns(DeprecationWarning, match=f"{package}.{old} is called {new} now"):
                assert getattr(module, old) is getattr(module, new)
            assert old not in module.__all__
            assert new in module.__all__
        with pytest.raises(AttributeError, match=f"'{package}' has no attribute 'nonsense'"):
            module.nonsense  # noqa: B018
