"""Every command and every Python example of the front page and its two next pages runs."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "docs/command-line.md", "docs/python.md")
BLOCKS = [
    block
    for page in PAGES
    for block in re.findall(
        r"^ *```(\w+)\n(.*?)```", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE
    )
]
COMMANDS = list(
    dict.fromkeys(line for kind, body in BLOCKS if kind == "sh" for line in body.splitlines())
)
SLOW = [line.strip() for kind, body in BLOCKS if kind == "console" for line in body.splitlines()]
EXAMPLES = [body for kind, body in BLOCKS if kind == "python" and "Pipeline" not in body]


def run(command, folder):
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, "PATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_front_page_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) < 200


def test_installing_takes_the_two_commands_that_ci_runs():
    installs = [command for command in COMMANDS if "pip install" in command]
    assert [command.split("&& ")[1] for command in installs] == ["sample", "pytest"]
    assert all("-c constraints.txt" in command for command in installs)


def test_commands(tmp_path):
    """In order and in one folder, since one replays the picture of another."""
    for command in COMMANDS:
        if "pip install" not in command:
            run(shlex.split(command), tmp_path)
    assert (tmp_path / "grid.png").read_bytes() == (tmp_path / "again.png").read_bytes()
    assert len(list((tmp_path / "pictures").glob("*.png"))) == 18


@pytest.mark.slow
def test_commands_that_take_a_minute(tmp_path):
    for command in filter(None, SLOW):
        run(shlex.split(command), tmp_path)
    assert (tmp_path / "plan.json").is_file()


@pytest.mark.parametrize("code", EXAMPLES, ids=range(len(EXAMPLES)))
def test_python_examples(code, tmp_path):
    run([sys.executable, "-c", code], tmp_path)
