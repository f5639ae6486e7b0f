"""`fewstep search`: a better schedule for one network."""

import time
from pathlib import Path
from typing import Annotated

import typer

from .console import echo, refuse_typed
from .options import MOST, MOST_STEPS, CfgScale, Device, Dtype, Seed

OF_TOY = {
    *("network", "nfe", "nfe_range", "rows", "strategy", "objective", "budget", "seed", "out"),
    *("log", "noises", "scored", "free", "afs", "base", "grid_type", "predictor", "plot", "quiet"),
}
NOT_OF_ROWS = {"free", "afs", "base", "grid_type", "predictor"}


def search(
    ctx: typer.Context,
    network: Annotated[str, typer.Argument(help="As in sample; or toy, a closed-form law.")],
    nfe: Annotated[int | None, typer.Option(help="Network evaluations of the schedule.")] = None,
    nfe_range: Annotated[
        str | None, typer.Option(help="Several, as 3-10; they share the budget. Instead of --nfe.")
    ] = None,
    rows: Annotated[
        int | None,
        typer.Option(
            help="Network rows per image under --cfg-scale, to be shared among conditional and"
            " unconditional evaluations. Instead of --nfe."
        ),
    ] = None,
    strategy: Annotated[
        str,
        typer.Option(
            help="auto, or names with commas: grid dmn gits klub oss evolve fit grad grow refine."
        ),
    ] = "auto",
    objective: Annotated[
        str, typer.Option(help="terminal, log_mse, feature, fd, kid or fid.")
    ] = "terminal",
    budget: Annotated[
        str,
        typer.Option(
            help="A time, as 20m, for the whole command; or candidates=1500, or evals=2e6 in"
            " network rows."
        ),
    ] = "10m",
    cfg_scale: CfgScale = 1.0,
    seed: Seed = 0,
    out: Annotated[Path, typer.Option(help="The schedule, .json.")] = Path("schedule.json"),
    log: Annotated[
        Path | None,
        typer.Option(help="Folder of the log; several processes may share it. Default: by --out."),
    ] = None,
    noises: Annotated[
        str, typer.Option(help="Sizes of the blocks: train, validation, test.")
    ] = "1024,256,1024",
    scored: Annotated[
        int | None,
        typer.Option(
            help="Training noises that candidates are scored on. Default: 256; 128 of rows."
        ),
    ] = None,
    train_seeds: Annotated[str | None, typer.Option(help="Seeds, as 5000-5999.")] = None,
    validation_seeds: Annotated[str | None, typer.Option(help="The same.")] = None,
    test_seeds: Annotated[str | None, typer.Option(help="The same; looked at once.")] = None,
    classes: Annotated[
        str | None, typer.Option(help="Class labels, as 0-9. Default: all in turn.")
    ] = None,
    teacher: Annotated[str, typer.Option(help="Solver of the reference.")] = "unipc-3",
    teacher_nfe: Annotated[
        int, typer.Option(min=1, max=MOST_STEPS, help="Its network evaluations.")
    ] = 200,
    final: Annotated[
        str, typer.Option(help="How the reference ends: zero, sigma_min or denoise.")
    ] = "zero",
    free: Annotated[
        str | None,
        typer.Option(help="What may vary, with commas: times ends order pred mixed est relax ..."),
    ] = None,
    afs: Annotated[
        str, typer.Option(help="Analytic first steps to try: none, zero, mean or any.")
    ] = "none",
    base: Annotated[str, typer.Option(help="Solver of what may not vary.")] = "dpmpp-2m",
    grid_type: Annotated[str, typer.Option(help="Grid of times that may not vary.")] = "logsnr",
    predictor: Annotated[
        bool, typer.Option("--predictor", help="Screen children by a ranking predictor.")
    ] = False,
    reference: Annotated[
        str | None, typer.Option(help="Real images of fd, kid and fid, as in fid.")
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(help="Weights of Inception, if not found.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, max=MOST, help="Noises run at once.")] = 32,
    dtype: Dtype = "fp32",
    device: Device = "cpu",
    plot: Annotated[
        Path | None, typer.Option(help="Live picture, .svg. Default: in the log's folder.")
    ] = None,
    quiet: Annotated[bool, typer.Option(help="Print nothing but warnings and errors.")] = False,
) -> None:
    """Searches a better schedule for one network: a file for `sample --schedule`.

    Every evaluated candidate is in the log: a search that was stopped goes on from there when the
    same command is given again, and processes that share --log share the work.
    """
    started = time.perf_counter()  # before the imports that take seconds
    from ..eval.search.command import Request, searched, sizes_of, summary

    if network == "toy":
        names = ctx.params.keys() - OF_TOY
        refuse_typed(ctx, names, "toy brings its own network, teacher and seeds")
    if rows is not None:
        refuse_typed(ctx, NOT_OF_ROWS, "--rows frees all that guided schedules have")
    request = Request(
        model=network,
        sizes=sizes_of(nfe, nfe_range, rows),
        strategies=strategy,
        objective=objective,
        budget=budget,
        out=out,
        log=log,
        plot=plot,
        cfg_scale=cfg_scale,
        seed=seed,
        noises=noises,
        scored=scored,
        seeds=(train_seeds, validation_seeds, test_seeds),
        classes=classes,
        teacher=teacher,
        teacher_nfe=teacher_nfe,
        final=final,
        free=free,
        afs=afs,
        base=base,
        grid=grid_type,
        predictor=predictor,
        reference=reference,
        weights=weights,
        batch=batch,
        dtype=dtype,
        device=device,
        started=started,
    )
    for path, found in searched(request, progress=not quiet):
        if not quiet:
            echo(summary(path, found, request))
