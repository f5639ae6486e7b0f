"""`fewstep bench guidance` and `fewstep bench cache`: error against cost, of what skips work."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .console import echo, echo_left_out
from .options import (
    MOST,
    MOST_REPEATS,
    Device,
    GridOfAll,
    Noises,
    Plot,
    QuietTable,
    ReferenceNfe,
    StoreFile,
    TableOfBest,
)

if TYPE_CHECKING:
    from ..eval.bench.rows import ResultStore

EMBEDDED = ("fashion-dit", "fashion-unet")


def guidance_front(
    model: Annotated[
        list[str] | None, typer.Option(help="As in sample; repeat it. Default: both embedded ones.")
    ] = None,
    cfg_scale: Annotated[
        list[float] | None, typer.Option(help="Guidance scale; repeat it. Default: 2 and 3.")
    ] = None,
    guidance: Annotated[
        list[str] | None,
        typer.Option(
            help="As in sample without a scale; linear-ag:every=2,warmup=1 is fitted. Repeat it."
            " Default: many. cfg, to compare with, is always measured."
        ),
    ] = None,
    steps: Annotated[str, typer.Option(help="Of all policies, as 6-14,16.")] = "6,8-12,14,16,20",
    rows: Annotated[str, typer.Option(help="Network rows per image to be shown.")] = "12-40",
    solver: Annotated[str, typer.Option(help="Of all runs, as in sample.")] = "dpmpp-2m",
    grid_type: Annotated[str | None, typer.Option(help="The same.")] = None,
    images: Noises = 48,
    reference_nfe: ReferenceNfe = 200,
    fit_images: Annotated[
        int, typer.Option(min=1, max=MOST, help="That linear-ag is fitted to.")
    ] = 256,
    device: Device = "cpu",
    store: StoreFile = Path("guidance.jsonl"),
    table: TableOfBest = "md",
    plot: Plot = None,
    quiet: QuietTable = False,
) -> None:
    """Error to converged guidance against network rows, of policies that skip evaluations.

    Finished figures are in the store and are not measured again.
    """
    from ..eval.bench.runner import run_cells
    from ..eval.experiments.guidance import (
        POLICIES,
        GuidanceBench,
        GuidanceFront,
        GuidanceTable,
    )
    from ..samplers.labels import parse_ranges

    kept = _checked(store, table, plot)
    budgets = parse_ranges(rows)
    front = GuidanceFront(
        models=tuple(model or EMBEDDED),
        scales=tuple(cfg_scale or (2.0, 3.0)),
        policies=tuple(dict.fromkeys(["cfg", *guidance])) if guidance else POLICIES,
        steps=tuple(parse_ranges(steps)),
        rows=(min(budgets), max(budgets)),
        solver=solver,
        grid=grid_type,
        images=images,
        reference_nfe=reference_nfe,
        fit_images=fit_images,
    )
    bench = GuidanceBench(front, kept, device)
    for _ in run_cells(bench, progress=not quiet):
        pass
    echo_left_out(bench.remarks)
    echo(GuidanceTable().lines(bench.points(), table))
    if plot is not None:
        GuidanceTable().draw(bench.points(), plot)


def cache_front(
    model: Annotated[
        list[str] | None, typer.Argument(help="As in sample. Default: both embedded ones.")
    ] = None,
    cache: Annotated[
        list[str] | None,
        typer.Option(
            help="As in sample, or diffusers-taylorseer:..., diffusers-first-block:...,"
            " cache-dit:...; repeat it. Default: many."
        ),
    ] = None,
    solver: Annotated[
        list[str] | None,
        typer.Option(help="Of cached runs; repeat it. Default: dpmpp-2m, unipc-2, ddim."),
    ] = None,
    steps: Annotated[str, typer.Option(help="Of cached runs, as 20,30.")] = "20,30,40,50",
    honest: Annotated[
        list[str] | None,
        typer.Option(help="Solver of uncached runs to compare with; repeat it. Default: four."),
    ] = None,
    budgets: Annotated[
        str, typer.Option(help="Steps of uncached runs.")
    ] = "6,8,10-14,16,18,20,24,28,32,40,50",
    grid_type: GridOfAll = None,
    cfg_scale: Annotated[float, typer.Option(help="Of all runs; 1 is off.")] = 1.0,
    images: Noises = 48,
    reference_nfe: ReferenceNfe = 200,
    time: Annotated[
        int,
        typer.Option(
            min=0,
            max=MOST_REPEATS,
            help="Time the caches too, with so many runs of each; 0: do not.",
        ),
    ] = 0,
    device: Device = "cpu",
    store: StoreFile = Path("cache.jsonl"),
    table: TableOfBest = "md",
    plot: Plot = None,
    quiet: QuietTable = False,
) -> None:
    """Error against effective evaluations of caches, beside fewer steps without a cache.

    Finished figures are in the store and are not measured again.
    """
    from ..eval.bench.runner import run_cells
    from ..eval.experiments.cache import BASELINES, CacheBench, CacheFront, CacheTimes
    from ..eval.experiments.cache_table import CacheTable
    from ..samplers.labels import parse_ranges

    kept = _checked(store, table, plot)
    front = CacheFront(
        models=tuple(model or EMBEDDED),
        policies=tuple(cache or ()),
        solvers=tuple(solver or ("dpmpp-2m", "unipc-2", "ddim")),
        steps=tuple(parse_ranges(steps)),
        baselines=tuple(honest or BASELINES),
        budgets=tuple(parse_ranges(budgets)),
        grid=grid_type,
        cfg_scale=cfg_scale,
        images=images,
        reference_nfe=reference_nfe,
    )
    bench = CacheBench(front, kept, device)
    for _ in run_cells(bench, progress=not quiet):
        pass
    for _ in run_cells(CacheTimes(bench, time), progress=not quiet) if time else ():
        pass
    echo_left_out(bench.remarks)
    echo(CacheTable().lines(bench.points(), table))
    if plot is not None:
        CacheTable().draw(bench.points(), plot)


def _checked(store: Path, table: str, plot: Path | None) -> "ResultStore":
    """The store of figures, if all that is asked for can be written."""
    from ..eval.bench.report import ReportFiles
    from ..eval.bench.rows import ResultStore

    ReportFiles(table, plot).check([store])
    kept = ResultStore(store)
    kept.check()
    return kept
