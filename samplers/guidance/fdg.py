"""Frequency-decoupled guidance: every band of c - u has a scale of its own (arXiv:2506.19713)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate, pad

from ...models.errors import SettingError
from .base import Guide, Moment, Setup, register
from .settings import Both, Scaled

Gain = Annotated[float, Field(ge=0, allow_inf_nan=False)]


def _gather_numbers(given: Any) -> Any:
    return (given,) if isinstance(given, int | float) else given


@register
@dataclass(frozen=True)
class FDG(Scaled):
    """x0 = u + sum_k w_k L_k (c - u) with the bands L_k of a Laplacian pyramid, whose sum is 1.

    The coarsest band has the scale itself, a finer one w_k = 1 + (scale - 1) gain_k. With one band,
    or gains of 1, it is CFG.

    scale: of the coarsest band; 1 is off.
    gains: at least 0, of the finer bands, the finest first. The published scales 10 and 5 are scale
           5 with the default.

    A level of the pyramid is the one above, smoothed by the binomial kernel of 5 x 5 pixels and
    halved bilinearly, over the last two axes of the state; edges repeat.
    """

    name: ClassVar[str] = "fdg"
    source: ClassVar[str] = "arXiv:2506.19713"

    gains: Annotated[tuple[Gain, ...], BeforeValidator(_gather_numbers)] = (2.25,)

    def check(self, setup: Setup) -> None:
        shape = setup.network.shape
        if not self.off and len(shape) > 1:  # in pipelines it is not known yet
            check_bands(shape, len(self.gains))

    def guide(self, setup: Setup) -> Guide:
        finer = (1.0 + (self.scale - 1.0) * gain for gain in self.gains)
        return BandGuide((*finer, self.scale))


@dataclass(frozen=True)
class BandGuide(Both):
    """The scales of the bands, the finest first."""

    scales: tuple[float, ...]

    def blend(self, uncond: Tensor, cond: Tensor, x: Tensor, moment: Moment) -> Tensor:
        return weigh_bands(cond - uncond, self.scales).add_(uncond)


def check_bands(shape: Sequence[int], halvings: int) -> None:
    """Raises SettingError if a state (*, H, W) cannot be halved so often."""
    if len(shape) < 3:
        raise SettingError(
            "fdg splits a picture (.., H, W) into bands, and this is a list of tokens; take apg or"
            " magnitude, which need no picture"
        )
    most = (max(shape[-2:]) - 1).bit_length()
    if halvings > most:
        raise SettingError(
            f"fdg: a state of {shape[-2]} x {shape[-1]} allows {most} halvings, one for each gain,"
            f" not {halvings}; give fewer gains"
        )


def weigh_bands(x: Tensor, scales: Sequence[float]) -> Tensor:
    """Returns x (B, *, H, W) with each band multiplied by its scale, the finest band first."""
    check_bands(x.shape[1:], len(scales) - 1)
    levels = [x.reshape(-1, 1, *x.shape[-2:])]
    for _ in scales[1:]:
        levels.append(_halve(levels[-1]))
    weighed = levels[-1] * scales[-1]
    for finer, coarser, scale in zip(levels[-2::-1], levels[:0:-1], scales[-2::-1], strict=True):
        band = finer - _enlarge(coarser, finer)
        weighed = _enlarge(weighed, finer).add_(band, alpha=scale)
    return weighed.reshape(x.shape)


def _halve(x: Tensor) -> Tensor:
    smooth = pad(x, (2, 2, 2, 2), mode="replicate")
    for _ in range(4):  # four means of neighbours are the binomial kernel
        smooth = avg_pool2d(smooth, 2, 1)
    size = [-(-side // 2) for side in x.shape[-2:]]
    return interpolate(smooth, size=size, mode="bilinear", align_corners=False)


def _enlarge(x: Tensor, like: Tensor) -> Tensor:
    return interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)
