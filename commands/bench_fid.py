"""`fewstep bench fid-nfe` and `fewstep bench table`: image quality against evaluations."""

import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..eval.requests import FIGURES
from .console import refuse_typed
from .gather import gather_options, take_given
from .options import (
    DEFAULT_MODEL,
    GUIDANCE,
    MACHINE,
    MOST,
    MOST_REPEATS,
    SAMPLING,
    BatchSampled,
    Budgets,
    CfgInterval,
    Dtype,
    Html,
    Plot,
    QuietTable,
    StoreFile,
    TableText,
)

if TYPE_CHECKING:
    from ..eval.bench.report import ReportFiles
    from ..eval.experiments.fid_sweep import Sweep


PLURALS = {
    **{"model": "models", "solver": "solvers", "rival": "rivals", "grid_type": "grids"},
    **{"cfg_scale": "cfg_scales", "guidance": "guidances", "cache": "caches"},
}


@dataclass
class FidOptions:
    """The choices of a measurement; `sweep` is the same as data."""

    model: Annotated[
        list[str] | None,
        typer.Option(
            help="A network, as `sample` takes it; may be repeated. The default is fashion-dit.",
            rich_help_panel=MACHINE,
        ),
    ] = None
    solver: Annotated[
        list[str] | None,
        typer.Option(
            help="A solver, as name[:key=value,...], or a schedule file *.json; may be repeated.",
            rich_help_panel=SAMPLING,
        ),
    ] = None
    rival: Annotated[
        list[str] | None,
        typer.Option(
            help="A scheduler of diffusers, as name[:argument=value,...]; may be repeated.",
            rich_help_panel=SAMPLING,
        ),
    ] = None
    grid_type: Annotated[
        list[str] | None,
        typer.Option(
            help="A grid of times for the named solvers, as `sample` takes it; may be repeated.",
            rich_help_panel=SAMPLING,
        ),
    ] = None
    final: Annotated[
        str,
        typer.Option(help="How runs end: zero, sigma_min or denoise.", rich_help_panel=SAMPLING),
    ] = "zero"
    nfe: Budgets = "4-6,8,10"
    cfg_scale: Annotated[
        list[float] | None,
        typer.Option(
            help="A guidance scale; may be repeated. The default is 1, which turns it off.",
            rich_help_panel=GUIDANCE,
        ),
    ] = None
    cfg_interval: CfgInterval = None
    guidance: Annotated[
        list[str] | None,
        typer.Option(
            help="A kind of guidance, as `sample` takes it; may be repeated. The default is cfg.",
            rich_help_panel=GUIDANCE,
        ),
    ] = None
    cache: Annotated[
        list[str] | None,
        typer.Option(
            help="A cache, as `sample` takes it; may be repeated. By default there is none.",
            rich_help_panel=SAMPLING,
        ),
    ] = None
    metric: Annotated[
        str,
        typer.Option(
            help="What is measured: fd-small, fid, or another name of `fewstep list metrics`.",
            rich_help_panel=FIGURES,
        ),
    ] = "fd-small"
    reference: Annotated[
        str | None,
        typer.Option(
            help="Images or statistics to compare with. The default is the reference of fd-small.",
            rich_help_panel=FIGURES,
        ),
    ] = None
    floor: Annotated[
        str | None,
        typer.Option(
            help="Real images that are measured too. The default is the test set of the reference.",
            rich_help_panel=FIGURES,
        ),
    ] = None
    n: Annotated[
        int,
        typer.Option(
            "--n",
            "--images",
            min=1,
            max=MOST,
            help="Number of images for each figure.",
            rich_help_panel=FIGURES,
        ),
    ] = 2000
    blocks: Annotated[
        int,
        typer.Option(
            min=1,
            max=MOST_REPEATS,
            help="Number of figures for each setting, each with further seeds.",
            rich_help_panel=FIGURES,
        ),
    ] = 1
    batch: BatchSampled = 32
    dtype: Dtype = "fp32"

    def sweep(self) -> "Sweep":
        """Returns the choices as they are stored; raises FewstepError for what is wrong."""
        from ..eval.experiments.fid_sweep import Entry, Sweep, check_choices
        from ..samplers.run_record import parse_interval

        given = {"models": [DEFAULT_MODEL], **take_given(self, **PLURALS)}
        if "cfg_interval" in given:
            given["cfg_interval"] = parse_interval(given["cfg_interval"])
        entry = {name: given.pop(name) for name in Entry.model_fields if name in given}
        return check_choices(Sweep, entries=[check_choices(Entry, **entry)], **given)


@dataclass
class FidOutputs:
    """The files and the table that are made of a store."""

    table: TableText = "md"
    plot: Plot = None
    html: Html = None

    def check(self, stores: list[Path]) -> "ReportFiles":
        """Returns what is asked for; raises FewstepError if it cannot be made."""
        from ..eval.bench.report import ReportFiles

        files = ReportFiles(self.table, self.plot, self.html)
        files.check(stores)
        return files


@gather_options
def fid_nfe(
    ctx: typer.Context,
    options: FidOptions,
    *,
    sweep: Annotated[
        Path | None,
        typer.Option(
            help="A .json file with all that is measured, in place of the options.",
            rich_help_panel=FIGURES,
        ),
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(
            help="File with the weights of the network that the metric needs, if it is not found by"
            " itself.",
            rich_help_panel=MACHINE,
        ),
    ] = None,
    device: Annotated[
        str,
        typer.Option(
            help="Either cpu or cuda, where each process takes one GPU.", rich_help_panel=MACHINE
        ),
    ] = "cpu",
    store: StoreFile = Path("results.jsonl"),
    outputs: FidOutputs,
    quiet: QuietTable = False,
) -> None:
    """Measures image quality against evaluations, of solvers, schedules and diffusers' own.

    Finished figures are in the store and are not drawn again: a run that was stopped goes on where
    it was. `accelerate launch -m fewstep.cli bench fid-nfe ...` shares the work among processes.
    """
    from tqdm.auto import tqdm

    from ..eval.bench.rows import ResultStore
    from ..eval.bench.runner import run_cells
    from ..eval.bench.team import team
    from ..eval.experiments.fid_evaluator import make_evaluator
    from ..eval.experiments.fid_nfe import QualityBench
    from ..eval.experiments.fid_page import write_report
    from ..eval.experiments.fid_points import row_line
    from ..eval.experiments.fid_sweep import Sweep

    files = outputs.check([store])
    kept = ResultStore(store)
    kept.check()
    if sweep is None:
        chosen = options.sweep()
    else:
        names = {field.name for field in fields(options)}
        refuse_typed(ctx, names, "--sweep holds all choices")
        chosen = Sweep.load(sweep)
    us = team(device)
    evaluator = make_evaluator(chosen, us.device, weights)
    bench = QualityBench(chosen, evaluator, kept, us)
    for (row,) in run_cells(bench, progress=not quiet):
        if not quiet:
            tqdm.write(row_line(row), file=sys.stderr)
    if us.leads:
        remarks = [*bench.remarks, *kept.broken]
        typer.echo(write_report(files, bench.rows(), remarks, [kept.path]))


@gather_options
def fid_table(
    stores: Annotated[
        list[Path], typer.Argument(help="Files that `fewstep bench fid-nfe --store` has written.")
    ],
    outputs: FidOutputs,
) -> None:
    """Prints the table of all figures in some stores; refuses rows that cannot be compared."""
    from ..eval.bench.rows import ResultStore
    from ..eval.experiments.fid_page import write_report

    files = outputs.check(stores)
    read = [ResultStore.existing(path) for path in stores]
    rows = {row.hash: row for each in read for row in each.rows.values()}
    broken = [line for each in read for line in each.broken]
    typer.echo(write_report(files, list(rows.values()), broken, [each.path for each in read]))
