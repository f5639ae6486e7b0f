"""Measures the package itself: its size, its largest parts, and the way of one `sample` through it.

    python recipes/measure_house.py

Prints lines of source, the largest file, body and signature, class names that stand for more than
one thing, the package's files that `sample --solver unipc-2 --nfe 8 --cfg-scale 2` enters and the
package's frames between the command line and the network call.
"""

import ast
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).parents[1]
PACKAGES = ("commands", "eval", "models", "samplers", "solvers")
COMMAND = ("--solver", "unipc-2", "--nfe", "8", "--cfg-scale", "2", "--quiet")
Function = ast.FunctionDef | ast.AsyncFunctionDef


def sources() -> Iterator[Path]:
    """Yields every Python file of the package."""
    yield from (ROOT / "__init__.py", ROOT / "cli.py")
    for package in PACKAGES:
        yield from sorted((ROOT / package).rglob("*.py"))


def count_lines() -> dict[str, int]:
    """Returns the lines of every source file."""
    return {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in sources()}


def functions() -> Iterator[tuple[str, Function]]:
    """Yields every function with its place."""
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, Function):
                yield f"{path.relative_to(ROOT)}:{node.lineno} {node.name}", node


def measure_body(function: Function) -> int:
    """Returns the lines of a function below its signature and docstring."""
    has_text = ast.get_docstring(function) is not None
    body = function.body[1:] if has_text else function.body
    return (function.end_lineno or 0) - body[0].lineno + 1 if body else 0


def count_arguments(function: Function) -> int:
    """Returns the number of arguments, without self and cls."""
    args = function.args
    names = [each.arg for each in (*args.posonlyargs, *args.args, *args.kwonlyargs)]
    return len([name for name in names if name not in ("self", "cls")])


def find_shared_names() -> dict[str, list[str]]:
    """Returns the class names that are defined in more than one place."""
    places: dict[str, list[str]] = defaultdict(list)
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(f"{path.relative_to(ROOT)}:{node.lineno}")
    return {name: where for name, where in sorted(places.items()) if len(where) > 1}


class Trail:
    """Watches one run: the package's files it enters, and its frames at the first network call."""

    def __init__(self) -> None:
        import fewstep

        self.home = str(Path(fewstep.__file__).parent)
        self.files: set[str] = set()
        self.frames: list[str] = []

    def watch(self, frame: FrameType, event: str, argument: Any) -> None:
        """Notes a call; the first module that runs is the network."""
        if event != "call":
            return
        code = frame.f_code
        name = code.co_filename.removeprefix(self.home + "/")
        if code.co_name != "<module>" and name.startswith((*PACKAGES, "cli.py", "__init__.py")):
            self.files.add(name)
        if not self.frames and code.co_name == "_call_impl":
            self.frames = list(self._own(frame))

    def _own(self, frame: FrameType | None) -> Iterator[str]:
        while frame is not None:
            name = frame.f_code.co_filename.removeprefix(self.home + "/")
            if name != frame.f_code.co_filename and not name.startswith("recipes"):
                yield f"{Path(frame.f_code.co_filename).name}:{frame.f_code.co_name}"
            frame = frame.f_back


def follow_sample() -> Trail:
    """Runs the command in this process and returns its trail."""
    from fewstep.cli import sample_app

    with tempfile.TemporaryDirectory() as folder:
        sys.argv = ["sample", *COMMAND, "--seeds", "0", "--out", f"{folder}/grid.png"]
        _run(sample_app)  # the first time modules are imported, which enters every one of them
        trail = Trail()
        sys.setprofile(trail.watch)
        try:
            _run(sample_app)
        finally:
            sys.setprofile(None)
    return trail


def _run(command: Callable[[], Any]) -> None:
    try:
        command()
    except SystemExit as done:
        if done.code:
            raise RuntimeError(f"the command ended with {done.code}") from done


def main() -> None:
    lines, every = count_lines(), list(functions())
    place, body = max(((place, measure_body(each)) for place, each in every), key=lambda x: x[1])
    wide, arguments = max(
        ((place, count_arguments(each)) for place, each in every), key=lambda x: x[1]
    )
    largest, shared = max(lines, key=lambda name: lines[name]), find_shared_names()
    trail = follow_sample()
    sys.stdout.write(
        f"source lines          {sum(lines.values())} in {len(lines)} files\n"
        f"largest file          {lines[largest]} {largest}\n"
        f"largest body          {body} {place}\n"
        f"most arguments        {arguments} {wide}\n"
        f"class names shared    {len(shared)} {' '.join(shared)}\n"
        f"files entered         {len(trail.files)}\n"
        f"frames at the network {len(trail.frames)} {' < '.join(trail.frames)}\n"
    )


if __name__ == "__main__":
    main()
