"""The difference c - u changes slowly: at some steps it is forecast instead of evaluated.

x0 = c + (scale - 1) d, where d is c - u of the last step with both branches (order 0), or the
polynomial through the last two or three (orders 1 and 2). A skipped step costs one row instead of
two, and unlike dropping the guidance it does not change the equation that is solved.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import BeforeValidator, Field
from torch import Tensor

from ...models.denoiser import Ask
from ...models.errors import SettingError
from .base import BOTH, COND, Guide, Moment, Setup
from .extrapolate import Clock, PastDifferences
from .pattern import Pattern
from .registry import register
from .settings import Scaled
from .space import Space, choose_prediction

Mask = Annotated[str, BeforeValidator(lambda given: str(given))]


@register
@dataclass(frozen=True)
class GuidanceForecast(Scaled):
    """CFG whose difference c - u is held or extrapolated at some steps.

    scale:  as in `CFG`.
    order:  0 holds the last difference; 1 and 2 extrapolate the last two or three.
    every:  after the warm-up, every so many-th step evaluates both branches; 1 is CFG to the bit,
            0 evaluates no further one.
    warmup: first steps that evaluate both branches, at least 1; tail: last steps that do not.
    mask:   one digit per step, 1 for both branches, instead of those three, as 1110101010.
    in_:    the variable of the polynomial, "lam" or "t".
    space:  the prediction whose difference is forecast: "x0", "v" (eps - x0 on rectified flow) or
            "eps". They differ by a number of the node: a held difference of v is one of x0 that
            falls with sigma.
    """

    name: ClassVar[str] = "guidance-forecast"
    source: ClassVar[str] = "ours; order 0 after FastVideo"

    order: Literal[0, 1, 2] = 0
    every: Annotated[int, Field(ge=0)] = 2
    warmup: Annotated[int, Field(ge=1)] = 1
    tail: Annotated[int, Field(ge=0)] = 0
    mask: Mask = ""
    in_: Clock = "lam"
    space: Space = "x0"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mask and (self.every, self.warmup, self.tail) != (2, 1, 0):
            raise SettingError(
                "guidance-forecast: a mask is the whole pattern; drop every, warmup and tail"
            )
        _ = self.pattern  # held to its form

    @property
    def pattern(self) -> Pattern:
        return Pattern(self.warmup, self.every, self.mask, self.tail)

    def check(self, setup: Setup) -> None:
        check_steps(self.name, setup)
        if not self.off:
            self.pattern.list_flags(setup.grid.steps)

    def guide(self, setup: Setup) -> Guide:
        kind = choose_prediction(self.space, setup.grid.schedule)
        past = PastDifferences(self.order, self.in_, kind)
        return ForecastGuide(self.scale, self.pattern.list_flags(setup.grid.steps), past)


class ForecastGuide(Guide):
    """Evaluates c - u where the flags say so and forecasts it elsewhere."""

    def __init__(self, scale: float, flags: Sequence[bool], past: PastDifferences) -> None:
        self.scale, self.list_flags, self.past = scale, flags, past

    def ask(self, moment: Moment) -> tuple[Ask, ...]:
        return BOTH if self.list_flags[moment.step] or not self.past.held else COND

    def combine(self, outputs: Sequence[Tensor], x: Tensor, moment: Moment) -> Tensor:
        if len(outputs) == 1:
            return outputs[0].add(self.past.at(moment.node), alpha=self.scale - 1.0)
        uncond, cond = outputs
        self.past.add(moment.node, cond - uncond)
        return torch.lerp(uncond, cond, self.scale)


def check_steps(name: str, setup: Setup) -> None:
    """Raises SettingError if the steps of a run cannot be counted beforehand."""
    if setup.adaptive:
        raise SettingError(
            f"{name} goes by the number of the step, and an adaptive solver chooses its own steps;"
            " take a solver with fixed ones"
        )
