"""`fewstep bench fid-nfe` and `fewstep bench table`: image quality against evaluations."""

import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .console import refuse_typed
from .gather import gather_options, take_given
from .options import (
    DEFAULT_MODEL,
    MOST,
    MOST_REPEATS,
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
    """What is measured; `sweep` is the same as data."""

    model: Annotated[
        list[str] | None, typer.Option(help="As in sample; repeat it. Default: fashion-dit.")
    ] = None
    solver: Annotated[
        list[str] | None,
        typer.Option(help="Name[:key=value,...] or a schedule file *.json; repeat it."),
    ] = None
    rival: Annotated[
        list[str] | None,
        typer.Option(help="A scheduler of diffusers, name[:argument=value,...]; repeat it."),
    ] = None
    grid_type: Annotated[
        list[str] | None, typer.Option(help="Of the named solvers, as in sample; repeat it.")
    ] = None
    final: Annotated[str, typer.Option(help="How runs end, as in sample.")] = "zero"
    nfe: Budgets = "4-6,8,10"
    cfg_scale: Annotated[
        list[float] | None, typer.Option(help="Guidance scale; repeat it. Default: 1, off.")
    ] = None
    cfg_interval: CfgInterval = None
    guidance: Annotated[
        list[str] | None, typer.Option(help="Policy as in sample; repeat it. Default: cfg.")
    ] = None
    cache: Annotated[
        list[str] | None, typer.Option(help="Cache as in sample; repeat it. Default: none.")
    ] = None
    metric: Annotated[
        str, typer.Option(help="fd-small, fid, or another of `fewstep list metrics`.")
    ] = "fd-small"
    reference: Annotated[
        str | None, typer.Option(help="Images or statistics. Default: that of fd-small.")
    ] = None
    floor: Annotated[
        str | None, typer.Option(help="Real images to measure too. Default: a known test set.")
    ] = None
    n: Annotated[
        int, typer.Option("--n", "--images", min=1, max=MOST, help="Images of each figure.")
    ] = 2000
    blocks: Annotated[
        int,
        typer.Option(min=1, max=MOST_REPEATS, help="Figures with further seeds, 3 for a spread."),
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
    """What is shown, and written beside the store."""

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
        Path | None, typer.Option(help="JSON with all the choices above, instead of them.")
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(help="Weights of the metric's network, if not found.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda; one GPU per process.")] = "cpu",
    store: StoreFile = Path("results.jsonl"),
    outputs: FidOutputs,
    quiet: QuietTable = False,
) -> None:
    """Image quality against network evaluations, for solvers, schedules and diffusers' own.

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
    stores: Annotated[list[Path], typer.Argument(help="Files that fid-nfe has written.")],
    outputs: FidOutputs,
) -> None:
    """The table of all figures in some stores; refuses rows that cannot be compared."""
    from ..eval.bench.rows import ResultStore
    from ..eval.experiments.fid_page import write_report

    files = outputs.check(stores)
    read = [ResultStore.existing(path) for path in stores]
    rows = {row.hash: row for each in read for row in each.rows.values()}
    broken = [line for each in read for line in each.broken]
    typer.echo(write_report(files, list(rows.values()), broken, [each.path for each in read]))
