"""`sample`: a grid of images."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..eval.options import IMAGES, describe
from .console import gather_options, refuse_typed, typed
from .images import ImageOptions
from .measurement import MeasurementOptions
from .sample_options import SampleOptions
from .sample_outputs import SampleOutputs

if TYPE_CHECKING:
    from ..models.denoiser import Network
    from ..samplers.run_record import Run

DECIDED = {"solver", "nfe", "steps", "grid_type", "times", "final", "schedule", "recipe", "cache"}
DECIDED |= {"cfg_scale", "cfg_interval", "guidance", "threshold"}  # by a plan
BESIDE_REPLAY = {"from_png", "out", "save_images", "zoom", "class_names", "preview", "json_"}
BESIDE_REPLAY |= {"quiet", "force"}


@gather_options
def sample(
    ctx: typer.Context,
    options: SampleOptions,
    images: ImageOptions,
    measurement: MeasurementOptions,
    from_png: Annotated[
        Path | None,
        describe("Repeat the run that is stored in this file, which `sample` has written.", IMAGES),
    ] = None,
    *,
    outputs: SampleOutputs,
) -> None:
    """Draws a grid of images and prints what it cost."""
    from ..samplers.run_record import check_pictures
    from ..samplers.sampler import Sampler

    files = (options.schedule, options.cache, options.plan)
    inputs = [from_png, *(Path(each) for each in files if each)]
    outputs.check(inputs)
    if from_png is not None:
        run, network = _read_again(ctx, from_png, options)
    else:
        if options.plan is not None:
            refuse_typed(ctx, DECIDED, "--plan is the whole run")
        network = options.load()
        _check_guidance(options)
        run = options.record(network, images, measurement)
    if run.measured is not None:
        inputs += map(Path, run.measured.files)
        outputs.check(inputs)
    outputs = outputs.settle(network)
    style = outputs.choose_style(run, network)
    if outputs.save_images is not None and outputs.out is not None:
        check_pictures(run, outputs.out, outputs.save_images, inputs)
    result = Sampler(network)(**run.arguments(), progress=not outputs.quiet)
    outputs.show(run, result, style, outputs.explain(run, options, from_png))


def _read_again(ctx: typer.Context, path: Path, options: SampleOptions) -> tuple["Run", "Network"]:
    """Returns the run that is stored in a picture, and its network.

    One that code makes is imported where it is named again beside the picture.
    """
    from ..models.load import load
    from ..models.user_code import names_code
    from ..samplers.run_record import read_run

    names, named = ctx.params.keys() - BESIDE_REPLAY, typed(ctx, "model")
    named &= names_code(options.model)
    refused = names - {"model"} if named else names
    refuse_typed(ctx, refused, "--from-png repeats the run in the picture as it was")
    run = read_run(path).name_code(options.model if named else None, path)
    if not named:
        run = run.bind(options.force)
    network = load(run.model, dtype=run.dtype, device=run.device, speed=run.speed)
    return run.bind(options.force) if named else run, network


def _check_guidance(options: SampleOptions) -> None:
    """Raises SettingError for guidance that is not, or disagrees with a scale that was typed."""
    from ..samplers.guidance import parse_guidance

    if options.guidance is not None:
        parse_guidance(options.guidance, options.cfg_scale)
