"""The command line: `sample` draws a grid of images, `fewstep` holds all commands.

What they do stands in `commands/`; here they get their names.
"""

from collections.abc import Callable
from typing import Annotated, Any

import typer

from fewstep import __version__
from fewstep.commands import (
    bench,
    bench_editing,
    bench_fid,
    bench_fronts,
    calibrate,
    compare,
    data,
    editing,
    hub,
    lists,
    sample,
    search,
    tune,
)
from fewstep.commands.console import OneLineCommand, OneLineGroup

app = typer.Typer(
    name="fewstep",
    cls=OneLineGroup,
    help="Samples diffusion and flow networks in few network evaluations.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
sample_app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
bench_app = typer.Typer(no_args_is_help=True, help="Benchmarks beside diffusers, in one run.")
app.add_typer(bench_app, name="bench")
fit_app = typer.Typer(no_args_is_help=True, help="Fits what a policy needs to know of a network.")
app.add_typer(fit_app, name="fit")

Commands = dict[str, Callable[..., Any]]

MAIN: Commands = {
    "sample": sample.sample,
    "list": lists.list_,
    "data": data.data,
    "fid": data.fid,
    "stats": data.stats,
    "calibrate": calibrate.calibrate,
    "search": search.search,
    "tune": tune.tune,
    "compare": compare.compare,
    "invert": editing.invert,
    "edit": editing.edit,
    "hub": hub.hub,
}
BENCH: Commands = {
    "inception": bench.inception,
    "overhead": bench.overhead,
    "search-toy": bench.search_toy,
    "accuracy": bench.accuracy,
    "rivals": bench.rivals,
    "guidance": bench_fronts.guidance_front,
    "cache": bench_fronts.cache_front,
    "fid-nfe": bench_fid.fid_nfe,
    "table": bench_fid.fid_table,
    "command": bench.command,
    "gpu": bench.gpu,
    "inversion": bench_editing.inversion,
    "edit": bench_editing.edit,
}
FIT: Commands = {"linear-ag": calibrate.fit_linear_ag}

sample_app.command(cls=OneLineCommand)(sample.sample)
for _group, _commands in ((app, MAIN), (bench_app, BENCH), (fit_app, FIT)):
    for _name, _function in _commands.items():
        _group.command(_name, cls=OneLineCommand)(_function)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        typer.echo(f"fewstep {__version__}")
        raise typer.Exit


if __name__ == "__main__":
    app()
