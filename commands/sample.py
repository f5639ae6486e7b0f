"""`sample`: a grid of images."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..models.errors import SettingError
from .console import refuse_typed, typed
from .options import (
    DEFAULT_MODEL,
    MOST,
    BatchSampled,
    CfgInterval,
    CfgScale,
    ChannelsLast,
    Compile,
    CudaGraph,
    Device,
    Dtype,
    GridType,
    Quiet,
    Steps,
)

if TYPE_CHECKING:
    from ..models.denoiser import Network
    from ..solvers import Schedule

IMAGES = 64
BESIDE_REPLAY = {"from_png", "out", "save_images", "json_", "quiet"}


def sample(
    ctx: typer.Context,
    model: Annotated[
        str, typer.Argument(help="Embedded name, diffusers folder or hub id.")
    ] = DEFAULT_MODEL,
    solver: Annotated[
        str | None, typer.Option(help="Name[:key=value,...]; see `fewstep list solvers`.")
    ] = None,
    nfe: Annotated[
        int | None, typer.Option(help="Budget of network evaluations per image. Default 10.")
    ] = None,
    steps: Steps = None,
    grid_type: GridType = None,
    final: Annotated[
        str, typer.Option(help="How the run ends: zero, sigma_min or denoise.")
    ] = "zero",
    schedule: Annotated[
        str | None,
        typer.Option(help="A .json, or a name of `fewstep list schedules`; instead of a solver."),
    ] = None,
    force: Annotated[
        bool,
        typer.Option("--force", help="Take a schedule or cache of another network or guidance."),
    ] = False,
    seed: Annotated[
        int | None, typer.Option(help="Seed of the first image; each next adds 1. Default 0.")
    ] = None,
    seeds: Annotated[
        str | None, typer.Option(help="One seed per image, as 0-63,100; instead of --seed.")
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(
            help="Class labels, as 0-9 or 3,5 or shirt; null for no class. Default: all in turn."
        ),
    ] = None,
    per_class: Annotated[int | None, typer.Option(help="Images of each class. Default 8.")] = None,
    cfg_scale: CfgScale = 1.0,
    cfg_interval: CfgInterval = None,
    guidance: Annotated[
        str | None, typer.Option(help="Name[:key=value,...]; see `fewstep list guidance`.")
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(help="Dynamic thresholding of x0 at this quantile, as 0.995.")
    ] = None,
    cache: Annotated[
        str | None,
        typer.Option(help="Name[:key=value,...], see `fewstep list caches`; or a .json."),
    ] = None,
    batch: BatchSampled = 32,
    dtype: Dtype = "fp32",
    device: Device = "cpu",
    compile_: Compile = False,
    channels_last: ChannelsLast = False,
    cuda_graph: CudaGraph = False,
    out: Annotated[Path, typer.Option(help="The grid picture.")] = Path("samples.png"),
    save_images: Annotated[
        Path | None, typer.Option(help="Folder for every image as a PNG of its own.")
    ] = None,
    from_png: Annotated[
        Path | None, typer.Option(help="Replay the run stored in a picture made by sample.")
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print the run as JSON.")] = False,
    quiet: Quiet = False,
) -> None:
    """Draws a grid of images and prints what it cost."""
    from ..models.files import check_apart, check_folder, check_writable
    from ..models.load import load
    from ..models.speed import Speed
    from ..samplers.cache_file import resolved
    from ..samplers.run_record import (
        Run,
        as_json,
        check_pictures,
        parse_interval,
        run_from_png,
        save_pictures,
    )
    from ..samplers.sampler import Sampler

    check_writable(out, ".png")
    read = [from_png, *(Path(each) for each in (schedule, cache) if each)]
    check_apart([out], read)
    if save_images is not None:
        check_folder(save_images)
    if from_png is not None:
        names = ctx.params.keys() - BESIDE_REPLAY
        refuse_typed(ctx, names, "--from-png repeats the run in the picture as it was")
        run = run_from_png(from_png)
        network = load(run.model, dtype=run.dtype, device=run.device, speed=run.speed)
    else:
        if force and schedule is None and cache is None:
            raise SettingError("--force is for --schedule and --cache; give one of them")
        speed = Speed(compile_, channels_last, cuda_graph)
        network = load(model, dtype=dtype, device=device, speed=speed)
        chosen, labels = _images(network, seed, seeds, classes, per_class)
        run = Run(
            model=model,
            solver=solver,
            grid=grid_type,
            nfe=nfe,
            steps=steps,
            final=final,
            schedule=None if schedule is None else _schedule(schedule, force),
            seeds=chosen,
            classes=labels,
            cfg_scale=cfg_scale,
            cfg_interval=None if cfg_interval is None else parse_interval(cfg_interval),
            guidance_spec=None if guidance is None else _guidance(ctx, guidance, cfg_scale),
            threshold=threshold,
            batch=batch,
            dtype=dtype,
            device=device,
            speed=None if speed == Speed() else speed,
            columns=per_class or 8 if classes and not seeds else None,
        ).settled()
        if cache is not None:
            run = run.model_copy(update={"cache": resolved(cache, network, run, force)})
    if save_images is not None:
        check_pictures(run, out, save_images, read)
    result = run.execute(Sampler(network), progress=not quiet)
    save_pictures(run, result, out, save_images)
    if json_:
        typer.echo(as_json(run, out, result))
    elif not quiet:
        typer.echo(f"{out}: {result.ledger}")


def _images(
    network: "Network",
    first: int | None,
    seeds: str | None,
    classes: str | None,
    per_class: int | None,
) -> tuple[tuple[int, ...], tuple[int, ...] | None]:
    """The seeds and the class labels, one each per image."""
    from ..samplers.labels import parse_classes, parse_ranges

    if per_class is not None and per_class < 1:
        raise SettingError(f"--per-class must be at least 1, not {per_class}")
    if first is not None and seeds is not None:
        raise SettingError("give --seed, the first one, or --seeds, all of them, not both")
    seed, listed = first or 0, None if seeds is None else parse_ranges(seeds)
    if classes is None and per_class is None:
        chosen = tuple(listed or range(seed, seed + IMAGES))
        n = network.num_classes
        return chosen, tuple(i % n for i in range(len(chosen))) if n else None
    if not network.num_classes:
        raise SettingError(f"{network.name} has no classes; drop --classes and --per-class")
    wanted = list(range(network.num_classes))
    if classes is not None:
        typed_labels = parse_classes(classes, network)
        if typed_labels is None:
            return tuple(listed or range(seed, seed + (per_class or 8))), None
        wanted = typed_labels
    _check_number(len(wanted) * (per_class or 8))
    if listed is not None and per_class is None:
        return tuple(listed), tuple(wanted[i % len(wanted)] for i in range(len(listed)))
    labels = tuple(label for label in wanted for _ in range(per_class or 8))
    if listed is not None and len(listed) != len(labels):
        raise SettingError(
            f"--seeds gives {len(listed)} images and --classes with --per-class {len(labels)};"
            " drop --per-class or make them equal"
        )
    return tuple(listed or range(seed, seed + len(labels))), labels


def _check_number(images: int) -> None:
    """Raises SettingError for more images than one command draws."""
    if images > MOST:
        raise SettingError(
            f"{images} images are too many for one command, which keeps them in memory: draw at"
            f" most {MOST:,} at once"
        )


def _schedule(name: str, force: bool) -> "Schedule":
    from ..samplers.plan import named_schedule

    schedule = named_schedule(name)
    return schedule.for_any() if force else schedule


def _guidance(ctx: typer.Context, spec: str, scale: float) -> str:
    """The spec, if it can be had and a guidance scale that was typed agrees with it."""
    from ..samplers.guidance import named_guidance

    named_guidance(spec, scale if typed(ctx, "cfg_scale") else None)
    return spec
