"""Helpers of all commands: options from dataclasses, one-line errors and warnings, refusals."""

import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import wraps
from inspect import Parameter, Signature, cleandoc, signature
from typing import Any, TypeVar

import typer
from typer.core import TyperCommand, TyperGroup

from ..eval.options import read_options
from ..models.arguments import parse_ranges
from ..models.errors import FewstepError, SettingError

UsageError: Any = typer.BadParameter.__mro__[1]  # typer exports no name for it
MAY_BE_EMPTY = {"--prompt", "--from-prompt", "--to-prompt", "--negative-prompt"}
RENAMED = {"--honest": "--baseline"}  # options whose old names are still taken
BAD_INPUT = 2  # the exit code
T = TypeVar("T")


class OneLineCommand(TyperCommand):
    """A command that says every error in one line, those of its options too."""

    def main(self, *args: Any, **extra: Any) -> Any:
        """Runs the command and ends the process with its exit code."""
        with exit_in_one_line():
            sys.exit(super().main(*args, **{**extra, "standalone_mode": False}))  # no box

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parses as typer does, but refuses empty strings, which would pass for no choice."""
        refuse_empty(args)
        return super().parse_args(ctx, [rename_option(word) for word in args])

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Prints the help as typer does, but without the bounds of numbers.

        They catch slips of the keyboard, and would take the room of the texts.
        """
        from typer import rich_utils

        rich_utils.RANGE_STRING = ""
        super().format_help(ctx, formatter)


class OneLineGroup(TyperGroup):
    """A group of such commands."""

    def main(self, *args: Any, **extra: Any) -> Any:
        """Runs a command and ends the process with its exit code."""
        with exit_in_one_line():
            sys.exit(super().main(*args, **{**extra, "standalone_mode": False}))  # no box


def unfold_help(text: str | None) -> str:
    """Returns a docstring with each of its paragraphs on one line, for typer to fold."""
    paragraphs = cleandoc(text or "").split("\n\n")
    return "\n\n".join(" ".join(each.split()) for each in paragraphs)


@contextmanager
def exit_in_one_line() -> Iterator[None]:
    """Ends the process with an exit code; each error and warning is printed as one line.

    Bugs keep their traceback.
    """
    try:
        with one_line_errors(), one_line_warnings():
            yield
    except typer.Exit as done:
        sys.exit(done.exit_code)
    except typer.Abort:
        say_error("stopped")
        sys.exit(1)
    except UsageError as error:
        if error.message:  # else the help was printed in place of a missing command
            path = error.ctx.command_path if error.ctx else "fewstep"
            say_error(f"{error.format_message().rstrip('.')}; see {path} --help")
        sys.exit(BAD_INPUT)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turns our errors, and what the system refuses, into one line and exit code 2."""
    try:
        yield
    except FewstepError as error:
        say_error(str(error))
        raise typer.Exit(BAD_INPUT) from None
    except BrokenPipeError:  # whoever read the output has gone
        raise
    except OSError as error:
        where = "" if error.filename is None else f" {str(error.filename)[:80]!r}"
        say_error(f"the system refuses{where}: {error.strerror or error}")
        raise typer.Exit(BAD_INPUT) from None
    except MemoryError:
        say_error("this machine has too little memory for that; ask for fewer images at once")
        raise typer.Exit(BAD_INPUT) from None


def say_error(text: str) -> None:
    """Prints an error as one line on the error stream."""
    typer.echo(f"error: {' '.join(text.split())}", err=True)


def refuse_empty(words: Sequence[str]) -> None:
    """Raises SettingError for an empty word where no prompt is expected."""
    for before, word in zip(["", *words], words, strict=False):
        name, equals, value = word.partition("=")
        option = name if equals and name.startswith("--") else before
        if not (value if option is name else word) and option not in MAY_BE_EMPTY:
            where = f"after {option}" if option.startswith("--") else "as an argument"
            raise SettingError(f"an empty string {where} is not a value; leave it out")


def rename_option(word: str) -> str:
    """Returns a word of the command line with the present name of a renamed option."""
    name, equals, value = word.partition("=")
    if name not in RENAMED:
        return word
    warnings.warn(f"{name} is now called {RENAMED[name]}", stacklevel=2)
    return RENAMED[name] + equals + value


@contextmanager
def one_line_warnings() -> Iterator[None]:
    """Prints warnings meant for the user as one line each, once what was asked is done."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default", UserWarning)
        try:
            yield
        finally:
            for text in dict.fromkeys(str(each.message) for each in caught):
                typer.echo(f"warning: {text}", err=True)


def echo(lines: Iterable[str]) -> None:
    """Prints lines as they come."""
    for line in lines:
        typer.echo(line)


def echo_left_out(remarks: Iterable[str]) -> None:
    """Says on the error stream what could not be run, and why."""
    for remark in remarks:
        typer.echo(f"left out: {remark}", err=True)


def typed(ctx: typer.Context, name: str) -> bool:
    """Returns whether the user gave this parameter; its value may still be its default."""
    source = ctx.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def refuse_typed(ctx: typer.Context, names: Set[str], reason: str) -> None:
    """Raises SettingError if one of these parameters was typed: it would be ignored."""
    refused = [name for name in names if typed(ctx, name)]
    if refused:
        options = ", ".join(sorted(name.strip("_").replace("_", "-") for name in refused))
        raise SettingError(f"{reason}; drop {options}")


def gather_options(command: Callable[..., None]) -> Callable[..., None]:
    """Returns a command that is typed with the fields of its dataclass arguments as options.

    A field is an `option`, or annotated as one of typer; without a default it must be given.
    """
    arguments = signature(command, eval_str=True).parameters
    kinds = {name: each.annotation for name, each in arguments.items()}
    groups: dict[str, Any] = {name: kind for name, kind in kinds.items() if is_dataclass(kind)}
    options = {name: read_options(kind) for name, kind in groups.items()}

    @wraps(command)
    def run(**given: Any) -> None:
        for name, kind in groups.items():
            given[name] = kind(**{each: given.pop(each) for each in options[name]})
        command(**given)

    parameters = [
        option
        for name, each in arguments.items()
        for option in (map(_make_parameter, options[name].items()) if name in groups else [each])
    ]
    named = [each.replace(kind=Parameter.KEYWORD_ONLY) for each in parameters]
    run.__signature__ = Signature(named)  # type: ignore[attr-defined]
    run.__annotations__ = {each.name: each.annotation for each in named}
    return run


def _make_parameter(option: tuple[str, tuple[Any, Field[Any]]]) -> Parameter:
    name, (hint, field) = option
    default = Parameter.empty if field.default is MISSING else field.default
    return Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=hint)


def take_given(options: Any, ranges: Sequence[str] = (), **renamed: str) -> dict[str, Any]:
    """Returns the options of a dataclass as settings; those that are None are left out.

    ranges:  fields that hold numbers as 6-14,16.
    renamed: option -> setting, where the names differ.

    Raises:
        SettingError: for a range that is none.
    """
    settings = {}
    for field in fields(options):
        value = getattr(options, field.name)
        if value is not None:
            name = renamed.get(field.name, field.name)
            settings[name] = parse_ranges(value) if field.name in ranges else value
    return settings
