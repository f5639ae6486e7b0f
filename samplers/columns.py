"""The two columns of quality: how near the converged sampler a run ends, and how it looks."""

import math
from typing import Annotated, Self

import numpy as np
from pydantic import Field
from torch import Tensor

from ..models.reading import StrictModel

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
    """Both columns of a run on some noises.

    distance: of the ends from those of the converged sampler.
    features: of the images from its images, as an extractor sees them; None where none does.
    """

    distance: Column
    features: Column | None = None
