"""What commands share in talking to the user: lines, one-line errors and warnings, refusals."""

import warnings
from collections.abc import Iterable, Iterator, Set
from contextlib import contextmanager

import typer

from ..models.errors import FewstepError, SettingError


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turns our errors into one line and exit code 2; others are bugs and keep their traceback."""
    try:
        yield
    except FewstepError as error:
        typer.echo(f"error: {' '.join(str(error).split())}", err=True)
        raise typer.Exit(2) from None


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
    """Whether the user gave this parameter; its value may still be its default."""
    source = ctx.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def refuse_typed(ctx: typer.Context, names: Set[str], reason: str) -> None:
    """Raises SettingError if one of these parameters was typed: it would be ignored."""
    found = [name for name in names if typed(ctx, name)]
    if found:
        options = ", ".join(sorted(name.strip("_").replace("_", "-") for name in found))
        raise SettingError(f"{reason}; drop {options}")
