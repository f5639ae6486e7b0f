"""Functions of predictions that a table may weigh beside the predictions themselves.

A combination of states and predictions is linear in them; a function of x0, evaluated once when
the prediction arrives, is one more term, which costs a few elementwise operations. Each looks at
one sample alone, so samples stay independent of their batch.
"""

import json
from abc import ABC, abstractmethod
from functools import lru_cache
from typing import Annotated, ClassVar

import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from ..models.errors import ScheduleError, SettingError
from ..models.registry import SettingsRegistry, settings_of

Number = Annotated[float, Field(allow_inf_nan=False)]


class PredictionFunction(ABC):
    """The base of functions of x0, frozen values of settings.

    operations: tensor operations on a whole state that it takes.
    spatial:    whether it needs samples (channels, height, width).
    """

    name: ClassVar[str]
    operations: ClassVar[int]
    spatial: ClassVar[bool] = False

    @abstractmethod
    def __call__(self, x0: Tensor) -> Tensor:
        """Returns the function of predictions (B, *), of the same shape."""

    def check_shape(self, shape: tuple[int, ...], whose: str) -> None:
        """Raises ScheduleError for samples of a shape that it cannot take."""
        if self.spatial and len(shape) != 3:
            raise ScheduleError(
                f"this schedule weighs {spell_function(self)}, which needs samples of (channels,"
                f" height, width), but those of {whose} have {shape}; use a schedule without it"
            )


FUNCTIONS: SettingsRegistry[PredictionFunction] = SettingsRegistry("function", PredictionFunction)


@FUNCTIONS.register
@dataclass(frozen=True)
class Clamp(PredictionFunction):
    """min(max(x0, low), high)."""

    name: ClassVar[str] = "clamp"
    operations: ClassVar[int] = 1
    low: Number = -1.0
    high: Number = 1.0

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise SettingError(f"clamp needs low below high, not {self.low:g} and {self.high:g}")

    def __call__(self, x0: Tensor) -> Tensor:
        return x0.clamp(self.low, self.high)


@FUNCTIONS.register
@dataclass(frozen=True)
class Tanh(PredictionFunction):
    """tanh(gain (x0 + shift)): a soft step at x0 = -shift."""

    name: ClassVar[str] = "tanh"
    operations: ClassVar[int] = 3
    gain: Annotated[Number, Field(gt=0.0, le=100.0)] = 3.0
    shift: Number = 0.0

    def __call__(self, x0: Tensor) -> Tensor:
        return x0.mul(self.gain).add_(self.gain * self.shift).tanh_()


@FUNCTIONS.register
@dataclass(frozen=True)
class BoxBlur(PredictionFunction):
    """The mean over (2 radius + 1)^2 neighbours; values at the edges are repeated outside."""

    name: ClassVar[str] = "blur"
    operations: ClassVar[int] = 2
    spatial: ClassVar[bool] = True
    radius: Annotated[int, Field(ge=1, le=32)] = 1

    def __call__(self, x0: Tensor) -> Tensor:
        self.check_shape(tuple(x0.shape[1:]), "this run")
        padded = F.pad(x0, (self.radius,) * 4, mode="replicate")
        return F.avg_pool2d(padded, 2 * self.radius + 1, stride=1)


def spell_function(function: PredictionFunction) -> str:
    """Returns the text that a table names a function by: with every setting, in one order."""
    settings = (
        f"{each.name}={json.dumps(getattr(function, each.name))}"
        for each in settings_of(type(function))
    )
    return f"{function.name}:{','.join(settings)}"


@lru_cache(maxsize=256)
def read_function(text: str) -> PredictionFunction:
    """Returns the function of a text `name:key=value,...`; raises as `FUNCTIONS.make`."""
    return FUNCTIONS.make(text)
