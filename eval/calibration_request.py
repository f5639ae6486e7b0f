"""Requests to calibrate a cache and to fit a guidance; their options are defined here once."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from .options import (
    COUNTS,
    GUIDANCE,
    MACHINE,
    MOST_STEPS,
    OUTPUT,
    SAMPLING,
    STEPS,
    CfgScale,
    Device,
    GridType,
    Model,
    ReferenceNfe,
    SolverName,
    describe,
    option,
)

QUALITY = "Quality and what is tried"


@dataclass(frozen=True, kw_only=True)
class CalibrationRequest:
    """The calibration of a cache, or of adaptive guidance; see `fewstep calibrate --help`."""

    network: Model
    solver: SolverName = "unipc-2"
    nfe: int = option(
        30, "Number of network evaluations of the run without a cache.", SAMPLING, within=STEPS
    )
    grid_type: GridType = None
    images: int = option(
        48,
        "Number of images to compare on; all classes take turns. The best caches are compared again"
        " on as many new images, up to four times, and the figures of the result are of new images"
        " too.",
        SAMPLING,
        within=(2, 100_000),  # six blocks lie below the noises that are fitted to
    )
    quality: str = option(
        "rel-l2=0.05",
        "How near the images must stay to those without a cache: rel-l2=0.05, psnr=30 or"
        " lpips=0.05.",
        QUALITY,
    )
    cache: list[str] | None = option(
        None,
        "A cache to try, as name[:key=value,...]; may be repeated. By default all that fit the"
        " network are tried.",
        QUALITY,
    )
    predictor: list[str] | None = option(
        None,
        "A predictor to try with every cache, as name[:key=value,...]; may be repeated. all is"
        " every predictor of `fewstep list predictors`, and weights that are fitted to the run. By"
        " default each cache has its own.",
        QUALITY,
    )
    masks: str = option(
        "auto",
        "Strategies of `fewstep search --full`, separated by commas, which search the evaluations"
        " that the cache fixed-mask runs in full; none searches none. auto is"
        " mask-even,mask-dp,mask-climb where fixed-mask is tried, and none otherwise.",
        QUALITY,
    )
    budget: str = option(
        "candidates=120",
        "Budget of the search of --masks, as `fewstep search` takes it; all numbers of full"
        " evaluations share it.",
        QUALITY,
    )
    reference_nfe: ReferenceNfe = 200
    saving: float = option(
        0.25, "Share of the network rows to save with --guidance, from 0 to 1.", GUIDANCE
    )
    guidance: str | None = option(
        None,
        "Instead of a cache, find the threshold of adaptive guidance that saves the share --saving;"
        " write adaptive[:key=value,...].",
        GUIDANCE,
    )
    cfg_scale: CfgScale = 1.0
    out: Path = option(
        Path("cache.json"),
        "The .json file that the cache is written to, for `sample --cache`.",
        OUTPUT,
    )
    device: Device = "cpu"


@dataclass(frozen=True, kw_only=True)
class LinearFitRequest:
    """The fit of `linear-ag`'s weights; see `fewstep fit linear-ag --help`."""

    model: Model
    cfg_scale: Annotated[float, describe("Guidance scale to fit the weights for.", SAMPLING)]
    nfe: int = option(
        10, "Number of network evaluations to fit the weights for.", SAMPLING, within=STEPS
    )
    solver: SolverName = "dpmpp-2m"
    grid_type: GridType = None
    every: int = option(
        2,
        "Evaluate both branches at every N-th step after the warm-up; 0 is at none.",
        GUIDANCE,
        within=(0, MOST_STEPS),
    )
    warmup: int = option(
        4, "Number of first steps that evaluate both branches.", GUIDANCE, within=(0, MOST_STEPS)
    )
    tail: int = option(
        0,
        "Number of last steps that evaluate the conditional branch alone.",
        GUIDANCE,
        within=(0, MOST_STEPS),
    )
    mask: str | None = option(
        None,
        "One digit for each step: 1 evaluates both branches, 0 the conditional one alone. It takes"
        " the place of --every, --warmup and --tail.",
        GUIDANCE,
    )
    terms: str = option(
        "2,2",
        "Two numbers: how many past differences of the branches, and how many past changes of the"
        " conditional output, a forecast uses.",
        GUIDANCE,
    )
    ridge: float = option(1e-06, "Relative ridge penalty of the least squares.", GUIDANCE)
    images: int = option(
        256,
        "Number of images to fit the weights to; all are held in memory at once.",
        MACHINE,
        within=COUNTS,
    )
    batch: int = option(
        32, "Number of network rows that are computed at once.", MACHINE, within=COUNTS
    )
    device: Device = "cpu"
