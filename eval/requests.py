"""What can be asked of the package beside images: each option stands here once.

The command line reads names, types, texts and defaults from these fields, the functions of Python
take the same names. Nothing here needs torch, so that `--help` is fast.
"""

import math
import time
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_type_hints

import typer
from typer.models import ParameterInfo

from ..models.errors import SettingError, UnknownNameError
from .options import (
    GUIDANCE,
    LAST_SEED,
    MACHINE,
    MOST,
    MOST_STEPS,
    OUTPUT,
    SAMPLING,
    Batch,
    CfgScale,
    Device,
    Dtype,
    GridType,
    Model,
    SolverName,
)

SIZE, METHOD, SPACE = "Size of the schedule", "Search", "What may vary"
DATA, REFERENCE = "Noises and classes", "Reference solution"
QUALITY, FIGURES = "What is asked for", "Figures"
R = TypeVar("R", "SearchRequest", "CalibrationRequest", "EvaluationRequest")


@dataclass(frozen=True, kw_only=True)
class SearchRequest:
    """A search of a better schedule; see `fewstep search --help`.

    Give one of nfe, nfe_range and rows.

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
    nfe: Annotated[
        int | None,
        typer.Option(help="Number of network evaluations of the schedule.", rich_help_panel=SIZE),
    ] = None
    nfe_range: Annotated[
        str | None,
        typer.Option(
            help="Several numbers, such as 3-10, in place of --nfe; they share the budget.",
            rich_help_panel=SIZE,
        ),
    ] = None
    rows: Annotated[
        int | None,
        typer.Option(
            help="Network rows per image under --cfg-scale, in place of --nfe. The search divides"
            " them between conditional and unconditional evaluations.",
            rich_help_panel=SIZE,
        ),
    ] = None
    strategy: Annotated[
        str,
        typer.Option(
            help="Either auto, or names separated by commas: grid, dmn, gits, klub, oss, evolve,"
            " fit, grad, grow, refine.",
            rich_help_panel=METHOD,
        ),
    ] = "auto"
    objective: Annotated[
        str,
        typer.Option(
            help="What is minimized: terminal, log_mse, feature, fd, kid or fid.",
            rich_help_panel=METHOD,
        ),
    ] = "terminal"
    budget: Annotated[
        str,
        typer.Option(
            help="A time for the whole command, such as 20m; or a number of candidates, as"
            " candidates=1500; or a number of network rows, as evals=2e6.",
            rich_help_panel=METHOD,
        ),
    ] = "10m"
    cfg_scale: CfgScale = 1.0
    seed: Annotated[
        int,
        typer.Option(
            min=0, max=LAST_SEED, help="Random seed of the search.", rich_help_panel=METHOD
        ),
    ] = 0
    out: Annotated[
        Path,
        typer.Option(
            help="The .json file that the schedule is written to.", rich_help_panel=OUTPUT
        ),
    ] = Path("schedule.json")
    log: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the log, which several processes may share. By default it lies beside"
            " the schedule.",
            rich_help_panel=OUTPUT,
        ),
    ] = None
    noises: Annotated[
        str,
        typer.Option(
            help="Numbers of noises to train on, to validate with and to test with.",
            rich_help_panel=DATA,
        ),
    ] = "1024,256,1024"
    scored: Annotated[
        int | None,
        typer.Option(
            help="Number of training noises that candidates are scored on. The default is 256, and"
            " 128 with --rows.",
            rich_help_panel=DATA,
        ),
    ] = None
    train_seeds: Annotated[
        str | None,
        typer.Option(help="Seeds of the training noises, such as 5000-5999.", rich_help_panel=DATA),
    ] = None
    validation_seeds: Annotated[
        str | None,
        typer.Option(
            help="Seeds of the validation noises, such as 6000-6255.", rich_help_panel=DATA
        ),
    ] = None
    test_seeds: Annotated[
        str | None,
        typer.Option(
            help="Seeds of the test noises, such as 7000-7999. They are used once, at the end.",
            rich_help_panel=DATA,
        ),
    ] = None
    classes: Annotated[
        str | None,
        typer.Option(
            help="Class labels, such as 0-9. By default all classes take turns.",
            rich_help_panel=DATA,
        ),
    ] = None
    teacher: Annotated[
        str,
        typer.Option(help="Solver of the reference solution.", rich_help_panel=REFERENCE),
    ] = "unipc-3"
    teacher_nfe: Annotated[
        int,
        typer.Option(
            min=1,
            max=MOST_STEPS,
            help="Number of network evaluations of the reference solution.",
            rich_help_panel=REFERENCE,
        ),
    ] = 200
    final: Annotated[
        str,
        typer.Option(
            help="How the reference solution ends: zero, sigma_min or denoise.",
            rich_help_panel=REFERENCE,
        ),
    ] = "zero"
    free: Annotated[
        str | None,
        typer.Option(
            help="Decisions that may vary, separated by commas, such as"
            " times,ends,order,pred,mixed,est,relax.",
            rich_help_panel=SPACE,
        ),
    ] = None
    afs: Annotated[
        str,
        typer.Option(
            help="Analytic first steps to try: none, zero, mean or any.", rich_help_panel=SPACE
        ),
    ] = "none"
    base: Annotated[
        str,
        typer.Option(help="The solver that decides whatever may not vary.", rich_help_panel=SPACE),
    ] = "dpmpp-2m"
    grid_type: Annotated[
        str,
        typer.Option(
            help="The grid of times to start from, and to keep if they may not vary.",
            rich_help_panel=SPACE,
        ),
    ] = "logsnr"
    predictor: Annotated[
        bool,
        typer.Option(
            "--predictor",
            help="Screen new candidates with a predictor that learns to rank them.",
            rich_help_panel=METHOD,
        ),
    ] = False
    reference: Annotated[
        str | None,
        typer.Option(
            help="Real images for the objectives fd, kid and fid, as `fewstep fid` takes them.",
            rich_help_panel=DATA,
        ),
    ] = None
    weights: Annotated[
        Path | None,
        typer.Option(
            help="File with the weights of Inception, if it is not found by itself.",
            rich_help_panel=MACHINE,
        ),
    ] = None
    batch: Annotated[
        int,
        typer.Option(
            min=1, max=MOST, help="How many noises are computed at once.", rich_help_panel=MACHINE
        ),
    ] = 32
    dtype: Dtype = "fp32"
    device: Device = "cpu"
    plot: Annotated[
        Path | None,
        typer.Option(
            help="The .svg picture that shows the progress. By default it lies in the folder of the"
            " log.",
            rich_help_panel=OUTPUT,
        ),
    ] = None
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
    nfe: Annotated[
        int,
        typer.Option(
            min=1,
            max=MOST_STEPS,
            help="Number of network evaluations of the run without a cache.",
            rich_help_panel=SAMPLING,
        ),
    ] = 30
    grid_type: GridType = None
    images: Annotated[
        int,
        typer.Option(
            min=2,
            max=MOST,
            help="Number of images to compare. All classes take turns.",
            rich_help_panel=SAMPLING,
        ),
    ] = 48
    quality: Annotated[
        str,
        typer.Option(
            help="How near the images must stay to those without a cache: rel-l2=0.05, psnr=30 or"
            " lpips=0.05.",
            rich_help_panel=QUALITY,
        ),
    ] = "rel-l2=0.05"
    cache: Annotated[
        list[str] | None,
        typer.Option(
            help="A cache to try, as name or name:key=value,...; give it several times for several"
            " caches. By default all that fit the network are tried.",
            rich_help_panel=QUALITY,
        ),
    ] = None
    saving: Annotated[
        float,
        typer.Option(
            help="Share of the network rows that --guidance shall save.", rich_help_panel=GUIDANCE
        ),
    ] = 0.25
    guidance: Annotated[
        str | None,
        typer.Option(
            help="Find a threshold for adaptive[:key=value,...] that saves --saving, instead of a"
            " cache.",
            rich_help_panel=GUIDANCE,
        ),
    ] = None
    cfg_scale: CfgScale = 1.0
    out: Annotated[
        Path,
        typer.Option(
            help="The .json file that is written, for `sample --cache`.", rich_help_panel=OUTPUT
        ),
    ] = Path("cache.json")
    device: Device = "cpu"


@dataclass(frozen=True, kw_only=True)
class EvaluationRequest:
    """Figures of images against a reference; see `fewstep fid --help`."""

    images: Annotated[
        str,
        typer.Argument(help="The images: a folder, a .zip, a .npz, or the name of a data set."),
    ]
    reference: Annotated[
        str | None,
        typer.Option(
            help="What to compare with: images in one of these forms, or a .npz of statistics."
            " Measured statistics are kept in the cache of the user.",
            rich_help_panel=FIGURES,
        ),
    ] = None
    metrics: Annotated[
        str | None,
        typer.Option(
            help="Names separated by commas; see `fewstep list metrics`. The default is fid, and fd"
            " with another extractor than inception.",
            rich_help_panel=FIGURES,
        ),
    ] = None
    extractor: Annotated[
        str,
        typer.Option(
            help="The network whose features are compared: inception, small, dinov2 or clip.",
            rich_help_panel=FIGURES,
        ),
    ] = "inception"
    weights: Annotated[
        Path | None,
        typer.Option(
            "--weights",
            "--inception",
            help="File with the weights of the extractor, if they are not found by themselves.",
            rich_help_panel=MACHINE,
        ),
    ] = None
    n: Annotated[
        int | None,
        typer.Option(
            min=1, help="Use only this many images, from the first.", rich_help_panel=FIGURES
        ),
    ] = None
    reference_n: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Use only this many images of the reference, from the first.",
            rich_help_panel=FIGURES,
        ),
    ] = None
    batch: Batch = 50
    device: Device = "cpu"


@dataclass(frozen=True, kw_only=True)
class LinearFitRequest:
    """The fit of `linear-ag`'s weights; see `fewstep fit linear-ag --help`."""

    model: Model
    cfg_scale: Annotated[
        float,
        typer.Option(help="Guidance scale to fit the weights for.", rich_help_panel=SAMPLING),
    ]
    nfe: Annotated[
        int,
        typer.Option(
            min=1,
            max=MOST_STEPS,
            help="Number of network evaluations to fit the weights for.",
            rich_help_panel=SAMPLING,
        ),
    ] = 10
    solver: SolverName = "dpmpp-2m"
    grid_type: GridType = None
    every: Annotated[
        int,
        typer.Option(
            min=0,
            max=MOST_STEPS,
            help="After the warm-up, evaluate both branches at every N-th step; 0 means at none.",
            rich_help_panel=GUIDANCE,
        ),
    ] = 2
    warmup: Annotated[
        int,
        typer.Option(
            min=0,
            max=MOST_STEPS,
            help="Number of first steps that evaluate both branches.",
            rich_help_panel=GUIDANCE,
        ),
    ] = 4
    tail: Annotated[
        int,
        typer.Option(
            min=0,
            max=MOST_STEPS,
            help="Number of last steps that evaluate one branch.",
            rich_help_panel=GUIDANCE,
        ),
    ] = 0
    mask: Annotated[
        str | None,
        typer.Option(
            help="One digit for each step, 1 where both branches are evaluated and 0 elsewhere, in"
            " place of --every, --warmup and --tail.",
            rich_help_panel=GUIDANCE,
        ),
    ] = None
    terms: Annotated[
        str,
        typer.Option(
            help="How many past differences of the branches and past changes of the conditional"
            " output a forecast uses.",
            rich_help_panel=GUIDANCE,
        ),
    ] = "2,2"
    ridge: Annotated[
        float,
        typer.Option(help="Relative ridge penalty of the least squares.", rich_help_panel=GUIDANCE),
    ] = 1e-6
    images: Annotated[
        int,
        typer.Option(
            min=1,
            max=MOST,
            help="Number of images to fit the weights to, which are held in memory at once.",
            rich_help_panel=MACHINE,
        ),
    ] = 256
    batch: Annotated[
        int,
        typer.Option(
            min=1,
            max=MOST,
            help="How many network rows are computed at once.",
            rich_help_panel=MACHINE,
        ),
    ] = 32
    device: Device = "cpu"


def make_request(kind: type[R], **options: Any) -> R:
    """Returns a request as a function of Python gets it, under the bounds of the command line.

    Raises:
        UnknownNameError: for a name that is no option.
        SettingError: for a number that is out of range.
    """
    hints = get_type_hints(kind, include_extras=True)
    known = {each.name: hints[each.name] for each in fields(kind) if each.init}
    for name, value in options.items():
        if name not in known:
            raise UnknownNameError("option", name, known)
        _check_range(name, value, known[name].__metadata__[0])
        kinds: Any = known[name].__origin__
        if isinstance(value, str) and Path in (kinds, *get_args(kinds)):
            options[name] = Path(value)
    return kind(**options)


def _check_range(name: str, value: Any, info: ParameterInfo) -> None:
    """Raises SettingError for a number that the option does not take."""
    least = -math.inf if info.min is None else info.min
    most = math.inf if info.max is None else info.max
    if isinstance(value, int | float) and not least <= value <= most:
        raise SettingError(f"{name} must lie between {least:,} and {most:,}, not {value}")
