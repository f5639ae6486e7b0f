"""Options that several commands share: type, name and help are written once.

The default stands at each command, as it is for an option of its own. Those that requests below the
commands share too stand in `eval/options.py`, and are named here again for commands.
"""

from pathlib import Path
from typing import Annotated

import typer

from ..eval.options import GUIDANCE as GUIDANCE
from ..eval.options import IMAGES as IMAGES
from ..eval.options import LAST_SEED as LAST_SEED
from ..eval.options import MACHINE as MACHINE
from ..eval.options import MOST as MOST
from ..eval.options import MOST_REPEATS as MOST_REPEATS
from ..eval.options import MOST_STEPS as MOST_STEPS
from ..eval.options import OUTPUT as OUTPUT
from ..eval.options import SAMPLING as SAMPLING
from ..eval.options import Batch as Batch
from ..eval.options import CfgScale as CfgScale
from ..eval.options import Device as Device
from ..eval.options import Dtype as Dtype
from ..eval.options import GridType as GridType
from ..eval.options import Model as Model

DEFAULT_MODEL = "fashion-dit"

# The network and where it runs.
ModelOption = Annotated[
    str, typer.Option(help="The network, as `sample` takes it.", rich_help_panel=MACHINE)
]
Compile = Annotated[
    bool,
    typer.Option(
        "--compile", help="Compile the network with torch.compile.", rich_help_panel=MACHINE
    ),
]
ChannelsLast = Annotated[
    bool,
    typer.Option(
        "--channels-last",
        help="Use the channels-last memory layout, which suits UNets on GPUs.",
        rich_help_panel=MACHINE,
    ),
]
CudaGraph = Annotated[
    bool,
    typer.Option(
        "--cuda-graph",
        help="Record network calls and runs as CUDA graphs once and replay them.",
        rich_help_panel=MACHINE,
    ),
]
BatchSampled = Annotated[
    int,
    typer.Option(
        min=1, max=MOST, help="How many images are sampled at once.", rich_help_panel=MACHINE
    ),
]

# What is run.
Steps = Annotated[
    int | None,
    typer.Option(help="Number of steps, in place of --nfe.", rich_help_panel=SAMPLING),
]
GridOfAll = Annotated[
    str | None,
    typer.Option(
        help="The grid of times of all runs, as `sample` takes it.", rich_help_panel=SAMPLING
    ),
]
Budgets = Annotated[
    str,
    typer.Option(
        help="Numbers of network evaluations, such as 4-6,8,10.", rich_help_panel=SAMPLING
    ),
]
ReferenceNfe = Annotated[
    int,
    typer.Option(
        min=1,
        max=MOST_STEPS,
        help="Number of network evaluations of the converged run, which uses unipc-3.",
        rich_help_panel=SAMPLING,
    ),
]
CfgInterval = Annotated[
    str | None,
    typer.Option(
        help="Guide only where LOW < sigma/alpha <= HIGH; write LOW,HIGH.",
        rich_help_panel=GUIDANCE,
    ),
]
Seed = Annotated[
    int, typer.Option(min=0, max=LAST_SEED, help="Random seed.", rich_help_panel=SAMPLING)
]
Noises = Annotated[
    int,
    typer.Option(
        min=1,
        max=MOST,
        help="Number of images; their seeds count up from 0.",
        rich_help_panel=SAMPLING,
    ),
]

# Pictures that are given.
PictureFile = Annotated[
    Path,
    typer.Argument(help="The picture. Its size and colours must be those of the network's images."),
]
LabelledData = Annotated[
    str, typer.Option(help="A data set of images with classes.", rich_help_panel=IMAGES)
]
FirstImages = Annotated[
    int,
    typer.Option(
        min=1,
        max=MOST,
        help="How many images of the data set are used, from the first.",
        rich_help_panel=IMAGES,
    ),
]

# What comes out.
StoreFile = Annotated[
    Path,
    typer.Option(
        help="File that keeps finished results, so that they are not measured again.",
        rich_help_panel=OUTPUT,
    ),
]
TableText = Annotated[
    str, typer.Option(help="Format of the printed table: md or csv.", rich_help_panel=OUTPUT)
]
TableOfBest = Annotated[
    str,
    typer.Option(
        help="Format of the printed table: md shows the best of each kind, csv shows all results.",
        rich_help_panel=OUTPUT,
    ),
]
Plot = Annotated[
    Path | None,
    typer.Option(help="Draw the curves into this .png, .svg or .pdf file.", rich_help_panel=OUTPUT),
]
Html = Annotated[
    Path | None,
    typer.Option(help="Write the whole report into this .html file.", rich_help_panel=OUTPUT),
]
Strip = Annotated[
    Path | None,
    typer.Option(
        help="Write a .png that shows the picture, its reconstruction and any edit side by side.",
        rich_help_panel=OUTPUT,
    ),
]
Json = Annotated[
    bool,
    typer.Option("--json", help="Print the result as JSON.", rich_help_panel=OUTPUT),
]
Quiet = Annotated[bool, typer.Option(help="Print nothing but errors.", rich_help_panel=OUTPUT)]
QuietWarnings = Annotated[
    bool, typer.Option(help="Print nothing but warnings and errors.", rich_help_panel=OUTPUT)
]
QuietResult = Annotated[
    bool, typer.Option(help="Print nothing but the result.", rich_help_panel=OUTPUT)
]
QuietTable = Annotated[
    bool, typer.Option(help="Print no progress, only the table.", rich_help_panel=OUTPUT)
]
