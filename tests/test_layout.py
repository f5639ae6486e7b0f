"""The shape of the project: where imports may point, and what ends up in the wheel."""

import ast
import subprocess
import sys
import tomllib
import zipfile
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[1]
RANK = {"models": 0, "solvers": 1, "samplers": 2, "eval": 3, "commands": 4}
RANK |= {"k_diffusion": 3, "plugins": 3}
FILES = [path for folder in RANK for path in sorted((ROOT / folder).rglob("*.py"))]
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = {"fewstep", *(".".join(("fewstep", *p.relative_to(ROOT).parts[:-1])) for p in FILES)}


def imported_folders(path):
    """The top-level folders of ours that a file imports from, by relative or absolute name."""
    here = path.relative_to(ROOT).parts[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            full = (*here[: len(here) - node.level + 1], *(node.module or "").split("."))
            yield full[0]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fewstep"):
            yield "absolute"
        elif isinstance(node, ast.Import):
            yield from ("absolute" for alias in node.names if alias.name.startswith("fewstep"))


def test_imports_are_relative_and_point_one_way():
    for path in FILES:
        file = path.relative_to(ROOT)
        for folder in imported_folders(path):
            assert folder != "absolute", f"{file}: inside the package imports are relative"
            assert RANK.get(folder, -1) <= RANK[file.parts[0]], f"{file} imports from {folder}"


def test_nothing_of_the_package_imports_an_integration_or_its_host():
    """ComfyUI is under another licence, and may not be there."""
    hosts = {"comfy", "comfy_api", "folder_paths", "integrations"}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            names = {each.name for each in node.names} if isinstance(node, ast.Import) else set()
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = {node.module}
            assert not {name.partition(".")[0] for name in names} & hosts, path


def bound_names(path):
    """What a module binds at its top level."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from (alias.asname or alias.name for alias in node.names)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (n.id for each in targets for n in ast.walk(each) if isinstance(n, ast.Name))
        else:
            yield getattr(node, "name", "")


OUTSIDE = [p for name in ("recipes", "integrations") for p in sorted((ROOT / name).rglob("*.py"))]


def test_recipes_and_integrations_import_what_is_there():
    """No type checker reads them, and few are run by tests."""
    for recipe in OUTSIDE:
        for node in ast.walk(ast.parse(recipe.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fewstep."):
                path = ROOT.joinpath(*node.module.split(".")[1:])
                inside = {each.stem for each in path.glob("*")}
                file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
                assert file.is_file(), f"{recipe.name}: {node.module}"
                missing = {alias.name for alias in node.names} - inside - {*bound_names(file)}
                assert not missing, f"{recipe.name}: {node.module} has no {missing}"


def test_root_holds_two_python_files():
    """Every other one would be shipped as a module of the package."""
    assert sorted(path.name for path in ROOT.glob("*.py")) == ["__init__.py", "cli.py"]


def test_every_folder_with_code_is_packaged():
    """An editable install serves any folder, a wheel only the listed ones."""
    assert set(SETTINGS["tool"]["setuptools"]["packages"]) == PACKAGES


def test_every_direct_dependency_is_pinned():
    project = SETTINGS["project"]
    extras = [name for names in project["optional-dependencies"].values() for name in names]
    wanted = {name.split(">=")[0] for name in [*project["dependencies"], *extras]}
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {line.split("==")[0] for line in lines if "==" in line}
    assert wanted - {"fewstep[test]"} <= pinned


def test_changelog_knows_the_version():
    version = SETTINGS["project"]["version"]
    assert f"\n## {version}" in (ROOT / "CHANGELOG.md").read_text()
    assert f'__version__ = "{version}"' in (ROOT / "__init__.py").read_text()


def test_importing_the_package_and_its_help_need_no_torch():
    code = "import sys, fewstep.cli; sys.exit('torch' in sys.modules or 'diffusers' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_wheel_holds_code_weights_and_nothing_else(tmp_path):
    source = tmp_path / "source"
    for folder in (
        ".",
        *RANK,
        "integrations",
        "tests",
    ):  # a clean copy: an old build folder would leak into it
        for path in (ROOT / folder).rglob("*") if folder != "." else ROOT.glob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                target = source / path.relative_to(ROOT)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(path.read_bytes())
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
    command += ["--no-build-isolation", "--wheel-dir", str(tmp_path), str(source)]
    subprocess.run(command, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.stat().st_size < 16e6
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    patterns = ("models/embedded/*/*.*", "eval/embedded/*/*.*", "eval/*/templates/*.html")
    patterns = (*patterns, "solvers/presets/*.json")
    found = (path for pattern in patterns for path in ROOT.glob(pattern))
    data = {f"fewstep/{p.relative_to(ROOT)}" for p in found if "__pycache__" not in p.parts}
    code = {f"fewstep/{path.relative_to(ROOT)}" for path in FILES}
    assert all(any(ROOT.glob(pattern)) for pattern in patterns)
    assert names == code | data | {"fewstep/__init__.py", "fewstep/cli.py", "fewstep/py.typed"}


def test_a_class_name_stands_for_one_thing():
    places = defaultdict(list)
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(str(path.relative_to(ROOT)))
    assert {name: where for name, where in places.items() if len(where) > 1} == {}


def test_docstrings_say_what_a_thing_is():
    """None begins with a question word; functions begin with a verb, values with their noun."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
    found = [
        f"{path.relative_to(ROOT)}: {text.splitlines()[0]}"
        for path in [*FILES, *OUTSIDE]
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, kinds)
        and (text := ast.get_docstring(node))
        and text.startswith(("What ", "Whether "))
    ]
    assert found == []
