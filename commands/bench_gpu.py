"""`fewstep bench gpu`: runs beside their networks and beside diffusers, on one device."""

from pathlib import Path
from typing import Annotated

import typer

from .console import echo, echo_left_out, one_line_errors
from .options import Device, QuietTable, StoreFile


def gpu(
    device: Device = "cuda",
    tiny: Annotated[
        bool, typer.Option("--tiny", help="Tiny sizes, eager: that it runs, in a minute.")
    ] = False,
    store: StoreFile = Path("gpu.jsonl"),
    quiet: QuietTable = False,
) -> None:
    """Images per second, overhead, caches and memory on a GPU, beside diffusers.

    Finished figures are in the store and are not measured again.
    """
    with one_line_errors():
        from ..eval.gpu_bench import TINY, Bench, Scale
        from ..eval.gpu_timing import Figures, table
        from ..models.load import checked_device

        where = checked_device(device)
        sizes = "tiny sizes" if tiny else "full sizes"
        bench = Bench(Figures(store, f"{where.type}, {sizes}"), where, TINY if tiny else Scale())
        bench.run(progress=not quiet)
        echo_left_out(bench.remarks)
        judged = where.type == "cuda" and not tiny
        if not judged:
            typer.echo(f"A run on {where.type}, {sizes}: it shows that the benchmark works.\n")
        echo(table(bench.rows(), judged))
