"""`fewstep bench guidance` and `fewstep bench cache`: error against cost, of what skips work."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..eval.options import (
    COUNTS,
    FIGURES,
    GUIDANCE,
    MACHINE,
    MOST_REPEATS,
    OUTPUT,
    SAMPLING,
    CfgScale,
    Device,
    GridOfAll,
    Noises,
    Plot,
    QuietTable,
    ReferenceNfe,
    StoreFile,
    TableOfBest,
    describe,
    option,
)
from .console import echo, echo_left_out, gather_options, take_given

if TYPE_CHECKING:
    from ..eval.bench.cell import Experiment
    from ..eval.bench.front import FrontBench
    from ..eval.bench.front_table import FrontTable
    from ..eval.bench.rows import ResultStore
    from ..eval.experiments.cache_front import CacheFront
    from ..eval.experiments.guidance import GuidanceFront


@dataclass
class GuidanceOptions:
    """The runs of `fewstep bench guidance`."""

    model: list[str] | None = option(
        None,
        "A network, as `sample` takes it; may be repeated. By default fashion-dit and fashion-unet"
        " are measured.",
        MACHINE,
    )
    cfg_scale: list[float] | None = option(
        None, "A guidance scale; may be repeated. The defaults are 2 and 3.", GUIDANCE
    )
    guidance: list[str] | None = option(
        None,
        "A guidance, as `sample` takes it but without a scale; may be repeated. By default many are"
        " tried. cfg is always measured, to compare with. linear-ag takes its pattern, as in"
        " linear-ag:every=2,warmup=1, and is fitted here.",
        GUIDANCE,
    )
    steps: str = option(
        "6,8-12,14,16,20", "Numbers of steps of the runs, such as 6-14,16.", SAMPLING
    )
    rows: str = option(
        "12-40",
        "The least and the largest number of network rows per image to show, such as 12-40.",
        OUTPUT,
    )
    solver: str = option("dpmpp-2m", "The solver of all runs, as `sample` takes it.", SAMPLING)
    grid_type: GridOfAll = None
    images: Noises = 48
    reference_nfe: ReferenceNfe = 200
    fit_images: int = option(
        256, "Number of images that linear-ag is fitted to.", GUIDANCE, within=COUNTS
    )

    def front(self) -> "GuidanceFront":
        """Returns what is measured; raises FewstepError for what cannot be."""
        from ..eval.experiments.guidance import BASELINE, GuidanceFront

        names = {"model": "models", "cfg_scale": "scales", "grid_type": "grid"}
        given = take_given(self, ("steps", "rows"), guidance="policies", **names)
        given["rows"] = min(given["rows"]), max(given["rows"])
        if "policies" in given:
            given["policies"] = tuple(dict.fromkeys([BASELINE, *given["policies"]]))
        return GuidanceFront(**given)


@dataclass
class CacheOptions:
    """The runs of `fewstep bench cache`."""

    model: Annotated[
        list[str] | None,
        typer.Argument(
            help="Networks, as `sample` takes them. By default fashion-dit and fashion-unet."
        ),
    ] = None
    cache: list[str] | None = option(
        None,
        "A cache, as `sample` takes it, or one of another library: diffusers-taylorseer:...,"
        " diffusers-first-block:... or cache-dit:...; may be repeated. By default several are"
        " tried.",
        SAMPLING,
    )
    schedule: list[str] | None = option(
        None,
        "A searched schedule, with a cache or without, as `sample` takes it; may be repeated. It is"
        " measured on the network that it was searched for. Those that come with fewstep are always"
        " measured.",
        SAMPLING,
    )
    solver: list[str] | None = option(
        None,
        "A solver of the runs with a cache, as `sample` takes it; may be repeated. The defaults are"
        " dpmpp-2m, unipc-2 and ddim.",
        SAMPLING,
    )
    steps: str = option("20,30,40,50", "Numbers of steps of runs with a cache.", SAMPLING)
    baseline: list[str] | None = option(
        None,
        "A solver of runs without a cache, the fair baseline: the same cost spent on plain steps;"
        " may be repeated. By default four are tried.",
        SAMPLING,
    )
    budgets: str = option(
        "6,8,10-14,16,18,20,24,28,32,40,50", "Numbers of steps of runs without a cache.", SAMPLING
    )
    grid_type: GridOfAll = None
    cfg_scale: CfgScale = 1.0
    images: Noises = 48
    blocks: int = option(
        1,
        "Number of blocks of --images images; shares are given with their range over the blocks.",
        SAMPLING,
        within=COUNTS,
    )
    reference_nfe: ReferenceNfe = 200

    def front(self) -> "CacheFront":
        """Returns what is measured; raises FewstepError for what cannot be."""
        from ..eval.experiments.cache_front import CacheFront

        names = {"model": "models", "solver": "solvers", "cache": "policies"}
        names |= {"baseline": "baselines", "grid_type": "grid", "schedule": "schedules"}
        return CacheFront(**take_given(self, ("steps", "budgets"), **names))


@dataclass
class FrontOutputs:
    """Where a front is measured, and how it is shown."""

    device: Device = "cpu"
    table: TableOfBest = "md"
    plot: Plot = None
    quiet: QuietTable = False

    def open_store(self, path: Path) -> "ResultStore":
        """Returns the store; raises FewstepError if something asked for cannot be written."""
        from ..eval.bench.report import ReportFiles
        from ..eval.bench.rows import ResultStore

        ReportFiles(self.table, self.plot).check([path])
        store = ResultStore(path)
        store.check()
        return store

    def run(
        self, bench: "FrontBench", table: "FrontTable", *further: "Experiment[Any, Any]"
    ) -> None:
        """Measures what is missing, prints the table of what is in the store, and draws it."""
        from ..eval.bench.runner import run_all

        for each in (bench, *further):
            run_all(each, progress=not self.quiet)
        echo_left_out(bench.remarks)
        echo(table.lines(bench.points(), self.table))
        if self.plot is not None:
            table.draw(bench.points(), self.plot)


@gather_options
def guidance_front(
    options: GuidanceOptions, *, store: StoreFile = Path("guidance.jsonl"), outputs: FrontOutputs
) -> None:
    """Measures error against network rows for guidance that skips evaluations.

    Finished figures are in the store and are not measured again.
    """
    from ..eval.experiments.guidance import GuidanceBench, GuidanceTable

    rows = outputs.open_store(store)
    outputs.run(GuidanceBench(options.front(), rows, outputs.device), GuidanceTable())


@gather_options
def cache_front(
    options: CacheOptions,
    *,
    time: Annotated[
        int,
        describe(
            "Number of timed runs of each cache; 0 measures no times.",
            FIGURES,
            within=(0, MOST_REPEATS),
        ),
    ] = 0,
    store: StoreFile = Path("cache.jsonl"),
    outputs: FrontOutputs,
) -> None:
    """Measures error against effective evaluations, with caches and with fewer plain steps.

    Finished figures are in the store and are not measured again.
    """
    from ..eval.experiments.cache import CacheBench
    from ..eval.experiments.cache_table import CacheTable
    from ..eval.experiments.cache_times import CacheTimes

    bench = CacheBench(options.front(), outputs.open_store(store), outputs.device)
    outputs.run(bench, CacheTable(), *([CacheTimes(bench, time)] if time else []))
