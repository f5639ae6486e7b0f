"""`fewstep search`: a better schedule for one network."""

import typer

from ..eval.options import QuietWarnings
from ..eval.requests import SearchRequest
from .console import echo, gather_options, refuse_typed

OF_TOY = {
    *("network", "nfe", "nfe_range", "rows", "strategy", "objective", "budget", "seed", "out"),
    *("log", "noises", "scored", "free", "afs", "base", "grid_type", "plot", "quiet"),
}
NOT_OF_ROWS = {"free", "afs", "base", "grid_type"}
NOT_OF_MASKS = {"free", "afs"}


@gather_options
def search(ctx: typer.Context, request: SearchRequest, quiet: QuietWarnings = False) -> None:
    """Searches for the best schedule (solver, times) of a network; `sample --schedule` runs it.

    The log keeps every candidate that was evaluated. A search that was stopped continues from it
    when the same command is given again, and processes that share --log share the work.
    """
    if request.network == "toy":
        names = ctx.params.keys() - OF_TOY
        refuse_typed(ctx, names, "toy brings its own network, teacher and seeds")
    if request.rows is not None:
        refuse_typed(ctx, NOT_OF_ROWS, "--rows frees all that guided schedules have")
    if request.full is not None:
        refuse_typed(ctx, NOT_OF_MASKS, "--full searches the evaluations that run in full")
    from ..eval.search.command import run_search, summarize

    distances = {}
    for path, result in run_search(request, progress=not quiet):
        if not quiet:
            echo(summarize(path, result, request))
        if request.full is not None:
            distances[path] = result.schedule.provenance["cache"]["distance"]["value"]
    if len(distances) > 1:
        typer.echo(f"nearest to the reference: {min(distances, key=distances.__getitem__)}")
