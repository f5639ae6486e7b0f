"""Options that commands and the requests below them share: type, text and panel are written once.

The default stands where an option is used, as it does for an option of its own. Nothing here needs
torch, so that `--help` is fast.
"""

from typing import Annotated

import typer

# What a command can be asked for at most: more is a slip of the keyboard, or takes years.
MOST = 1_000_000  # images, samples, noises, rows of a batch
MOST_STEPS = 10_000  # steps and evaluations; as in schedules, float32 states gain nothing beyond
MOST_REPEATS = 1_000
LAST_SEED = 2**63 - 1

# Headings in `--help`.
SAMPLING = "Sampling"
GUIDANCE = "Guidance"
IMAGES = "Images"
MACHINE = "Network and machine"
OUTPUT = "Output"

Model = Annotated[
    str,
    typer.Argument(
        help="The network: an embedded name of `fewstep list models`, a folder of diffusers or an"
        " id on the hub."
    ),
]
Dtype = Annotated[
    str,
    typer.Option(
        help="Number format of the network: fp32, tf32, bf16 or fp16.", rich_help_panel=MACHINE
    ),
]
Device = Annotated[
    str, typer.Option(help="A torch device, such as cpu or cuda.", rich_help_panel=MACHINE)
]
SolverName = Annotated[
    str,
    typer.Option(
        help="The solver, as name[:key=value,...]; see `fewstep list solvers`.",
        rich_help_panel=SAMPLING,
    ),
]
GridType = Annotated[
    str | None,
    typer.Option(
        help="The grid of times, as name[:key=value,...]; see `fewstep list grids`.",
        rich_help_panel=SAMPLING,
    ),
]
CfgScale = Annotated[
    float,
    typer.Option(
        help="Scale of classifier-free guidance; 1 turns it off.", rich_help_panel=GUIDANCE
    ),
]
Batch = Annotated[
    int,
    typer.Option(
        min=1, max=MOST, help="How many images are computed at once.", rich_help_panel=MACHINE
    ),
]
