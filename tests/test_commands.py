"""What holds for every command: it is registered, explains itself, and repeats nobody's options."""

import inspect
import shlex
import subprocess
import sys
import warnings
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Annotated

import pytest
import typer
from rich.text import Text
from typer.testing import CliRunner

from fewstep.cli import app
from fewstep.commands import console
from fewstep.commands.console import OneLineCommand, gather_options, refuse_typed, typed
from fewstep.commands.examples import EXAMPLES
from fewstep.eval.comparison_settings import parse_setting
from fewstep.eval.metrics import metric
from fewstep.eval.options import describe, option
from fewstep.models.caching.base import take_cache
from fewstep.models.errors import SettingError
from fewstep.samplers.editing.base import take_editor
from fewstep.samplers.guidance import parse_guidance
from fewstep.solvers import take_solver

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "commands").glob("*.py"))
SHARED = {"__init__", "catalogue", "console", "examples"}
MODULES = [import_module(f"fewstep.commands.{f.stem}") for f in FILES if f.stem not in SHARED]


def named(group=app, before=()):
    """The words of every command -> its function."""
    for each in group.registered_commands:
        yield (*before, each.name), each.callback
    for each in group.registered_groups:
        yield from named(each.typer_instance, (*before, each.name))


COMMANDS = dict(named())


def test_every_public_function_of_a_group_is_a_command():
    own = {
        function
        for module in MODULES
        for name, function in inspect.getmembers(module, inspect.isfunction)
        if function.__module__ == module.__name__ and not name.startswith("_")
    }
    assert own == set(COMMANDS.values())
    assert len(own) == len(COMMANDS)


def find_command(words):
    """The command of these words as typer has built it, and the words that are left."""
    command = typer.main.get_command(app)
    while words and words[0] in getattr(command, "commands", ()):
        command, words = command.commands[words[0]], words[1:]
    return command, words


@pytest.mark.parametrize("words", [*COMMANDS, (), ("bench",), ("fit",)], ids=" ".join)
def test_help_names_every_option_and_says_what_it_is(words):
    result = CliRunner().invoke(app, [*words, "--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    for purpose, line in EXAMPLES[" ".join(words)]:
        assert f" {purpose}: " in result.output
        assert f"   {line} " in result.output
    command, _ = find_command(words)
    assert command.help
    for parameter in command.params:
        assert Text.from_markup(parameter.help).plain == parameter.help.replace("\\[", "[")
        assert max(parameter.opts, key=len).lower() in result.output.lower()


def test_examples_can_be_typed():
    """The parser takes them, what they name exists, and they fit a narrow terminal."""
    assert EXAMPLES.keys() == {"", "bench", "fit", *map(" ".join, COMMANDS)}
    for name, pair in EXAMPLES.items():
        for purpose, line in pair:
            assert max(len(purpose), len(line)) <= 76
            assert line.removeprefix("fewstep ").startswith(name)
            given = dict(parse_example(shlex.split(line.removeprefix("fewstep "))))
            for parameter, take in TAKE.items():
                for value in as_list(given.get(parameter)):
                    take(value)


def parse_example(words):
    """Yields what a command is given by these words."""
    command, words = find_command(words)
    if words != ["--help"]:
        yield from command.make_context(command.name, words).params.items()


def as_list(value):
    return value if isinstance(value, list | tuple) else [] if value is None else [value]


def check_solver(value):
    """Raises unless it is a solver, or a file of a schedule."""
    if not value.endswith(".json"):
        take_solver(value)


# What takes the value of an option that is a name, and raises where there is none such.
TAKE = {
    "solver": check_solver,
    "guidance": lambda name: parse_guidance(name, 2.0),
    "cache": take_cache,
    "editor": take_editor,
    "setting": parse_setting,
    "metrics": lambda names: [metric(name) for name in names.split(",")],
}


def named_options():
    """The names of the options of all commands."""
    return {name for command in COMMANDS.values() for name in inspect.signature(command).parameters}


def test_no_option_is_described_twice():
    """What several share stands in options.py once, so that its help cannot drift apart."""
    described = {}
    for words, command in COMMANDS.items():
        for name, parameter in inspect.signature(command).parameters.items():
            if parameter.annotation is not typer.Context:
                hint, info = parameter.annotation.__origin__, parameter.annotation.__metadata__[0]
                described.setdefault((name, str(hint), info.help), {})[id(info)] = words
    assert len(described) > 100
    assert not [each for each in described.items() if len(each[1]) > 1]


def test_a_command_has_few_arguments_of_its_own():
    for function in COMMANDS.values():
        own = inspect.signature(inspect.unwrap(function)).parameters
        assert len(own) <= 12, function.__name__


@dataclass(frozen=True, kw_only=True)
class Choice:
    size: Annotated[int, describe("The size.", within=(1, None))]
    name: str = option("x", "The name.", None, "--called")
    made: float = field(init=False, default_factory=lambda: 7.0)


def test_fields_of_a_dataclass_are_options():
    app, seen = typer.Typer(), []

    @app.command()
    @gather_options
    def _command(choice: Choice, last: Annotated[bool, typer.Option("--last")] = False) -> None:
        seen.append((choice, last))

    assert CliRunner().invoke(app, ["--size", "3", "--last"]).exit_code == 0
    assert CliRunner().invoke(app, ["--called", "y", "--size", "1"]).exit_code == 0
    assert seen == [(Choice(size=3), True), (Choice(size=1, name="y"), False)]
    assert seen[0][0].made == 7.0
    for wrong in ([], ["--size", "0"], ["--size", "1", "--made", "2"]):
        assert CliRunner().invoke(app, wrong).exit_code == 2


@pytest.mark.parametrize(
    ("words", "file", "constant"),
    [
        (("sample",), "sample", "BESIDE_REPLAY"),
        (("search",), "search", "OF_TOY"),
        (("search",), "search", "NOT_OF_ROWS"),
    ],
)
def test_lists_of_options_name_options(words, file, constant):
    """A misspelt one would be refused, or taken, in silence."""
    names = getattr(import_module(f"fewstep.commands.{file}"), constant)
    assert names <= inspect.signature(COMMANDS[words]).parameters.keys()


def test_no_help_needs_torch():
    code = (
        "import sys; from typer.testing import CliRunner; from fewstep.cli import app\n"
        f"for words in {[list(words) for words in COMMANDS]}:\n"
        "    assert CliRunner().invoke(app, [*words, '--help']).exit_code == 0\n"
        "sys.exit(' '.join({'torch', 'diffusers', 'numpy', 'PIL'} & sys.modules.keys()) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.strip() == ""
    assert done.returncode == 0


def run(body, *words):
    """One command whose options are --first, --second-one; the body gets its context."""
    app = typer.Typer()

    @app.command(cls=OneLineCommand)
    def _command(ctx: typer.Context, first: int = 1, second_one: int = 2) -> None:
        body(ctx)

    return CliRunner().invoke(app, [str(word) for word in words])


def test_only_what_was_typed_is_refused_even_if_it_is_the_default():
    def body(ctx):
        typer.echo(f"{typed(ctx, 'first')} {typed(ctx, 'second_one')}")
        refuse_typed(ctx, {"second_one", "first"}, "no choices here")

    assert run(body).output == "False False\n"
    result = run(body, "--second-one", 2)
    assert result.exit_code == 2
    assert result.output == "False True\nerror: no choices here; drop second-one\n"
    assert run(body, "--second-one", 3, "--first", 1).stderr.endswith("drop first, second-one\n")


def test_the_old_name_of_an_option_is_taken_with_a_warning(monkeypatch):
    monkeypatch.setitem(console.RENAMED, "--second", "--second-one")
    for words in (["--second", "5"], ["--second=5"]):
        result = run(lambda ctx: typer.echo(ctx.params["second_one"]), *words)
        assert result.output == "5\nwarning: --second is now called --second-one\n"
    options = {f"--{each.replace('_', '-')}" for each in named_options()}
    assert not console.RENAMED.keys() & options
    assert set(console.RENAMED.values()) <= options | {"--second-one"}


def test_errors_are_one_line_and_bugs_keep_their_traceback():
    def wrong(ctx):
        raise SettingError("one\n  two")

    def bug(ctx):
        raise ZeroDivisionError

    result = run(wrong)
    assert (result.exit_code, result.stderr) == (2, "error: one two\n")
    assert isinstance(run(bug).exception, ZeroDivisionError)


def test_warnings_come_once_and_last_even_after_an_error():
    def body(ctx):
        warnings.warn("later", stacklevel=1)
        warnings.warn("later", stacklevel=1)  # Python itself drops it only from the same line
        warnings.warn("another", stacklevel=1)
        typer.echo("done")
        raise SettingError("no")

    result = run(body)
    assert result.output == "done\nwarning: later\nwarning: another\nerror: no\n"
