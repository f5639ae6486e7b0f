"""`fewstep bench fid-nfe` and `fewstep bench table`: image quality against evaluations."""

import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..eval.options import (
    COUNTS,
    FIGURES,
    GREY_MODEL,
    GRID,
    GUIDANCE,
    MACHINE,
    REPEATS,
    SAMPLING,
    WEIGHTS_FROM,
    BatchSampled,
    Budgets,
    CfgInterval,
    Dtype,
    Ending,
    Html,
    Plot,
    QuietTable,
    StoreFile,
    TableText,
    describe,
    option,
)
from .console import gather_options, refuse_typed, take_given, typed

if TYPE_CHECKING:
    from ..eval.bench.report import ReportFiles
    from ..eval.experiments.fid_sweep import Sweep


PLURALS = {
    **{"model": "models", "solver": "solvers", "rival": "rivals", "grid_type": "grids"},
    "plan": "plans",
    **{"cfg_scale": "cfg_scales", "guidance": "guidances", "cache": "caches"},
}


@dataclass
class FidOptions:
    """The choices of a measurement; `sweep` is the same as data."""

    model: list[str] | None = option(
        None,
        "A network, as `sample` takes it; may be repeated. The default is fashion-dit.",
        MACHINE,
    )
    solver: list[str] | None = option(
        None,
        "A solver, as name[:key=value,...], or the .json file of a schedule; may be repeated.",
        SAMPLING,
    )
    plan: list[str] | None = option(
        None,
        "A .json file of `fewstep tune`, which decides everything of a run; may be repeated.",
        SAMPLING,
    )
    rival: list[str] | None = option(
        None, "A scheduler of diffusers, as name[:argument=value,...]; may be repeated.", SAMPLING
    )
    grid_type: list[str] | None = option(
        None,
        "A grid of times for every --solver, as `sample` takes it; may be repeated.",
        SAMPLING,
        *GRID,
    )
    final: Ending = "zero"
    nfe: Budgets = "4-6,8,10"
    cfg_scale: list[float] | None = option(
        None, "A guidance scale; may be repeated. The default is 1, which turns it off.", GUIDANCE
    )
    cfg_interval: CfgInterval = None
    guidance: list[str] | None = option(
        None,
        "A guidance, as `sample` takes it; may be repeated. The default is cfg.",
        GUIDANCE,
    )
    cache: list[str] | None = option(
        None, "A cache, as `sample` takes it; may be repeated. By default there is none.", SAMPLING
    )
    metric: str = option(
        "fd-small",
        "The metric: fd-small, fd-emoji, fid, or another of sets in `fewstep list metrics`.",
        FIGURES,
    )
    reference: str | None = option(
        None,
        "Images or statistics to compare with, as `fewstep fid` takes them. By default those that"
        " come with fd-small and fd-emoji.",
        FIGURES,
    )
    floor: str | None = option(
        None,
        "Real images that are measured too, as the value that samples could reach. The default is"
        " the test set of the reference.",
        FIGURES,
    )
    n: int = option(
        2000, "Number of images for each figure.", FIGURES, "--n", "--images", within=COUNTS
    )
    blocks: int = option(
        1,
        "Number of figures for each setting; each is of --n images with seeds of its own. Of a"
        " --sweep at most so many.",
        FIGURES,
        within=REPEATS,
    )
    batch: BatchSampled = 32
    dtype: Dtype = "fp32"

    def sweep(self) -> "Sweep":
        """Returns the choices as they are stored; raises FewstepError for what is wrong."""
        from ..eval.experiments.fid_sweep import Entry, Sweep, check_choices
        from ..models.arguments import parse_interval

        given = {"models": [GREY_MODEL], **take_given(self, **PLURALS)}
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
        describe("The .json file of a sweep, in place of all options that decide a run.", FIGURES),
    ] = None,
    parts: Annotated[
        int | None,
        describe("The last part of a --sweep that is measured. By default all are.", FIGURES),
    ] = None,
    weights: Annotated[
        Path | None,
        describe(
            f"File with the weights of the network that the metric needs{WEIGHTS_FROM}", MACHINE
        ),
    ] = None,
    device: Annotated[
        str, describe("Either cpu or cuda; under cuda each process takes one GPU.", MACHINE)
    ] = "cpu",
    store: StoreFile = Path("results.jsonl"),
    outputs: FidOutputs,
    quiet: QuietTable = False,
) -> None:
    """Measures image quality (FD, FID and others) against network evaluations.

    Solvers, schedules, plans and diffusers' schedulers stand in one table. Finished figures are in
    the store: a command that was stopped continues when it is given again. `accelerate launch -m
    fewstep.cli bench fid-nfe ...` shares the work among processes.
    """
    from tqdm.auto import tqdm

    from ..eval.bench.rows import ResultStore
    from ..eval.bench.runner import run_cells
    from ..eval.bench.team import team
    from ..eval.experiments.fid_evaluator import make_evaluator
    from ..eval.experiments.fid_nfe import QualityBench
    from ..eval.experiments.fid_points import row_line
    from ..eval.experiments.fid_report import write_report
    from ..eval.experiments.fid_sweep import Sweep

    files = outputs.check([store])
    rows = ResultStore(store)
    rows.check()
    if sweep is None:
        refuse_typed(ctx, {"parts"}, "only a --sweep has parts")
        settings = options.sweep()
    else:
        names = {field.name for field in fields(options)} - {"blocks"}
        refuse_typed(ctx, names, "--sweep holds all choices")
        blocks = options.blocks if typed(ctx, "blocks") else None
        settings = Sweep.load(sweep).limit(parts, blocks)
    us = team(device)
    if us.size > 1:  # the first one keeps the features of the reference for all
        us.lead(lambda: make_evaluator(settings, us.device, weights) and None)
    evaluator = make_evaluator(settings, us.device, weights)
    bench = QualityBench(settings, evaluator, rows, us)
    for (row,) in run_cells(bench, progress=not quiet):
        if not quiet:
            tqdm.write(row_line(row), file=sys.stderr)
    if us.leads:
        remarks = [*bench.remarks, *rows.broken]
        typer.echo(write_report(files, bench.rows(), remarks, [rows.path]))


@gather_options
def fid_table(
    stores: Annotated[
        list[Path], typer.Argument(help="Files that `fewstep bench fid-nfe --store` has written.")
    ],
    outputs: FidOutputs,
) -> None:
    """Prints the table of all figures in stores of `fid-nfe`, if they can be compared."""
    from ..eval.bench.rows import ResultStore
    from ..eval.experiments.fid_report import write_report

    files = outputs.check(stores)
    read = [ResultStore.existing(path) for path in stores]
    rows = {row.hash: row for each in read for row in each.rows.values()}
    broken = [line for each in read for line in each.broken]
    typer.echo(write_report(files, list(rows.values()), broken, [each.path for each in read]))
