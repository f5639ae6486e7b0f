"""Operators on pictures: missing pixels, fewer pixels, blur, and no colour."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from ....models.devices import Constant
from ....models.errors import SettingError, shorten
from ...images import open_picture
from ..settings import Checked
from .operators import OPERATORS, Operator, Shape

LUMA = (0.299, 0.587, 0.114)  # of red, green and blue (ITU-R BT.601)
LOST = 1e-6  # of the largest: what is smaller in a A A^T + b I counts as 0


@OPERATORS.register
@dataclass(frozen=True, eq=False)
class Inpaint(Operator):
    """Keeps the pixels where a mask is white: inpaint:mask.png.

    mask: the path of a picture in black and white, or a tensor (H, W), (1, H, W) or (C, H, W) of 0
        and 1; 1 is measured.
    """

    name: ClassVar[str] = "inpaint"

    mask: Any
    _known: Constant = field(init=False, repr=False)
    _shape: Shape = field(init=False, repr=False)

    def __post_init__(self) -> None:
        named = isinstance(self.mask, str | Path)
        mask = _read_mask(Path(self.mask)) if named else _check_mask(self.mask, "the mask")
        object.__setattr__(self, "_known", Constant(mask))
        object.__setattr__(self, "_shape", tuple(mask.shape))

    def measure(self, shape: Shape) -> Shape:
        channels, *size = self._shape
        if len(shape) != 3 or [*shape[1:]] != size or channels not in (1, shape[0]):
            raise SettingError(
                f"the mask has {describe_shape(self._shape)}, and the samples have"
                f" {describe_shape(shape)}; crop or resize it"
            )
        return shape

    def forward(self, x: Tensor) -> Tensor:
        return x * self._known.on(x)

    def adjoint(self, y: Tensor) -> Tensor:
        return y * self._known.on(y)

    def restrict(self, y: Tensor) -> Tensor:
        return y * self._known.on(y)

    def solve(self, v: Tensor, a: float, b: float) -> Tensor:
        return v * _invert(a * self._known.on(v) + b)

    @property
    def files(self) -> tuple[str, ...]:
        return (str(self.mask),) if isinstance(self.mask, str | Path) else ()


@OPERATORS.register
@dataclass(frozen=True, eq=False)
class Downsample(Checked, Operator):
    """Averages squares of factor x factor pixels: downsample:4.

    factor: at least 2; it divides both sides.
    """

    name: ClassVar[str] = "downsample"

    factor: Annotated[int, Field(ge=2, strict=True)]

    def measure(self, shape: Shape) -> Shape:
        if len(shape) != 3 or shape[1] % self.factor or shape[2] % self.factor:
            raise SettingError(
                f"downsample:{self.factor} takes samples whose sides {self.factor} divides, not"
                f" {describe_shape(shape)}"
            )
        return shape[0], shape[1] // self.factor, shape[2] // self.factor

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, self.factor)

    def adjoint(self, y: Tensor) -> Tensor:
        spread = y.repeat_interleave(self.factor, -2).repeat_interleave(self.factor, -1)
        return spread / self.factor**2

    def solve(self, v: Tensor, a: float, b: float) -> Tensor:
        return v / (a / self.factor**2 + b)


@OPERATORS.register
@dataclass(frozen=True, eq=False)
class Blur(Checked, Operator):
    """Blurs with a Gaussian that goes on at the opposite edge: blur:1.5.

    sigma: its standard deviation in pixels, above 0 and at most 16.

    A A^T is diagonal in Fourier space. Where the measurement has no noise, frequencies that are
    damped below a thousandth count as not measured.
    """

    name: ClassVar[str] = "blur"

    sigma: Annotated[float, Field(gt=0, le=16)]

    def measure(self, shape: Shape) -> Shape:
        if len(shape) != 3:
            raise SettingError(f"blur takes pictures, not samples of {describe_shape(shape)}")
        return shape

    def forward(self, x: Tensor) -> Tensor:
        return _filter(x, self._compute_gains(x))

    def adjoint(self, y: Tensor) -> Tensor:
        return self.forward(y)

    def solve(self, v: Tensor, a: float, b: float) -> Tensor:
        return _filter(v, _invert(a * self._compute_gains(v) ** 2 + b))

    def _compute_gains(self, like: Tensor) -> Tensor:
        """Returns exp(-(2 pi f sigma)^2 / 2) at each frequency f of a real transform."""
        height, width = like.shape[-2:]
        down = torch.fft.fftfreq(height, device=like.device, dtype=like.dtype)
        right = torch.fft.rfftfreq(width, device=like.device, dtype=like.dtype)
        squared = down[:, None] ** 2 + right**2
        return torch.exp(-2.0 * (math.pi * self.sigma) ** 2 * squared)


@OPERATORS.register
@dataclass(frozen=True, eq=False)
class Grey(Operator):
    """Makes colour grey, .299 red + .587 green + .114 blue: grey."""

    name: ClassVar[str] = "grey"
    luma: ClassVar[Constant] = Constant(torch.tensor(LUMA, dtype=torch.float64)[:, None, None])

    def measure(self, shape: Shape) -> Shape:
        if len(shape) != 3 or shape[0] != 3:
            raise SettingError(f"grey takes samples in colour, not {describe_shape(shape)}")
        return 1, *shape[1:]

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.luma.on(x)).sum(1, keepdim=True)

    def adjoint(self, y: Tensor) -> Tensor:
        return y * self.luma.on(y)

    def solve(self, v: Tensor, a: float, b: float) -> Tensor:
        return v / (a * sum(each * each for each in LUMA) + b)


def describe_shape(shape: Shape) -> str:
    """Returns the shape of a sample in words."""
    if len(shape) != 3:
        return f"shape {tuple(shape)}"
    colour = {1: "grey", 3: "colour"}.get(shape[0], f"{shape[0]} channels")
    return f"{shape[2]}x{shape[1]} pixels in {colour}"


def _filter(x: Tensor, gains: Tensor) -> Tensor:
    filtered: Tensor = torch.fft.irfft2(torch.fft.rfft2(x) * gains, s=x.shape[-2:])
    return filtered


def _invert(diagonal: Tensor) -> Tensor:
    """Returns 1 / diagonal, and 0 where it is nothing beside its largest."""
    lost = diagonal <= LOST * diagonal.amax()
    return torch.where(lost, 0.0, 1.0 / torch.where(lost, 1.0, diagonal))


def _read_mask(path: Path) -> Tensor:
    picture = open_picture(path)
    if picture.mode not in ("1", "L", "RGB"):
        raise SettingError(f"{shorten(path)} has mode {picture.mode}; a mask is black and white")
    values = torch.from_numpy(np.array(picture.convert("L")))
    if not bool(((values == 0) | (values == 255)).all()):
        raise SettingError(
            f"{shorten(path)} has other colours than black and white; make it black where pixels"
            " are missing and white where they are measured"
        )
    return _check_mask(values / 255, shorten(path))


def _check_mask(given: Any, called: str) -> Tensor:
    """Returns a mask (1 or C, H, W) of 0.0 and 1.0.

    Raises:
        SettingError: if it is none, or leaves nothing.
    """
    fits = isinstance(given, Tensor) and given.ndim in (2, 3) and given.numel()
    if not fits or not bool(((given == 0) | (given == 1)).all()):
        raise SettingError(
            f"{called} must be the path of a picture, or a tensor (H, W) or (C, H, W) of 0 and 1"
        )
    if not bool(given.any()):
        raise SettingError(f"{called} is black all over, which leaves nothing that was measured")
    mask: Tensor = given.float()
    return mask if mask.ndim == 3 else mask[None]
