"""Options that several commands share: type, name and help are written once.

The default stands at each command, as it is for an option of its own.
"""

from pathlib import Path
from typing import Annotated

import typer

DEFAULT_MODEL = "fashion-dit"

# What a command can be asked for at most: more is a slip of the keyboard, or takes years.
MOST = 1_000_000  # images, samples, noises, rows of a batch
MOST_STEPS = 10_000  # steps and evaluations; as in schedules, float32 states gain nothing beyond
MOST_REPEATS = 1_000
LAST_SEED = 2**63 - 1

# The network and where it runs.
Model = Annotated[str, typer.Argument(help="A network as in sample.")]
ModelOption = Annotated[str, typer.Option(help="A network as in sample.")]
Dtype = Annotated[str, typer.Option(help="Of the network: fp32, tf32, bf16 or fp16.")]
Device = Annotated[str, typer.Option(help="A torch device, such as cpu or cuda.")]
Compile = Annotated[bool, typer.Option("--compile", help="Compile the network (torch.compile).")]
ChannelsLast = Annotated[
    bool, typer.Option("--channels-last", help="Memory layout of convolutions; for UNets on GPUs.")
]
CudaGraph = Annotated[
    bool, typer.Option("--cuda-graph", help="Record calls and runs once, and replay them.")
]
BatchSampled = Annotated[int, typer.Option(min=1, max=MOST, help="Images sampled at once.")]
Batch = Annotated[int, typer.Option(min=1, max=MOST, help="Images at once.")]

# What is run.
Steps = Annotated[int | None, typer.Option(help="Number of steps, instead of --nfe.")]
GridType = Annotated[
    str | None, typer.Option(help="Name[:key=value,...]; see `fewstep list grids`.")
]
GridOfAll = Annotated[str | None, typer.Option(help="Of all runs, as in sample.")]
Budgets = Annotated[str, typer.Option(help="Budgets, as 4-6,8,10.")]
ReferenceNfe = Annotated[
    int,
    typer.Option(min=1, max=MOST_STEPS, help="Evaluations of unipc-3 in the converged run."),
]
CfgScale = Annotated[float, typer.Option(help="Classifier-free guidance scale; 1 is off.")]
CfgInterval = Annotated[
    str | None, typer.Option(help="Guide only where LOW < sigma/alpha <= HIGH, as LOW,HIGH.")
]
Seed = Annotated[int, typer.Option(min=0, max=LAST_SEED, help="Of everything random.")]
Noises = Annotated[int, typer.Option(min=1, max=MOST, help="Noises, from seed 0.")]

# Pictures that are given.
PictureFile = Annotated[Path, typer.Argument(help="Of a size and mode that the network takes.")]
LabelledData = Annotated[str, typer.Option(help="Images with classes.")]
FirstImages = Annotated[int, typer.Option(min=1, max=MOST, help="The first so many of them.")]

# What comes out.
StoreFile = Annotated[Path, typer.Option(help="Where figures are kept and found again.")]
TableText = Annotated[str, typer.Option(help="What is printed: md or csv.")]
TableOfBest = Annotated[str, typer.Option(help="md: the best of each; csv: all.")]
Plot = Annotated[Path | None, typer.Option(help="Curves as .png, .svg or .pdf.")]
Html = Annotated[Path | None, typer.Option(help="The whole report as one page.")]
Quiet = Annotated[bool, typer.Option(help="Print nothing but errors.")]
QuietTable = Annotated[bool, typer.Option(help="No progress, only the table.")]
