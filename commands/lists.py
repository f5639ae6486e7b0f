"""`fewstep list`: what can be named."""

import sys
from typing import Annotated

import typer

from ..models.errors import UnknownNameError

ALIASES = {"networks": "models"}


def list_(
    kind: Annotated[
        str,
        typer.Argument(
            help="What to list: solvers, grids, schedules, models, guidance, operators, methods,"
            " caches, predictors, recipes, functions, editors or metrics."
        ),
    ],
) -> None:
    """Lists what can be named: solvers, grids, schedules, models, caches, editors and others."""
    from rich.console import Console
    from rich.table import Table

    from ..eval.metrics import listing as metrics
    from ..samplers.editing import list_editors as editors
    from .catalogue import LISTINGS

    kind = ALIASES.get(kind, kind)
    listings = {**LISTINGS, "editors": editors, "metrics": metrics}
    if kind not in listings:
        raise UnknownNameError("list", kind, listings)
    header, *rows = listings[kind]()
    table = Table(*header, box=None)
    for row in rows:
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 200, markup=False).print(table)
