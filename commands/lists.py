"""`fewstep list`: what can be named."""

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from textwrap import wrap
from typing import Annotated, Any

import typer

from ..models.errors import UnknownNameError
from .console import echo

ALIASES = {"networks": "models"}
KINDS = {
    "models": "networks that come with fewstep: sample NAME",
    "solvers": "how a step is computed: --solver NAME",
    "grids": "where the times between the steps lie: --grid NAME",
    "schedules": "searched schedules, solver and grid in one: --schedule NAME",
    "guidance": "how strongly and when a condition guides: --guidance NAME",
    "caches": "how evaluations reuse parts of earlier ones: --cache NAME",
    "predictors": "how caches forecast what they skip: --cache CACHE:predictor=NAME",
    "functions": "functions of predictions that a searched schedule may use",
    "recipes": "solver and times of distilled networks: --recipe NAME",
    "operators": "operators that measure an image, to restore it: --operator NAME",
    "methods": "how images are made to agree with a measurement: --method NAME",
    "editors": "how a picture is edited: fewstep edit --editor NAME",
    "metrics": "how images are measured: fewstep fid --metrics NAME",
}
MARK = "*"  # of recommended names
SHORT = 24  # characters of a column beside others on a narrow screen
INDENT: dict[str, Any] = {"initial_indent": "    ", "subsequent_indent": "      "}
WIDEST = 10_000  # columns of what no terminal shows


def list_(
    kind: Annotated[
        str | None,
        typer.Argument(help=f"What to list: {', '.join(KINDS)}. Without it, all are explained."),
    ] = None,
) -> None:
    """Lists every name that a command takes: solvers, grids, models, caches and others."""
    if kind is None:
        _print_table([("list", "what it holds, and how a name is typed"), *KINDS.items()])
        typer.echo("\n`fewstep list LIST` prints one of them, as in `fewstep list solvers`.")
        return
    kind = ALIASES.get(kind, kind)
    if kind not in KINDS:
        raise UnknownNameError("list", kind, KINDS)
    from .catalogue import LISTINGS, recommend

    marks = recommend(kind)
    rows = [(f"{name} {MARK}" if name in marks else name, *row) for name, *row in LISTINGS[kind]()]
    _print_table(rows)
    echo(_explain(marks))


def _print_table(rows: Sequence[Sequence[str]]) -> None:
    """Prints a header and rows without empty columns, within the width of a terminal.

    A file gets a line for each row.
    """
    from rich.console import Console
    from rich.table import Table

    shown = sys.stdout.isatty() or "COLUMNS" in os.environ
    console = Console(width=None if shown else WIDEST, markup=False, highlight=False)
    columns = [each for each in zip(*rows, strict=True) if any(each[1:])]
    rows = list(zip(*columns, strict=True))
    table = Table(*rows[0], box=None)
    for row in rows[1:]:
        table.add_row(*row)
    wide = console.options.update(max_width=WIDEST)
    if len(rows[0]) == 2 or console.measure(table, options=wide).maximum <= console.width:
        console.print(table)
    else:
        echo(_fold_rows(rows, console.width))


def _fold_rows(rows: Sequence[Sequence[str]], width: int) -> Iterator[str]:
    """Yields a table for a narrow screen: short columns side by side, others below their row."""
    titles, widths = rows[0], [max(map(len, column)) for column in zip(*rows, strict=True)]
    beside, room = [], width
    for i, each in enumerate(widths):
        if each <= SHORT and each <= room:
            beside.append(i)
            room -= each + 2
    below = [i for i in range(len(titles)) if i not in beside]
    for row in rows:
        yield "  ".join(row[i].ljust(widths[i]) for i in beside).rstrip()
        for i in below if row is not titles else ():
            yield from wrap(f"{titles[i]}: {row[i]}", width, **INDENT) if row[i] else ()


def _explain(marks: Mapping[str, str]) -> Iterator[str]:
    """Yields each reason to recommend a name, with the name if it is the only one."""
    yield from [""] if marks else ()
    for reason in dict.fromkeys(marks.values()):
        names = [name for name in marks if marks[name] == reason]
        yield f"{MARK} {names[0]}: {reason}" if len(names) == 1 else f"{MARK} {reason}"
