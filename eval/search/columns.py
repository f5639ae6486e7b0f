"""The two columns in which schedules are judged: how near the reference they end, and how it looks.

Distance is of the ends, noise by noise; features are those of the images at the ends, as an
extractor sees them, beside those of the reference's images of the same noises. A tenth of the
noises makes much of a squared error, so an interval and the median stand beside each figure.
"""

import math
from typing import Annotated, Self

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from ...models.errors import NonFiniteError, ScheduleError
from ...models.reading import StrictModel
from ...solvers.artefact import Artefact
from .objective import FeatureError
from .problem import Block, Problem

RESAMPLED = 1000  # times
Figure = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]


class Column(StrictModel):
    """A root mean square over noises.

    low, high: its 95 % interval, of noises drawn again with replacement.
    median:    of the root mean squares of single noises.
    """

    value: Figure
    low: Figure
    high: Figure
    median: Figure

    @classmethod
    def of(cls, squares: Tensor) -> Self:
        """Returns the column of the mean squares (n,) of single noises."""
        each = squares.double().numpy()
        drawn = np.random.default_rng(0).integers(len(each), size=(RESAMPLED, len(each)))
        low, high = np.sqrt(np.quantile(each[drawn].mean(1), [0.025, 0.975]))
        return cls(
            value=math.sqrt(each.mean()), low=low, high=high, median=math.sqrt(np.median(each))
        )

    def __str__(self) -> str:
        return f"{self.value:.4f} [{self.low:.4f}, {self.high:.4f}], median {self.median:.4f}"


class Columns(StrictModel):
    """Both columns of a schedule on some noises; features is None where nothing sees the images."""

    distance: Column
    features: Column | None = None

    @classmethod
    def of(cls, ends: Tensor, block: Block, features: FeatureError | None) -> Self:
        """Returns the columns of finite ends (n, *) that a schedule reaches from a block."""
        seen = None if features is None else Column.of(features.squares(ends, block))
        return cls(distance=Column.of(square_distances(ends, block)), features=seen)


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
