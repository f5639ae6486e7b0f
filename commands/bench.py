"""`fewstep bench overhead | accuracy | rivals | search-toy | inception | command | gpu`."""

from pathlib import Path
from typing import Annotated

import typer

from ..eval.options import (
    COUNTS,
    MACHINE,
    MOST,
    REPEATS,
    SAMPLING,
    SEEDS,
    STEPS,
    Batch,
    Budgets,
    Device,
    QuietTable,
    Seed,
    StoreFile,
    describe,
)
from .console import echo, echo_left_out


def overhead(
    steps: Annotated[int, describe("Number of steps of each run.", SAMPLING, within=STEPS)] = 20,
    repeats: Annotated[
        int,
        describe(
            "Number of runs of each solver; their median is printed.", SAMPLING, within=REPEATS
        ),
    ] = 40,
) -> None:
    """Measures the time and the tensor operations of solver steps beside diffusers' schedulers."""
    from ..eval.experiments.overhead import report

    typer.echo(report(steps, repeats))


def accuracy(
    model: Annotated[
        str,
        typer.Argument(help="The network, as `sample` takes it; or toy, whose solution is exact."),
    ] = "toy",
    solver: Annotated[
        list[str] | None,
        describe(
            "A solver, as name[:key=value,...]; may be repeated. By default all are measured.",
            SAMPLING,
        ),
    ] = None,
    nfe: Budgets = "4-6,8,10,12,15,20,25,50",
) -> None:
    """Measures how far each solver is from the exact solution at each number of evaluations."""
    from ..eval.experiments.accuracy import report
    from ..models.arguments import parse_ranges

    echo(report(model, solver or [], parse_ranges(nfe)))


def rivals(
    model: Annotated[list[str], typer.Argument(help="Networks, as `sample` takes them.")],
    nfe: Budgets = "5,8,10",
    noises: Annotated[
        int,
        describe("Number of images; their seeds count up from --seed.", SAMPLING, within=(3, MOST)),
    ] = 48,
    seed: Annotated[int, describe("Seed of the first image.", SAMPLING, within=SEEDS)] = 40_000,
    store: StoreFile = Path("rivals.jsonl"),
) -> None:
    """Measures the default of `sample` beside the best scheduler of diffusers with any settings.

    Finished distances are in the store and are not measured again.
    """
    from ..eval.experiments.distances import open_distances
    from ..eval.experiments.rival_bench import format_matches, measure_matches
    from ..models.arguments import parse_ranges

    rows, budgets = open_distances(store), parse_ranges(nfe)
    seeds = range(seed, seed + noises)
    matches = [match for name in model for match in measure_matches(name, budgets, seeds, rows)]
    echo(format_matches(matches))


def search_toy(
    nfe: Annotated[
        int, describe("Number of network evaluations of each schedule.", SAMPLING, within=(1, 100))
    ] = 5,
    candidates: Annotated[
        int, describe("Number of candidates that each search tries.", SAMPLING, within=COUNTS)
    ] = 1500,
    noises: Annotated[
        int, describe("Number of noises to train on.", SAMPLING, within=COUNTS)
    ] = 4096,
    seed: Seed = 0,
) -> None:
    """Compares named solvers with searched schedules on a distribution with known scores."""
    from ..eval.search.toy_bench import ToyBench, report

    echo(report(ToyBench(nfe=nfe, candidates=candidates, many=noises, seed=seed)))


def inception(
    weights: Annotated[
        Path | None,
        describe("The TorchScript file. The default comes with the extra `eval`.", MACHINE),
    ] = None,
    batch: Batch = 16,
    repeats: Annotated[
        int,
        describe(
            "Number of timed runs of each network; their median is printed.",
            MACHINE,
            within=REPEATS,
        ),
    ] = 5,
) -> None:
    """Compares fewstep's Inception features with their original in TorchScript: values and time."""
    from ..eval.experiments.inception import report

    typer.echo(report(weights, batch, repeats))


def command(
    repeats: Annotated[
        int, describe("Number of runs of each command.", MACHINE, within=REPEATS)
    ] = 3,
) -> None:
    """Measures the time and the peak memory of `sample` and `sample --help`, started anew."""
    from ..eval.experiments.command import report

    typer.echo(report(repeats))


def gpu(
    device: Device = "cuda",
    tiny: Annotated[
        bool,
        describe("Measure tiny sizes, to see in a minute that all of it runs.", MACHINE, "--tiny"),
    ] = False,
    store: StoreFile = Path("gpu.jsonl"),
    quiet: QuietTable = False,
) -> None:
    """Measures images per second, overhead, caches and memory on a GPU beside diffusers.

    Finished figures are in the store and are not measured again.
    """
    from ..eval.bench.runner import run_all
    from ..eval.experiments.gpu import GpuBench
    from ..eval.experiments.gpu_figures import table
    from ..eval.experiments.gpu_jobs import TINY, Scale
    from ..models.load import find_device

    where = find_device(device)
    sizes = "tiny sizes" if tiny else "full sizes"
    scale = TINY if tiny else Scale()
    bench = GpuBench(store, f"{where.type}, {sizes}", where, scale)
    run_all(bench, progress=not quiet)
    echo_left_out(bench.remarks)
    judged = where.type == "cuda" and not tiny
    if not judged:
        typer.echo(f"A run on {where.type}, {sizes}: it shows that the benchmark works.\n")
    echo(table((row.figure for row in bench.rows()), judged))
