"""`fewstep calibrate` and `fewstep fit`: what a cache or a guidance has to know of a network."""

from pathlib import Path
from typing import Annotated

import typer

from .console import (
    echo,
    echo_left_out,
    refuse_typed,
    say_progress,
)
from .options import MOST, MOST_STEPS, Device, Model


def calibrate(
    ctx: typer.Context,
    network: Annotated[str, typer.Argument(help="As in sample.")],
    solver: Annotated[str, typer.Option(help="As in sample.")] = "unipc-2",
    nfe: Annotated[
        int, typer.Option(min=1, max=MOST_STEPS, help="Network evaluations of the uncached run.")
    ] = 30,
    quality: Annotated[
        str, typer.Option(help="Beside the uncached images: rel-l2=0.05, psnr=30 or lpips=0.05.")
    ] = "rel-l2=0.05",
    cache: Annotated[
        list[str] | None,
        typer.Option(help="Name, or name:key=value,...; repeat it. Default: all that run on it."),
    ] = None,
    guidance: Annotated[
        str | None,
        typer.Option(help="adaptive[:key=value,...]: its threshold for --saving, and no cache."),
    ] = None,
    saving: Annotated[float, typer.Option(help="Share of network rows to be saved.")] = 0.25,
    grid_type: Annotated[str | None, typer.Option(help="As in sample.")] = None,
    cfg_scale: Annotated[float, typer.Option(help="As in sample; 1 is off.")] = 1.0,
    images: Annotated[
        int, typer.Option(min=2, max=MOST, help="Noises, of all classes in turn.")
    ] = 48,
    out: Annotated[Path, typer.Option(help="The file for sample --cache, .json.")] = Path(
        "cache.json"
    ),
    plot: Annotated[Path | None, typer.Option(help="The front as .png, .svg or .pdf.")] = None,
    device: Device = "cpu",
    quiet: Annotated[bool, typer.Option(help="Print nothing but the result.")] = False,
) -> None:
    """Finds the cheapest cache that keeps the images of one run as near as asked.

    Finished runs are kept beside --out: a stopped command goes on when it is typed again.
    """
    from ..eval.bench.report import ReportFiles
    from ..eval.bench.runner import run_cells
    from ..eval.calibrate import Found, Quality, Question, Saving
    from ..models.files import check_writable

    if guidance is not None:
        names = {"quality", "cache", "out", "plot"}
        refuse_typed(ctx, names, "--guidance proposes a threshold and writes nothing")
        wanted = Saving(
            model=network,
            solver=solver,
            nfe=nfe,
            guidance=guidance,
            saving=saving,
            cfg_scale=cfg_scale,
            grid=grid_type,
            images=images,
            device=device,
        )
        echo(wanted.lines(progress=not quiet))
        return
    refuse_typed(ctx, {"saving"}, "--saving belongs to --guidance adaptive")
    check_writable(out, ".json")
    ReportFiles(plot=plot).check([out])
    question = Question(
        model=network,
        solver=solver,
        nfe=nfe,
        quality=Quality.parsed(quality),
        caches=tuple(cache or ()),
        grid=grid_type,
        cfg_scale=cfg_scale,
        images=images,
        device=device,
    )
    bench = question.bench(out)
    for _ in say_progress(run_cells(bench, progress=not quiet), "runs", quiet):
        pass
    found = Found.of(question, bench)
    echo_left_out(bench.remarks if not quiet else ())
    echo(found.lines() if not quiet else ())
    if plot is not None:
        found.draw(plot)
    typer.echo(found.written(out))
    typer.echo(found.command(out))


def fit_linear_ag(
    ctx: typer.Context,
    model: Model,
    cfg_scale: Annotated[float, typer.Option(help="Guidance scale that it is for.")],
    out: Annotated[Path, typer.Option(help="The file of weights, .json.")],
    nfe: Annotated[
        int, typer.Option(min=1, max=MOST_STEPS, help="Network evaluations that it is for.")
    ] = 10,
    solver: Annotated[str, typer.Option(help="Solver that it is for.")] = "dpmpp-2m",
    grid_type: Annotated[str | None, typer.Option(help="Grid that it is for.")] = None,
    every: Annotated[
        int,
        typer.Option(
            min=0,
            max=MOST_STEPS,
            help="Every so many-th step evaluates both branches; 0: no further one.",
        ),
    ] = 2,
    warmup: Annotated[
        int, typer.Option(min=0, max=MOST_STEPS, help="First steps that evaluate both.")
    ] = 4,
    tail: Annotated[int, typer.Option(min=0, max=MOST_STEPS, help="Last steps that do not.")] = 0,
    mask: Annotated[
        str | None, typer.Option(help="One digit per step, 1 for both, instead of those three.")
    ] = None,
    terms: Annotated[
        str, typer.Option(help="Past differences, and past changes of the conditional output.")
    ] = "2,2",
    ridge: Annotated[float, typer.Option(help="Of the least squares, relative.")] = 1e-6,
    images: Annotated[
        int, typer.Option(min=1, max=MOST, help="That it is fitted to, in memory at once.")
    ] = 256,
    batch: Annotated[int, typer.Option(min=1, max=MOST, help="Network rows at once.")] = 32,
    device: Device = "cpu",
) -> None:
    """Fits the weights of past outputs that stand in for the unconditional branch."""
    from ..eval.guidance_fit import Fit, fitted, pattern_of, terms_of
    from ..eval.guidance_runs import Images
    from ..models.files import check_writable, write_bytes
    from ..models.load import load

    if mask is not None:
        refuse_typed(ctx, {"every", "warmup", "tail"}, "--mask is the whole pattern")
    check_writable(out, ".json")
    what = Fit(
        solver=solver,
        nfe=nfe,
        scale=cfg_scale,
        grid=grid_type,
        pattern=pattern_of(warmup, every, tail, mask),
        terms=terms_of(terms),
        ridge=ridge,
    )
    network = load(model, device=device)
    found = fitted(network, what, Images(images, batch), progress=True)
    write_bytes(out, found.model_dump_json(indent=1).encode())
    typer.echo(f"{out}: both branches at {found.mask}, fitted to {images} images")
    for step, weights in found.steps.items():
        typer.echo(f"step {step}: {100 * weights.error:.0f} % of c - u is not forecast")
    grid = "" if grid_type is None else f" --grid-type {grid_type}"
    typer.echo(
        f"sample {model} --solver {solver} --nfe {nfe}{grid} --guidance linear-ag:file={out}"
    )
