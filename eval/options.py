"""Options of the command line: how one is described, and those that several share.

A field of a dataclass that describes an option is one of the command and of the function of Python
that take the dataclass (`commands/console.py`). A shared option is a type; its default stands where
it is used. Nothing here needs torch, so that `--help` is fast.
"""

import math
from dataclasses import Field, field, fields
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_type_hints

import typer
from typer.models import OptionInfo

from ..models.errors import SettingError, UnknownNameError

# What a command can be asked for at most: more is a slip of the keyboard, or takes years.
MOST = 1_000_000  # images, samples, noises, rows of a batch
MOST_STEPS = 10_000  # steps and evaluations; as in schedules, float32 states gain nothing beyond
MOST_REPEATS = 1_000
COUNTS, STEPS, REPEATS = (1, MOST), (1, MOST_STEPS), (1, MOST_REPEATS)
SEEDS = 0, 2**63 - 1

# Headings in `--help`.
SAMPLING = "Sampling"
GUIDANCE = "Guidance"
READY = "In place of a solver and a grid"
IMAGES = "Images"
MACHINE = "Network and machine"
OUTPUT = "Output"
FIGURES = "Metrics"

DESCRIBED = "option"  # in the metadata of a field
DEFAULT_MODEL = "emoji"  # of `sample`
GREY_MODEL = "fashion-dit"  # of the benches and of editing
GRID = ("--grid", "--grid-type")  # the latter is the name in 0.1.0
T = TypeVar("T")
Range = tuple[int | None, int | None]


def describe(
    text: str, panel: str | None = None, *names: str, within: Range = (None, None)
) -> OptionInfo:
    """Returns an option for `Annotated`.

    Args:
        text: its help, which is read alone; `\\[` is a bracket that rich would take for a style.
        panel: the heading it stands under.
        names: as it is typed, if not as the argument; a bool with one has no --no-NAME.
        within: the least and the largest number; None for no bound.
    """
    least, most = within
    info: OptionInfo = typer.Option(*names, help=text, rich_help_panel=panel, min=least, max=most)
    return info


def option(
    default: T, text: str, panel: str | None = None, *names: str, within: Range = (None, None)
) -> T:
    """Returns a field of a dataclass that is an option; see `describe`."""
    info = describe(text, panel, *names, within=within)
    return field(default=default, metadata={DESCRIBED: info})


def read_options(kind: Any) -> dict[str, tuple[Any, Field[Any]]]:
    """Returns the options of a dataclass by name, each as typer's annotation and as the field.

    Those that it inherits come last, also in `--help`.
    """
    hints = get_type_hints(kind, include_extras=True)
    options = {}
    for each in sorted(fields(kind), key=lambda each: each.name not in kind.__annotations__):
        if each.init:
            hint, info = hints[each.name], each.metadata.get(DESCRIBED)
            options[each.name] = (hint if info is None else Annotated[hint, info], each)
    return options


def make_request(kind: type[T], **options: Any) -> T:
    """Returns a request as a function of Python takes it, under the bounds of the command line.

    Raises:
        UnknownNameError: for a name that is no option.
        SettingError: for a number that is out of range.
    """
    known = read_options(kind)
    for name, value in options.items():
        if name not in known:
            raise UnknownNameError("option", name, known)
        hint = known[name][0]
        _check_range(name, value, hint.__metadata__[0])
        if isinstance(value, str) and Path in (hint.__origin__, *get_args(hint.__origin__)):
            options[name] = Path(value)
    return kind(**options)


def _check_range(name: str, value: Any, info: OptionInfo) -> None:
    """Raises SettingError for a number that the option does not take."""
    least = -math.inf if info.min is None else info.min
    most = math.inf if info.max is None else info.max
    if isinstance(value, int | float) and not least <= value <= most:
        raise SettingError(f"{name} must lie between {least:,} and {most:,}, not {value}")


# Of requests and commands alike.
Model = Annotated[
    str,
    typer.Argument(
        help="The network: a name of `fewstep list models`, a folder that diffusers saved, a Hub id"
        " (owner/name), or your own as file.py:attribute or package.module:attribute, whose code is"
        " run."
    ),
]
Dtype = Annotated[str, describe("Number format of the network: fp32, tf32, bf16 or fp16.", MACHINE)]
Device = Annotated[
    str, describe("Torch device that the network runs on, such as cpu, cuda or cuda:1.", MACHINE)
]
SolverName = Annotated[
    str, describe("The solver, as name[:key=value,...]; see `fewstep list solvers`.", SAMPLING)
]
GridType = Annotated[
    str | None,
    describe(
        "The grid of times, as name[:key=value,...]; see `fewstep list grids`.", SAMPLING, *GRID
    ),
]
CfgScale = Annotated[
    float, describe("Scale of classifier-free guidance; 1 turns it off.", GUIDANCE)
]
Batch = Annotated[
    int, describe("Number of images that are computed at once.", MACHINE, within=COUNTS)
]

# The network and where it runs.
ModelOption = Annotated[str, describe("The network, as `sample` takes it.", MACHINE)]
Compile = Annotated[bool, describe("Compile the network with torch.compile.", MACHINE, "--compile")]
ChannelsLast = Annotated[
    bool,
    describe(
        "Use the channels-last memory layout, which suits UNets on GPUs.",
        MACHINE,
        "--channels-last",
    ),
]
CudaGraph = Annotated[
    bool,
    describe(
        "Record network calls and runs as CUDA graphs once and replay them.",
        MACHINE,
        "--cuda-graph",
    ),
]
BatchSampled = Annotated[
    int, describe("Number of images that are sampled at once.", MACHINE, within=COUNTS)
]

# What is run.
Steps = Annotated[int | None, describe("Number of steps, in place of --nfe.", SAMPLING)]
ENDINGS = (
    "zero (at noise level 0), sigma_min (at the least one that the network was trained at) or"
    " denoise (as sigma_min, and one more evaluation takes the last noise off)"
)
Ending = Annotated[str, describe(f"How the run ends: {ENDINGS}.", SAMPLING)]
GridOfAll = Annotated[
    str | None, describe("The grid of times of all runs, as `sample` takes it.", SAMPLING, *GRID)
]
Budgets = Annotated[str, describe("Numbers of network evaluations, such as 4-6,8,10.", SAMPLING)]
ReferenceNfe = Annotated[
    int,
    describe(
        "Number of network evaluations of the converged run, which uses unipc-3.",
        SAMPLING,
        within=STEPS,
    ),
]
CfgInterval = Annotated[
    str | None,
    describe(
        "LOW,HIGH, such as 0.3,5: guide only at noise levels LOW < sigma/alpha <= HIGH. By default"
        " guide at all of them.",
        GUIDANCE,
    ),
]
Seed = Annotated[int, describe("Random seed.", SAMPLING, within=SEEDS)]
Noises = Annotated[
    int, describe("Number of images; their seeds count up from 0.", SAMPLING, within=COUNTS)
]

WEIGHTS_FROM = ". By default they come from the cache, the extra `eval` or a download."

# Pictures that are given.
PictureFile = Annotated[
    Path,
    typer.Argument(help="The picture, of the same size and channels as the network's images."),
]
LabelledData = Annotated[str, describe("A data set of images with classes.", IMAGES)]
FirstImages = Annotated[
    int,
    describe("Number of images of the data set to use, from the first.", IMAGES, within=COUNTS),
]

# What comes out.
StoreFile = Annotated[
    Path,
    describe(
        "The .jsonl file that keeps finished results, so that they are not measured again.", OUTPUT
    ),
]
LogFolder = Annotated[
    Path | None,
    describe(
        "Folder of the log, which several processes may share. The default lies beside --out.",
        OUTPUT,
    ),
]
TableText = Annotated[str, describe("Format of the printed table: md or csv.", OUTPUT)]
TableOfBest = Annotated[
    str,
    describe(
        "Format of the printed table: md shows the best of each kind, csv shows all results.",
        OUTPUT,
    ),
]
Plot = Annotated[
    Path | None,
    describe("The .png, .svg or .pdf file to draw curves into. By default there is none.", OUTPUT),
]
Html = Annotated[
    Path | None,
    describe("The .html file to write a report into. By default there is none.", OUTPUT),
]
Strip = Annotated[
    Path | None,
    describe(
        "The .png file to draw the picture, its reconstruction and any edit into, side by side.",
        OUTPUT,
    ),
]
Json = Annotated[bool, describe("Print the result as JSON.", OUTPUT, "--json")]
Quiet = Annotated[bool, describe("Print nothing but errors.", OUTPUT, "--quiet")]
QuietWarnings = Annotated[
    bool, describe("Print nothing but warnings and errors.", OUTPUT, "--quiet")
]
QuietResult = Annotated[bool, describe("Print nothing but the result.", OUTPUT, "--quiet")]
QuietTable = Annotated[bool, describe("Print only the table, no progress.", OUTPUT, "--quiet")]
