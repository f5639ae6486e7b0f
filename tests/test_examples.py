"""The examples: run small in the normal set and whole in the slow one, and open as notebooks."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fewstep
import fewstep.solvers
from fewstep.solvers.base import SOLVERS

FOLDER = Path(__file__).parents[1] / "examples"
SMALL_SEARCH = {"budget": "candidates=1", "noises": "4,2,2", "teacher_nfe": 6, "features": "none"}
COARSE = {"solver": "ddim", "nfe": 6}
SMALL = {  # the constants at the top of each example that decide how long it takes
    "action_chunks": {"TRAINING_STEPS": 2, "GOALS": 4, "REPEATS": 1},
    "diffusers_pipeline": {"IMAGES": 1, "STEPS": 2, "CONVERGED": 3},
    "flow_2d": {"TRAINING_STEPS": 2, "SEARCH": SMALL_SEARCH, "SEEDS": range(4)},
    "inverse_problem": {"IMAGES": 1, "NFE": 3},
    "new_solver": {"SEEDS": range(1), "FINE": 50, "CONVERGED": COARSE},
    "own_metric": {"N": 16, "BLOCKS": 1},
    "point_clouds": {"TRAINING_STEPS": 2, "CLOUDS": 2, "CONVERGED": COARSE},
}
WHOLE = [*SMALL, "tune_a_network"]  # which takes long even when small; `flow_2d` tunes, too
NETWORKS = ("own_mlp", "own_unet")


def make_small(name):
    text = (FOLDER / f"{name}.py").read_text()
    for constant, value in SMALL[name].items():
        text, count = re.subn(rf"^{constant} = .*", f"{constant} = {value}", text, flags=re.M)
        assert count == 1, f"{name}.py says {constant} {count} times"
    return text


@pytest.mark.parametrize("name", SMALL)
def test_examples_run_small(name, tmp_path, monkeypatch):
    """Without assertions, which are about figures of whole runs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.setattr(SOLVERS, "_values", dict(SOLVERS._values))  # one of them adds a solver
    code = compile(make_small(name), f"{name}.py", "exec", optimize=1)
    exec(code, {"__name__": "__main__"})


@pytest.mark.slow
@pytest.mark.parametrize("name", WHOLE)
def test_examples_run_whole(name, tmp_path):
    environment = {**os.environ, "MPLBACKEND": "agg", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, FOLDER / f"{name}.py"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_examples_open_as_notebooks_and_stand_in_their_table():
    assert {path.stem for path in FOLDER.glob("*.py")} == {*WHOLE, *NETWORKS}
    page = (FOLDER / "README.md").read_text()
    for name in WHOLE:
        text = (FOLDER / f"{name}.py").read_text()
        assert text.startswith("# %% [markdown]\n# # "), f"{name}.py has no title cell"
        assert "__file__" not in text, f"{name}.py: a notebook has no file"
        assert f"[{name}.py]({name}.py)" in page


def test_examples_use_what_is_public():
    """Names that `fewstep` or a folder of it lists, and none of its modules."""
    public = {"fewstep": fewstep.__all__, "fewstep.solvers": fewstep.solvers.__all__}
    for path in FOLDER.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("fewstep"):
                names = {alias.name for alias in node.names}
                assert names <= {*public.get(node.module, ())}, f"{path.name}: {node.module}"


def test_the_page_of_own_networks_shows_what_the_files_say():
    """Excerpts are as long as they are, so that the files alone are to be kept right."""
    page = (FOLDER.parent / "docs" / "your-own-network.md").read_text()
    section = page.partition("## In a file")[2].partition("\n## ")[0]
    files = "".join((FOLDER / f"{name}.py").read_text() for name in NETWORKS)
    blocks = re.findall(r"```python\n(.*?)```", section, flags=re.S)
    assert len(blocks) == len(NETWORKS)
    assert all(block in files for block in blocks)
