"""Requests to search and evaluate: each option is defined here once.

The command line reads names, types, texts and defaults from these fields, the functions of Python
take the same names. Nothing here needs torch, so that `--help` is fast.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from .options import (
    ENDINGS,
    FIGURES,
    GRID,
    MACHINE,
    OUTPUT,
    SEEDS,
    STEPS,
    WEIGHTS_FROM,
    Batch,
    CfgScale,
    Device,
    Dtype,
    LogFolder,
    option,
)

SIZE, METHOD, SPACE = "Size of the schedule", "Search", "What the search may decide"
DATA, REFERENCE = "Noises and classes", "Reference solution"
EXTRACTORS = (
    "small, emoji, inception, dinov2, clip or none. auto is small for grey images of 28 or 32"
    " pixels, emoji for the network emoji, and none otherwise."
)


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
        None, "Class labels, such as 0-9, which take turns. By default all classes do.", DATA
    )
    seed: int = option(0, "Random seed of the search.", METHOD, within=SEEDS)
    beyond: str | None = option(
        None,
        "Extensions of a solver's linear steps to try, separated by commas: columns (functions of"
        " predictions), correction (a small network that is trained). By default none is tried.",
        METHOD,
    )


@dataclass(frozen=True, kw_only=True)
class SearchRequest(SearchNoises):
    """A search of a better schedule; see `fewstep search --help`.

    Give one of nfe, nfe_range, rows and full.
    """

    network: Annotated[
        str,
        typer.Argument(
            help="The network, as `sample` takes it; or toy, a distribution whose scores are known"
            " exactly."
        ),
    ]
    nfe: int | None = option(None, "Number of network evaluations of the schedule.", SIZE)
    nfe_range: str | None = option(
        None,
        "Several numbers of network evaluations, such as 3-10, in place of --nfe; they share the"
        " budget.",
        SIZE,
    )
    rows: int | None = option(
        None,
        "Number of network rows per image under --cfg-scale, in place of --nfe. The search divides"
        " them between conditional and unconditional evaluations, which are one row each.",
        SIZE,
    )
    full: int | None = option(
        None,
        "Number of evaluations that run in full, in place of --nfe. The search finds at which of"
        " the --steps they lie; a cache forecasts the others.",
        SIZE,
        within=STEPS,
    )
    steps: str | None = option(
        None,
        "With --full: number of steps of the run. Several numbers, such as 20,30, share the budget."
        " The default is 30.",
        SIZE,
    )
    predictor: str = option(
        "auto",
        "With --full: the predictor that forecasts the other evaluations, as name[:key=value,...];"
        " several are separated by semicolons. auto tries the usual ones. See `fewstep list"
        " predictors`.",
        METHOD,
    )
    strategy: str = option(
        "auto",
        "Names of strategies, separated by commas, such as grid,fit,refine, which run in turn. auto"
        " takes those that suit the size and the budget.",
        METHOD,
    )
    objective: str = option(
        "terminal",
        "What is minimized: terminal (the distance of the samples from those of the reference"
        " solution; distance is another name), log_mse, feature, fd, kid or fid; with --full also"
        " drift (the distance from the run without a cache).",
        METHOD,
    )
    features: str = option(
        "auto",
        "Extractor whose features compare images with those of the reference solution when the last"
        f" step is chosen: {EXTRACTORS}",
        METHOD,
    )
    budget: str = option(
        "10m",
        "Time for the whole command, such as 90s, 20m or 2h; or a number of candidates, as"
        " candidates=1500; or a number of network rows, as evals=2e6.",
        METHOD,
    )
    cfg_scale: CfgScale = 1.0
    out: Path = option(
        Path("schedule.json"), "The .json file that the schedule is written to.", OUTPUT
    )
    log: LogFolder = None
    noises: str | None = option(
        None,
        "Three numbers of noises: to train on, to validate with and to test with. The default is"
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
    final: str = option("zero", f"How the reference solution ends: {ENDINGS}.", REFERENCE)
    reference_end: float | None = option(
        None,
        "Time of the reference solution's last node before its end, such as 0.05; one step leads"
        " from there to the end. 0 leaves it to the default grid. By default it is measured if"
        " fewstep has features of the network's training images, and 0 otherwise.",
        REFERENCE,
    )
    free: str | None = option(
        None,
        "What the search may decide, separated by commas: times, ends, order, pred, mixed, est,"
        " relax, corr, afs and xi. By default all but mixed, afs and xi.",
        SPACE,
    )
    afs: str = option("none", "Analytic first step to try: none, zero, mean or any.", SPACE)
    base: str = option("dpmpp-2m", "Solver that gives whatever the search may not decide.", SPACE)
    grid_type: str | None = option(
        None,
        "The grid of times to start from, and to keep if the search may not decide them. The"
        " default is logsnr, and with --full that of `sample` for as many evaluations.",
        SPACE,
        *GRID,
    )
    reference: str | None = option(
        None, "Real images for the objectives fd, kid and fid, as `fewstep fid` takes them.", DATA
    )
    weights: Path | None = option(
        None, f"File with the weights of Inception{WEIGHTS_FROM}", MACHINE
    )
    batch: Batch = 32
    dtype: Dtype = "fp32"
    device: Device = "cpu"
    plot: Path | None = option(
        None,
        "The .svg file to draw the progress into. The default lies in the folder of the log.",
        OUTPUT,
    )

    @property
    def folder(self) -> Path:
        """Of the log, and what else the search remembers."""
        return self.log or self.out.with_name(f"{self.out.stem}.search")


@dataclass(frozen=True, kw_only=True)
class EvaluationRequest:
    """Figures of images against a reference; see `fewstep fid --help`."""

    images: Annotated[
        str, typer.Argument(help="The images: a folder, a .zip, a .npz, or the name of a data set.")
    ]
    reference: str | None = option(
        None,
        "Images to compare with, in one of the forms above, or a .npz of statistics. Statistics"
        " that were measured are kept in $FEWSTEP_CACHE or ~/.cache/fewstep.",
        FIGURES,
    )
    metrics: str | None = option(
        None,
        "Names of metrics, separated by commas; see `fewstep list metrics`. The default is fid, and"
        " fd with an extractor other than inception.",
        FIGURES,
    )
    extractor: str = option(
        "inception",
        "The network whose features are compared: inception, small, emoji, dinov2 or clip.",
        FIGURES,
    )
    weights: Path | None = option(
        None,
        f"File with the weights of the extractor{WEIGHTS_FROM}",
        MACHINE,
        "--weights",
        "--inception",
    )
    n: int | None = option(
        None,
        "Number of images to use, from the first. By default all are used.",
        FIGURES,
        within=(1, None),
    )
    reference_n: int | None = option(
        None,
        "Number of images of the reference to use, from the first. By default all are used.",
        FIGURES,
        within=(1, None),
    )
    batch: Batch = 50
    device: Device = "cpu"
