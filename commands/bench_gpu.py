"""`fewstep bench gpu`: runs beside their networks and beside diffusers, on one device."""

from pathlib import Path
from typing import Annotated

import typer

from ..eval.options import Device, QuietTable, StoreFile, describe
from .console import echo, echo_left_out


def gpu(
    device: Device = "cuda",
    tiny: Annotated[
        bool, describe("Take tiny sizes, to see in a minute that it runs.", "", "--tiny")
    ] = False,
    store: StoreFile = Path("gpu.jsonl"),
    quiet: QuietTable = False,
) -> None:
    """Images per second, overhead, caches and memory on a GPU, beside diffusers.

    Finished figures are in the store and are not measured again.
    """
    from ..eval.bench.runner import run_cells
    from ..eval.experiments.gpu import GpuBench
    from ..eval.experiments.gpu_figures import table
    from ..eval.experiments.gpu_jobs import TINY, Scale
    from ..models.load import find_device

    where = find_device(device)
    sizes = "tiny sizes" if tiny else "full sizes"
    scale = TINY if tiny else Scale()
    bench = GpuBench(store, f"{where.type}, {sizes}", where, scale)
    for _ in run_cells(bench, progress=not quiet):
        pass
    echo_left_out(bench.remarks)
    judged = where.type == "cuda" and not tiny
    if not judged:
        typer.echo(f"A run on {where.type}, {sizes}: it shows that the benchmark works.\n")
    echo(table((row.figure for row in bench.rows()), judged))
