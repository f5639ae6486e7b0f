"""`fewstep tune`: the best plan for a cost on one network, or the front of all of them."""

import typer

from ..eval.options import Json, QuietWarnings
from ..eval.tune_request import TuneRequest
from .console import echo, gather_options


@gather_options
def tune(request: TuneRequest, json_: Json = False, quiet: QuietWarnings = False) -> None:
    """Finds the best solver, grid, guidance and cache for a cost; `sample --plan` runs them.

    Without a limit of the cost it writes a plan for each point of the front of error against cost.
    A command that was stopped continues when it is given again, and processes that share --log
    share the work.
    """
    from ..eval.tune.command import run_tune
    from ..eval.tune.lines import list_lines

    report = run_tune(request, progress=not quiet)
    if json_:
        typer.echo(report.model_dump_json(indent=1, exclude_none=True))
    elif not quiet:
        echo(list_lines(report, request.out))
