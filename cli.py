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
    bench_speed,
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
from fewstep.commands.console import OneLineCommand, OneLineGroup, unfold_help
from fewstep.commands.examples import format_examples

DRAW, BETTER, MEASURE, OTHER = (
    "Draw pictures",
    "Find better settings",
    "Measure",
    "Look up, fetch and publish",
)
PLAIN: dict[str, Any] = {"add_completion": False, "pretty_exceptions_enable": False}

app = typer.Typer(
    name="fewstep",
    cls=OneLineGroup,
    help="Samples diffusion and flow networks in few network evaluations.",
    epilog=format_examples(""),
    no_args_is_help=True,
    **PLAIN,
)
sample_app = typer.Typer(**PLAIN)
bench_app = typer.Typer(no_args_is_help=True, help="Measures quality, error, time and memory.")
fit_app = typer.Typer(no_args_is_help=True, help="Fits the weights of a guidance to a network.")

Commands = dict[str, Callable[..., Any]]

MAIN: dict[str, Commands] = {
    DRAW: {
        "sample": sample.sample,
        "compare": compare.compare,
        "invert": editing.invert,
        "edit": editing.edit,
    },
    BETTER: {
        "tune": tune.tune,
        "search": search.search,
        "calibrate": calibrate.calibrate,
        "stats": data.stats,
    },
    MEASURE: {"fid": data.fid},
    OTHER: {"list": lists.list_, "data": data.data, "hub": hub.hub},
}
BENCH: Commands = {
    "fid-nfe": bench_fid.fid_nfe,
    "table": bench_fid.fid_table,
    "accuracy": bench.accuracy,
    "rivals": bench.rivals,
    "guidance": bench_fronts.guidance_front,
    "cache": bench_fronts.cache_front,
    "inversion": bench_editing.inversion,
    "edit": bench_editing.edit,
    "search-toy": bench.search_toy,
    "inception": bench.inception,
    "overhead": bench.overhead,
    "command": bench.command,
    "speed": bench_speed.speed,
    "scaling": bench_speed.scaling,
    "gpu": bench.gpu,
}
FIT: Commands = {"linear-ag": calibrate.fit_linear_ag}


def _register(
    group: typer.Typer, commands: Commands, before: str = "", panel: str | None = None
) -> None:
    """Gives commands their names, their help and the examples below it.

    before: the words that are typed before the name. panel: the heading that they stand under.
    """
    for name, function in commands.items():
        group.command(
            name,
            cls=OneLineCommand,
            help=unfold_help(function.__doc__),
            epilog=format_examples(before + name),
            rich_help_panel=panel,
        )(function)


for _panel, _commands in MAIN.items():
    _register(app, _commands, panel=_panel)
_register(sample_app, {"sample": sample.sample})
_register(bench_app, BENCH, "bench ")
_register(fit_app, FIT, "fit ")
app.add_typer(bench_app, name="bench", epilog=format_examples("bench"), rich_help_panel=MEASURE)
app.add_typer(fit_app, name="fit", epilog=format_examples("fit"), rich_help_panel=BETTER)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        typer.echo(f"fewstep {__version__}")
        raise typer.Exit


if __name__ == "__main__":
    app()
