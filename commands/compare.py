"""`fewstep compare`: one network on the same seeds under several settings."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..eval.options import (
    IMAGES,
    MACHINE,
    OUTPUT,
    REPEATS,
    SAMPLING,
    BatchSampled,
    Device,
    Dtype,
    Json,
    Model,
    ReferenceNfe,
    describe,
    option,
)
from ..models.errors import SettingError
from .console import gather_options

if TYPE_CHECKING:
    from ..models.denoiser import Network


@dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """The settings and the images as they are typed."""

    setting: list[str] | None = option(
        None,
        "A setting to draw with, as 'solver=unipc-2 nfe=5 cfg-scale=2'; may be repeated. The keys"
        " are solver, nfe, steps, grid, final, recipe, cache, guidance, cfg-scale, schedule and"
        " plan, with the values that `sample` takes.",
        SAMPLING,
    )
    seeds: str = option("0-15", "One seed for each image, such as 0-63,100.", IMAGES)
    classes: str | None = option(
        None,
        "Class labels, such as 0-9, which take turns. By default all classes take turns.",
        IMAGES,
    )
    reference_nfe: ReferenceNfe = 200
    metric: list[str] | None = option(
        None,
        "A further metric of pairs of images, such as psnr; may be repeated. See `fewstep list"
        " metrics`.",
        SAMPLING,
    )
    repeats: int = option(
        3, "Number of timed runs of each setting; settings take turns.", MACHINE, within=REPEATS
    )
    batch: BatchSampled = 32
    dtype: Dtype = "fp32"
    device: Device = "cpu"

    def label(self, network: "Network", seeds: list[int]) -> list[int] | None:
        """Returns the class labels of the seeds; None for the default."""
        from ..samplers.conditions import parse_classes

        if self.classes is None:
            return None
        pool = parse_classes(self.classes, network)
        if pool is None:
            raise SettingError(
                "a comparison draws with classes; give --classes numbers, or leave it out"
            )
        return [pool[i % len(pool)] for i in range(len(seeds))]


@gather_options
def compare(
    network: Model,
    options: CompareOptions,
    out: Annotated[
        Path | None,
        describe(
            "The .png file to draw: a row of images for each setting. For a network that samples"
            " points of two numbers it may also be an .svg or .pdf file. By default nothing is"
            " drawn.",
            OUTPUT,
        ),
    ] = None,
    json_: Json = False,
) -> None:
    """Draws the same seeds under several settings and compares distances, costs and times.

    The distance of a setting is its root mean square difference from the converged run of the same
    guidance scale. No real images are needed.
    """
    from ..eval.bench.plot import check_plot
    from ..eval.compare import CONVERGED
    from ..eval.compare import compare as compare_settings
    from ..eval.comparison_settings import parse_setting
    from ..eval.metrics import pair_metric
    from ..models.arguments import parse_ranges
    from ..models.files import check_writable
    from ..models.load import load

    if out is not None:
        check_writable(out, ".png", ".svg", ".pdf")
    settings = {each: parse_setting(each) for each in options.setting or ()}
    metrics: dict[str, Any] = {name: pair_metric(name).function for name in options.metric or ()}
    seeds, loaded = (
        parse_ranges(options.seeds),
        load(network, dtype=options.dtype, device=options.device),
    )
    if out is not None and loaded.shape == (2,):
        check_plot(out)
    comparison = compare_settings(
        loaded,
        settings,
        seeds=seeds,
        class_labels=options.label(loaded, seeds),
        metrics=metrics,
        converged={**CONVERGED, "nfe": options.reference_nfe},
        repeats=options.repeats,
        batch=options.batch,
    )
    if out is not None:
        comparison.save(out)
    typer.echo(comparison.as_json() if json_ else comparison.table())
