"""CFG-cache: the difference c - u is held in two bands, each with a gain of its own (FasterCache).

At some steps of a window u is not evaluated. There x0 = c + (scale - 1) (g_low low + g_high high),
with the low and the high frequencies of c - u of the last step with both (arXiv:2410.19355,
equations 9 to 11). In a band's own window its gain g is multiplied at each skipped step, as low
frequencies of the difference grow early in a run and high ones late.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from ...models.denoiser import Ask
from ...models.errors import SettingError
from .base import BOTH, COND, Guide, Moment, Setup, register
from .cfg import Span
from .forecast import PastDifferences, check_steps
from .settings import Scaled
from .space import Space, choose_prediction

Gain = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fractions = tuple[float, float]


@register
@dataclass(frozen=True)
class CFGCache(Scaled):
    """CFG whose difference c - u is held at some steps, low and high frequencies apart.

    scale:  as in `CFG`.
    every:  in the window both branches are evaluated at every so many-th step of the run, counted
            from its first; 1 is CFG to the bit.
    window: (low, high), fractions of the steps taken, outside of which both are; published is from
            timestep 640 on.
    low_gain, high_gain:     what a band is multiplied by at each skipped step in its own window.
    low_window, high_window: these, in fractions of the steps.
    space:  the prediction whose difference is held; it was published in the network's own output, v
            here.

    The low band is a disc of radius min(H, W) // 5 around the mean, over the last two axes of the
    state.
    """

    name: ClassVar[str] = "cfg-cache"
    source: ClassVar[str] = "arXiv:2410.19355"

    every: Annotated[int, Field(ge=1)] = 5
    window: Fractions = (0.36, 1.0)
    low_gain: Gain = 1.1
    high_gain: Gain = 1.1
    low_window: Fractions = (0.1, 0.9)
    high_window: Fractions = (0.7, 1.0)
    space: Space = "v"

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.spans  # held to their range

    @property
    def spans(self) -> tuple[Span, Span, Span]:
        """Where u is left out, and where the low and the high band gain."""
        windows = (self.window, self.low_window, self.high_window)
        skipped, low, high = (Span(*window, "step") for window in windows)
        return skipped, low, high

    def check(self, setup: Setup) -> None:
        check_steps(self.name, setup)
        if self.off or self.every == 1:
            return
        if len(setup.network.shape) == 2:
            raise _refuse_tokens()
        if all(self.list_flags(setup.grid.steps)):
            raise SettingError(
                f"cfg-cache: the window {self.window[0]:g},{self.window[1]:g} leaves out none of"
                f" {setup.grid.steps} unconditional evaluations; widen it, or take cfg"
            )

    def list_flags(self, steps: int) -> tuple[bool, ...]:
        """Returns for each step whether both branches are evaluated."""
        inside = self.spans[0]
        return tuple(n % self.every == 0 or not inside.covers_step(n, steps) for n in range(steps))

    def list_gains(self, steps: int) -> tuple[tuple[float, float], ...]:
        """Returns the factors of the low and the high band at each step."""
        gains, flags = [(1.0, 1.0)], self.list_flags(steps)
        _, low, high = self.spans
        for n in range(1, steps):
            before = (1.0, 1.0) if flags[n - 1] else gains[-1]
            growth = (
                self.low_gain if low.covers_step(n, steps) else 1.0,
                self.high_gain if high.covers_step(n, steps) else 1.0,
            )
            gains.append((before[0] * growth[0], before[1] * growth[1]))
        return tuple(gains)

    def guide(self, setup: Setup) -> Guide:
        return CFGCacheGuide(self, setup)


class CFGCacheGuide(Guide):
    """Evaluates c - u where the flags say so, and holds its two bands elsewhere."""

    def __init__(self, policy: CFGCache, setup: Setup) -> None:
        self.scale = policy.scale
        self.flags = policy.list_flags(setup.grid.steps)
        self.gains = policy.list_gains(setup.grid.steps)
        kind = choose_prediction(policy.space, setup.grid.schedule)
        self.low, self.high = (PastDifferences(0, "lam", kind) for _ in range(2))

    def ask(self, moment: Moment) -> tuple[Ask, ...]:
        return BOTH if self.flags[moment.step] or not self.low.points else COND

    def combine(self, outputs: Sequence[Tensor], x: Tensor, moment: Moment) -> Tensor:
        if len(outputs) == 1:
            low, high = self.gains[moment.step]
            difference = self.low.at(moment.node) * low
            difference.add_(self.high.at(moment.node), alpha=high)
            return outputs[0].add(difference, alpha=self.scale - 1.0)
        uncond, cond = outputs
        if not all(self.flags):
            low_band, high_band = split_bands(cond - uncond)
            self.low.add(moment.node, low_band)
            self.high.add(moment.node, high_band)
        return torch.lerp(uncond, cond, self.scale)


def split_bands(x: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the low and the high frequencies of x (B, .., H, W); they add up to it."""
    if x.ndim < 4:
        raise _refuse_tokens()
    height, width = x.shape[-2:]
    rows, columns = (torch.fft.fftfreq(n, 1.0 / n, device=x.device) for n in (height, width))
    distance = rows[:, None] ** 2 + columns[: width // 2 + 1] ** 2
    spectrum = torch.fft.rfft2(x) * (distance <= (min(height, width) // 5) ** 2)
    low = torch.fft.irfft2(spectrum, s=(height, width))
    return low, x - low


def _refuse_tokens() -> SettingError:
    return SettingError(
        "cfg-cache splits a picture (.., H, W) into frequencies, and this is a list of tokens; take"
        " guidance-forecast, which needs no picture"
    )
