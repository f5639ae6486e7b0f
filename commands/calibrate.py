"""`fewstep calibrate` and `fewstep fit`: what a cache or a guidance has to know of a network."""

from pathlib import Path
from typing import Annotated

import typer

from ..eval.calibration_request import CalibrationRequest, LinearFitRequest
from ..eval.options import OUTPUT, Plot, QuietResult, describe
from .console import echo, echo_left_out, gather_options, refuse_typed


@gather_options
def calibrate(
    ctx: typer.Context, request: CalibrationRequest, plot: Plot = None, quiet: QuietResult = False
) -> None:
    """Finds the cheapest cache that keeps images within --quality of those without a cache.

    Finished runs are kept beside --out: a command that was stopped continues when it is given
    again.
    """
    if request.guidance is not None:
        names = {"quality", "cache", "predictor", "masks", "budget", "out", "plot"}
        names |= {"reference_nfe"}
        refuse_typed(ctx, names, "--guidance proposes a threshold and writes nothing")
        from ..eval.guidance_calibration import propose_threshold

        echo(propose_threshold(request, progress=not quiet))
        return
    refuse_typed(ctx, {"saving"}, "--saving belongs to --guidance adaptive")
    from ..eval.bench.report import ReportFiles
    from ..eval.bench.runner import run_all
    from ..eval.calibrate import Calibration, add_masks, make_bench

    ReportFiles(plot=plot).check([request.out])
    bench = make_bench(request)
    add_masks(bench, request, progress=not quiet)
    run_all(bench, progress=not quiet)
    calibration = Calibration.of(request, bench)
    echo_left_out(bench.remarks if not quiet else ())
    echo(calibration.table.lines() if not quiet else ())
    if plot is not None:
        calibration.table.draw(plot)
    echo(calibration.write(request.out)[1])
    typer.echo(calibration.command(request.out))


@gather_options
def fit_linear_ag(
    ctx: typer.Context,
    request: LinearFitRequest,
    out: Annotated[Path, describe("The .json file that the weights are written to.", OUTPUT)],
) -> None:
    """Fits the weights of the guidance linear-ag, which forecasts the unconditional branch."""
    if request.mask is not None:
        refuse_typed(ctx, {"every", "warmup", "tail"}, "--mask is the whole pattern")
    from ..eval.guidance_fit import fit_request
    from ..models.files import check_writable, write_bytes

    check_writable(out, ".json")
    weights = fit_request(request, progress=True)
    write_bytes(out, weights.model_dump_json(indent=1).encode())
    typer.echo(f"{out}: both branches at {weights.mask}, fitted to {request.images} images")
    for step, each in weights.steps.items():
        typer.echo(f"step {step}: {100 * each.error:.0f} % of c - u is not forecast")
    grid = "" if request.grid_type is None else f" --grid {request.grid_type}"
    typer.echo(
        f"sample {request.model} --solver {request.solver} --nfe {request.nfe}{grid}"
        f" --guidance linear-ag:file={out}"
    )
