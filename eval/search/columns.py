"""The two columns in which schedules are judged: how near the reference they end, and how it looks.

Distance is of the ends, noise by noise; features are those of the images at the ends, as an
extractor sees them, beside those of the reference's images of the same noises. A tenth of the
noises makes much of a squared error, so an interval and the median stand beside each figure.
"""

import torch
from torch import Tensor

from ...models.errors import NonFiniteError, ScheduleError
from ...samplers.columns import Column, Columns
from ...solvers.artefact import Artefact
from .objective import FeatureError
from .problem import Block, Problem


def judge_ends(ends: Tensor, block: Block, features: FeatureError | None) -> Columns:
    """Returns the columns of finite ends (n, *) that a run reaches from a block."""
    seen = None if features is None else Column.of(features.squares(ends, block))
    return Columns(distance=Column.of(square_distances(ends, block)), features=seen)


def square_distances(ends: Tensor, block: Block) -> Tensor:
    """Returns the mean squares (n,) of single noises between ends (n, *) and those of a block."""
    return (ends.double() - block.ends.double()).square().flatten(1).mean(1)


def reach_ends(problem: Problem, schedule: Artefact, block: Block) -> Tensor | None:
    """Returns where a schedule takes a block, (n, *); None if that is not finite."""
    try:
        ends = problem.ends(schedule, block)
    except (NonFiniteError, ScheduleError):
        return None
    return ends if bool(torch.isfinite(ends).all()) else None
