"""The request to fit the weights of a guidance; its options are defined here once."""

from dataclasses import dataclass
from typing import Annotated

from .options import (
    COUNTS,
    GUIDANCE,
    MACHINE,
    MOST_STEPS,
    SAMPLING,
    STEPS,
    Device,
    GridType,
    Model,
    SolverName,
    describe,
    option,
)


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
        "After the warm-up, evaluate both branches at every N-th step; 0 means at none.",
        GUIDANCE,
        within=(0, MOST_STEPS),
    )
    warmup: int = option(
        4, "Number of first steps that evaluate both branches.", GUIDANCE, within=(0, MOST_STEPS)
    )
    tail: int = option(
        0, "Number of last steps that evaluate one branch.", GUIDANCE, within=(0, MOST_STEPS)
    )
    mask: str | None = option(
        None,
        "One digit for each step, 1 where both branches are evaluated and 0 elsewhere, in place of"
        " --every, --warmup and --tail.",
        GUIDANCE,
    )
    terms: str = option(
        "2,2",
        "How many past differences of the branches and past changes of the conditional output a"
        " forecast uses.",
        GUIDANCE,
    )
    ridge: float = option(1e-06, "Relative ridge penalty of the least squares.", GUIDANCE)
    images: int = option(
        256,
        "Number of images to fit the weights to, which are held in memory at once.",
        MACHINE,
        within=COUNTS,
    )
    batch: int = option(32, "How many network rows are computed at once.", MACHINE, within=COUNTS)
    device: Device = "cpu"
