"""The difference c - u changes slowly: at some steps it is forecast instead of evaluated.

x0 = c + (scale - 1) d, where d is c - u of the last step with both branches (order 0), or the
polynomial through the last two or three (orders 1 and 2). A skipped step costs one row instead of
two, and unlike dropping the guidance it does not change the equation that is solved.
"""

import math
import re
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import BeforeValidator, Field
from torch import Tensor

from ...models.denoiser import Ask
from ...models.errors import SettingError
from ...models.prediction import Prediction
from ...models.schedule import Node
from .base import BOTH, COND, Guide, Moment, Setup, register
from .settings import Scaled
from .space import Space, choose_prediction, compute_factor

Mask = Annotated[str, BeforeValidator(lambda given: str(given))]
Clock = Literal["lam", "t"]


@dataclass(frozen=True)
class Pattern:
    """One flag per step.

    warmup: the first steps have both branches; so has every so many-th after them, and the rest
            only the conditional one. every = 0 leaves all after the warm-up out.
    mask:   the flags themselves instead, as "1101010": 1 for both branches. The first is 1.
    tail:   last steps that have only the conditional one.
    """

    warmup: int
    every: int
    mask: str = ""
    tail: int = 0

    def __post_init__(self) -> None:
        if self.mask and (set(self.mask) - {"0", "1"} or self.mask[0] != "1"):
            raise SettingError(
                f"a mask has a 1 for each step with both branches and a 0 for each without, and"
                f" begins with 1, as 1101010; not {self.mask!r}"
            )

    def list_flags(self, steps: int) -> tuple[bool, ...]:
        """Returns one flag per step; raises SettingError if the mask is for another number."""
        if not self.mask:
            return tuple(self._both(n) and (n < steps - self.tail or n == 0) for n in range(steps))
        if len(self.mask) != steps:
            raise SettingError(
                f"the mask {self.mask} is for {len(self.mask)} steps, and this run has {steps};"
                " give one digit for each"
            )
        return tuple(digit == "1" for digit in self.mask)

    def _both(self, n: int) -> bool:
        after = n - self.warmup + 1
        return after <= 0 or (self.every > 0 and after % self.every == 0)


class PastDifferences:
    """The last differences in x0 and where they were found.

    order: degree of the polynomial through them; 0 holds the last one. The first answers have as
           many points as there are.
    clock: its variable; a node with lam = -inf has no place on "lam" and is held only.
    kind:  the prediction whose difference is held or extrapolated. Where it says nothing of x0, as
           eps at alpha = 0 and all but x0 at sigma = 0, the difference of x0 is held instead.
    """

    def __init__(self, order: int, clock: Clock, kind: Prediction = Prediction.X0) -> None:
        self.clock, self.kind = clock, kind
        self.points: deque[tuple[Node, Tensor]] = deque(maxlen=order + 1)

    def add(self, node: Node, difference: Tensor) -> None:
        """Takes in c - u (B, *) in x0; a second one at the same node replaces the first."""
        if self.points and self.points[0][0] == node:
            self.points.popleft()
        self.points.appendleft((node, difference))

    def at(self, node: Node) -> Tensor:
        """Returns c - u in x0 at a node."""
        out: Tensor | None = None
        for weight, (place, difference) in self._weigh(node):
            share = self._convert(weight, place, node)
            out = difference * share if out is None else out.add(difference, alpha=share)
        if out is None:
            raise ValueError("no difference is known yet")
        return out

    def _convert(self, weight: float, place: Node, node: Node) -> float:
        """Returns a weight in the kind as one of x0, which is held where the kind says nothing."""
        before, after = compute_factor(place, self.kind), compute_factor(node, self.kind)
        known = math.isfinite(before) and before != 0.0 != after
        return weight * before / after if known else weight

    def _weigh(self, node: Node) -> list[tuple[float, tuple[Node, Tensor]]]:
        place = self._read_coordinate(node)
        usable = [each for each in self.points if self._has_place(each[0])]
        if not math.isfinite(place) or len(usable) < 2:
            return [(1.0, self.points[0])] if self.points else []
        weights = _compute_lagrange([self._read_coordinate(each[0]) for each in usable], place)
        return list(zip(weights, usable, strict=True))

    def _has_place(self, node: Node) -> bool:
        """Returns whether a polynomial can go through the difference at a node."""
        factor = compute_factor(node, self.kind)
        return math.isfinite(self._read_coordinate(node)) and math.isfinite(factor) and factor != 0

    def _read_coordinate(self, node: Node) -> float:
        return node.lam if self.clock == "lam" else node.t


def _compute_lagrange(places: Sequence[float], at: float) -> list[float]:
    """Returns the weights of values at the places in the polynomial through them, elsewhere."""
    return [
        math.prod((at - other) / (place - other) for other in places if other != place)
        for place in places
    ]


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
    space:  the prediction whose difference is forecast: "eps", "v" (eps - x0 on rectified flow) or
            "x0". They differ by a number of the node: a held difference of eps is one of x0 that
            falls with sigma / alpha, one of v falls with sigma.
    """

    name: ClassVar[str] = "guidance-forecast"
    source: ClassVar[str] = "ours; order 0 after FastVideo"

    order: Literal[0, 1, 2] = 0
    every: Annotated[int, Field(ge=0)] = 2
    warmup: Annotated[int, Field(ge=1)] = 3
    tail: Annotated[int, Field(ge=0)] = 0
    mask: Mask = ""
    in_: Clock = "lam"
    space: Space = "eps"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mask and (self.every, self.warmup, self.tail) != (2, 3, 0):
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


TODAY: dict[str, str | int] = {
    "space": GuidanceForecast.space,
    "warmup": GuidanceForecast.warmup,
}
OLDER: dict[str, str | int] = {"space": "x0", "warmup": 1}  # of pictures that do not name them


class ForecastGuide(Guide):
    """Evaluates c - u where the flags say so and forecasts it elsewhere."""

    def __init__(self, scale: float, flags: Sequence[bool], past: PastDifferences) -> None:
        self.scale, self.flags, self.past = scale, flags, past

    def ask(self, moment: Moment) -> tuple[Ask, ...]:
        return BOTH if self.flags[moment.step] or not self.past.points else COND

    def combine(self, outputs: Sequence[Tensor], x: Tensor, moment: Moment) -> Tensor:
        if len(outputs) == 1:
            return outputs[0].add(self.past.at(moment.node), alpha=self.scale - 1.0)
        uncond, cond = outputs
        self.past.add(moment.node, cond - uncond)
        return torch.lerp(uncond, cond, self.scale)


def write_forecast(spec: str, defaults: Mapping[str, str | int] = TODAY) -> str:
    """Returns a typed guidance with the defaults that have changed, if it is a forecast.

    Those that it names stay, and a mask has no warm-up.
    """
    name = GuidanceForecast.name
    if not re.match(rf"{name}(?![\w-])", spec):
        return spec
    settings = spec.removeprefix(name)
    typed = set(re.findall(r"[:,]\s*(\w+)\s*=", settings.partition("+")[0]))
    missing = {key: value for key, value in defaults.items() if key not in typed}
    if "mask" in typed:
        missing.pop("warmup", None)
    if not missing:
        return spec
    written = ",".join(f"{key}={value}" for key, value in missing.items())
    return f"{name}:{written}" + re.sub("^:", ",", settings)


def check_steps(name: str, setup: Setup) -> None:
    """Raises SettingError if the steps of a run cannot be counted beforehand."""
    if setup.adaptive:
        raise SettingError(
            f"{name} goes by the number of the step, and an adaptive solver chooses its own steps;"
            " take a solver with fixed ones"
        )
