"""`fewstep bench speed` and `fewstep bench scaling`: times on this machine."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from ..eval.options import (
    MACHINE,
    MOST,
    REPEATS,
    SAMPLING,
    Plot,
    QuietTable,
    StoreFile,
    describe,
    option,
)
from .console import echo, echo_left_out, gather_options


@dataclass
class SpeedOptions:
    """The choices of `fewstep bench speed`."""

    part: list[str] | None = option(
        None,
        "What is measured: steps, pictures, caches or commands; may be repeated. The default is"
        " all.",
        SAMPLING,
    )
    model: list[str] | None = option(
        None,
        "A network for whole pictures, as `sample` takes it; may be repeated. The default is all"
        " embedded ones.",
        MACHINE,
    )
    repeats: int = option(
        20,
        "Number of timed runs, which take turns with those compared; long ones take a quarter.",
        SAMPLING,
        within=REPEATS,
    )
    noises: int = option(
        48, "Number of images to measure distances on.", SAMPLING, within=(3, MOST)
    )


@gather_options
def speed(
    options: SpeedOptions, store: StoreFile = Path("speed.jsonl"), quiet: QuietTable = False
) -> None:
    """Times solver steps, whole pictures, caches and `sample` beside other libraries.

    Runs that are compared take turns. Finished comparisons are in the store and are not run again.
    """
    from ..eval.bench.runner import run_all
    from ..eval.experiments.speed import open_bench, write_table

    bench = open_bench(store, options.part, options.model, options.repeats, options.noises)
    run_all(bench, progress=not quiet)
    echo_left_out(bench.remarks)
    echo(write_table(bench.rows()))


def scaling(
    axis: Annotated[
        list[str] | None,
        describe(
            "What grows: batch, state, steps or processes; may be repeated. The default is all.",
            SAMPLING,
        ),
    ] = None,
    repeats: Annotated[
        int, describe("Number of timed runs; sizes take turns.", SAMPLING, within=REPEATS)
    ] = 5,
    store: StoreFile = Path("scaling.jsonl"),
    plot: Plot = None,
    quiet: QuietTable = False,
) -> None:
    """Measures how time and memory grow with images, state, steps and processes.

    Axes that are finished are in the store and are not run again.
    """
    from ..eval.bench.report import ReportFiles
    from ..eval.bench.runner import run_all
    from ..eval.experiments.scaling import open_bench
    from ..eval.experiments.scaling_table import draw_curves, write_table

    ReportFiles(plot=plot).check([store])
    bench = open_bench(store, axis, repeats)
    run_all(bench, progress=not quiet)
    if plot is not None:
        draw_curves(bench.rows(), plot)
    echo(write_table(bench.rows()))
