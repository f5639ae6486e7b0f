"""Requests to search, calibrate and evaluate: each option is defined here once.

The command line reads names, types, texts and defaults from these fields, the functions of Python
take the same names. Nothing here needs torch, so that `--help` is fast.
"""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer

from .options import (
    COUNTS,
    GRID,
    GUIDANCE,
    MACHINE,
    OUTPUT,
    SAMPLING,
    SEEDS,
    STEPS,
    Batch,
    CfgScale,
    Device,
    Dtype,
    GridType,
    Model,
    ReferenceNfe,
    SolverName,
    option,
)

SIZE, METHOD, SPACE = "Size of the schedule", "Search", "What may vary"
DATA, REFERENCE = "Noises and classes", "Reference solution"
QUALITY, FIGURES = "What is asked for", "Figures"


@dataclass(frozen=True, kw_only=True)
class SearchNoises:
    """The noises and classes of a search, the seed of its chance, and what it may try beside."""

    train_seeds: str | None = option(None, "Seeds of the training noises, such as 5000-5999.", DATA)
    validation_seeds: str | None = option(
        None, "Seeds of the validation noises, such as 6000-6255.", DATA
    )
    test_seeds: str | None = option(
        None, "Seeds of the test noises, such as 7000-7999. They are used once, at the end.", DATA
    )
    classes: str | None = option(
        None, "Class labels, such as 0-9. By default all classes take turns.", DATA
    )
    seed: int = option(0, "Random seed of the search.", METHOD, within=SEEDS)
    beyond: str | None = option(
        None,
        "What is tried beyond linear tables, separated by commas: columns (functions of"
        " predictions), correction (a small network that is trained). By default nothing.",
        METHOD,
    )


@dataclass(frozen=True, kw_only=True)
class SearchRequest(SearchNoises):
    """A search of a better schedule; see `fewstep search --help`.

    Give one of nfe, nfe_range, rows and full.

    started: when the command began, as `time.perf_counter` tells it; a budget of time counts from
             there.
    """

    network: Annotated[
        str,
        typer.Argument(
            help="The network, as `sample` takes it; or `toy`, a distribution whose exact scores"
            " are known."
        ),
    ]
    nfe: int | None = option(None, "Number of network evaluations of the schedule.", SIZE)
    nfe_range: str | None = option(
        None, "Several numbers, such as 3-10, in place of --nfe; they share the budget.", SIZE
    )
    rows: int | None = option(
        None,
        "Network rows per image under --cfg-scale, in place of --nfe. The search divides them"
        " between conditional and unconditional evaluations.",
        SIZE,
    )
    full: int | None = option(
        None,
        "Number of evaluations that run in full, in place of --nfe. The search finds which ones of"
        " --steps they are; a cache forecasts the others.",
        SIZE,
        within=STEPS,
    )
    steps: str | None = option(
        None,
        "With --full: number of steps of the run. Several, such as 20,30, share the budget. The"
        " default is 30.",
        SIZE,
    )
    predictor: str = option(
        "auto",
        "With --full: how other evaluations are forecast, as name:key=value,...; several are"
        " separated by semicolons. auto tries the usual ones.",
        METHOD,
    )
    strategy: str = option(
        "auto",
        "Either auto, or names of strategies separated by commas, such as grid,fit,refine.",
        METHOD,
    )
    objective: str = option(
        "terminal",
        "What is minimized: terminal (the distance to the reference's ends, also called distance),"
        " log_mse, feature, fd, kid or fid; with --full also drift, the distance to the run without"
        " a cache.",
        METHOD,
    )
    features: str = option(
        "auto",
        "The extractor with which images are compared with the reference's when the last step is"
        " chosen: small, emoji, inception, dinov2, clip or none. auto is one of the first two, if"
        " it fits.",
        METHOD,
    )
    budget: str = option(
        "10m",
        "A time for the whole command, such as 20m; or a number of candidates, as candidates=1500;"
        " or a number of network rows, as evals=2e6.",
        METHOD,
    )
    cfg_scale: CfgScale = 1.0
    out: Path = option(
        Path("schedule.json"), "The .json file that the schedule is written to.", OUTPUT
    )
    log: Path | None = option(
        None,
        "Folder of the log, which several processes may share. By default it lies beside the"
        " schedule.",
        OUTPUT,
    )
    noises: str | None = option(
        None,
        "Numbers of noises to train on, to validate with and to test with. The default is"
        " 1024,256,1024, and 64,128,256 with --full.",
        DATA,
    )
    scored: int | None = option(
        None,
        "Number of training noises that candidates are scored on. The default is 256, 128 with"
        " --rows, and 32 with --full.",
        DATA,
    )
    teacher: str = option("unipc-3", "Solver of the reference solution.", REFERENCE)
    teacher_nfe: int = option(
        200, "Number of network evaluations of the reference solution.", REFERENCE, within=STEPS
    )
    final: str = option(
        "zero", "How the reference solution ends: zero, sigma_min or denoise.", REFERENCE
    )
    reference_end: float | None = option(
        None,
        "Time of the last node of the reference solution before its end, such as 0.05, from which"
        " it ends in one step. With 0 the default grid decides. By default it is measured where"
        " the features of the network's training images come with fewstep, and 0 elsewhere.",
        REFERENCE,
    )
    free: str | None = option(
        None,
        "Decisions that may vary, separated by commas, such as"
        " times,ends,order,pred,mixed,est,relax.",
        SPACE,
    )
    afs: str = option("none", "Analytic first steps to try: none, zero, mean or any.", SPACE)
    base: str = option("dpmpp-2m", "The solver that decides whatever may not vary.", SPACE)
    grid_type: str | None = option(
        None,
        "The grid of times to start from, and to keep if they may not vary. The default is logsnr,"
        " and with --full that of a run of so many evaluations.",
        SPACE,
        *GRID,
    )
    reference: str | None = option(
        None, "Real images for the objectives fd, kid and fid, as `fewstep fid` takes them.", DATA
    )
    weights: Path | None = option(
        None, "File with the weights of Inception, if it is not found by itself.", MACHINE
    )
    batch: int = option(32, "How many noises are computed at once.", MACHINE, within=COUNTS)
    dtype: Dtype = "fp32"
    device: Device = "cpu"
    plot: Path | None = option(
        None,
        "The .svg picture that shows the progress. By default it lies in the folder of the log.",
        OUTPUT,
    )
    started: float = field(init=False, default_factory=lambda: time.perf_counter())

    @property
    def folder(self) -> Path:
        """Of the log, and what else the search remembers."""
        return self.log or self.out.with_name(f"{self.out.stem}.search")


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
        "Number of images to compare. All classes take turns. The leading caches are compared on"
        " as many others again, up to four times, and the result is judged on others.",
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
        "A cache to try, as name or name:key=value,...; give it several times for several caches."
        " By default all that fit the network are tried.",
        QUALITY,
    )
    predictor: list[str] | None = option(
        None,
        "A predictor to try under every cache, as name or name:key=value,..., see `fewstep list"
        " predictors`; give it several times for several predictors. 'all' is all of them, with"
        " weights that are fitted to the run.",
        QUALITY,
    )
    masks: str = option(
        "auto",
        "How the full evaluations of a fixed list are searched: strategies of `fewstep search"
        " --full`, separated by commas, or none. auto is mask-even,mask-dp,mask-climb, where no"
        " cache is named, or fixed-mask is.",
        QUALITY,
    )
    budget: str = option(
        "candidates=120",
        "The budget of that search, as `fewstep search` takes it; all numbers of full evaluations"
        " share it.",
        QUALITY,
    )
    reference_nfe: ReferenceNfe = 200
    saving: float = option(0.25, "Share of the network rows that --guidance shall save.", GUIDANCE)
    guidance: str | None = option(
        None,
        "Find a threshold for adaptive[:key=value,...] that saves --saving, instead of a cache.",
        GUIDANCE,
    )
    cfg_scale: CfgScale = 1.0
    out: Path = option(
        Path("cache.json"), "The .json file that is written, for `sample --cache`.", OUTPUT
    )
    device: Device = "cpu"


@dataclass(frozen=True, kw_only=True)
class EvaluationRequest:
    """Figures of images against a reference; see `fewstep fid --help`."""

    images: Annotated[
        str, typer.Argument(help="The images: a folder, a .zip, a .npz, or the name of a data set.")
    ]
    reference: str | None = option(
        None,
        "What to compare with: images in one of these forms, or a .npz of statistics. Measured"
        " statistics are kept in the cache of the user.",
        FIGURES,
    )
    metrics: str | None = option(
        None,
        "Names separated by commas; see `fewstep list metrics`. The default is fid, and fd with"
        " another extractor than inception.",
        FIGURES,
    )
    extractor: str = option(
        "inception",
        "The network whose features are compared: inception, small, emoji, dinov2 or clip.",
        FIGURES,
    )
    weights: Path | None = option(
        None,
        "File with the weights of the extractor, if they are not found by themselves.",
        MACHINE,
        "--weights",
        "--inception",
    )
    n: int | None = option(
        None, "Use only this many images, from the first.", FIGURES, within=(1, None)
    )
    reference_n: int | None = option(
        None,
        "Use only this many images of the reference, from the first.",
        FIGURES,
        within=(1, None),
    )
    batch: Batch = 50
    device: Device = "cpu"
