"""SeaCache: the change of the state, seen through a filter of its signal (arXiv:2602.18993)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass as plain
from dataclasses import replace
from functools import lru_cache
from typing import Any, ClassVar, Literal

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from ..architectures import architecture_of
from ..devices import Reading
from ..errors import ModelError, SettingError
from .base import Accumulated, CacheInfo, Keep, register
from .calls import CallState
from .gate import Gate
from .predictors import PredictorSetting, choose_predictor

FARTHEST = 1e6  # sigma / alpha, and its inverse: beyond, the filter no longer changes
FLOOR = 1e-16  # of a squared frequency, which is 0 for the mean


@register
@dataclass(frozen=True)
class SeaCache(Accumulated):
    """Skips until the changes of a filtered signal add up to the threshold.

    error_i = mean |W x_i - W x_{i-1}| / mean |W x_{i-1}|, each x with the W of its own call,
    W = product over the axes of P / (P + (sigma / alpha)^2) with P = 1 / |f|^p, over its mean.

    It takes out what is noise at this time, as the signal has a spectrum that falls with |f|^p.
    The axes are those of a picture (p = 2) or with the frames those of a video (p = 3). A state in
    tokens is laid out as the network is told, and without that as a square.

    threshold: of the sum since the last full call; .25 in diffusers, for the input of the network.
               The authors' .3 and .6 for FLUX, .2 for Wan are for reads=signal.
    reads:     what x is: "input" of the network, as in diffusers, or "signal", the input of the
               first block after its modulation, as the authors have it.
    warmup, final, max_consecutive, reduce, together: see `Gated`; published is reduce=mean.
    levels:    sigma / alpha of each call, for a loop of your own; a sampler and pipelines of
               diffusers say it themselves.
    channels:  the axis of the channels; None is 1, or 2 where the card of the network says that
               frames come first.
    predictor: of the residual of all blocks: a line by default, as in diffusers; the authors' is
               reuse.
    """

    info: ClassVar[CacheInfo] = CacheInfo(
        name="seacache",
        decides="accumulated change of the filtered input or signal",
        keeps="residual of the stack",
        runs_on="transformers",
        source="arXiv:2602.18993",
    )

    threshold: float = 0.25
    reads: Literal["input", "signal"] = "input"
    levels: tuple[float, ...] | None = None
    channels: int | None = None
    predictor: PredictorSetting | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.channels is not None and not 1 <= self.channels <= 4:
            raise SettingError(f"channels is an axis, 1 to 4, not {self.channels}; 1 is usual")
        if not all(level >= 0.0 for level in self.levels or ()):
            raise SettingError("levels must be numbers of at least 0: sigma / alpha of each call")

    def fit_to(self, root: nn.Module) -> "SeaCache":
        card = architecture_of(root)
        first = card is not None and card.frames_first
        return self if self.channels is not None else replace(self, channels=2 if first else 1)

    def check(self, calls: int) -> None:
        super().check(calls)
        if not self.off and self.levels is not None and len(self.levels) != calls:
            raise SettingError(
                f"levels has {len(self.levels)} numbers, and the run {calls} calls; give one each"
            )

    @property
    def keep(self) -> Keep:
        return Keep("residual", choose_predictor(self.predictor, 1, first=self.warmup))

    @property
    def gate(self) -> Gate | None:
        axis = self.channels or 1
        return SeaGate(
            self.reads, every_call=True, reduce=self.reduce, levels=self.levels, channels=axis
        )


@plain(frozen=True)
class SeaGate(Gate):
    """Compares a tensor through the filter of its own call.

    levels:   sigma / alpha of each call; None: as the call says. A further stage of a step is at
              another time, so there the call says it in any case.
    channels: the axis that is no place.
    """

    levels: tuple[float, ...] | None = None
    channels: int = 1

    def look(self, x: Tensor, call: CallState) -> Tensor:
        first = call.place.stage == 0
        level = self.levels[call.place.index] if self.levels and first else call.level
        if level is None:
            raise SettingError(
                "seacache must know sigma / alpha of each call, which this network's time does not"
                " tell; use a Sampler or a pipeline, or give levels=[..], one number for each call"
            )
        if x.ndim == 3:
            grid = find_grid(call.asked[1], x.shape[1])
            x, axes = x.reshape(len(x), *grid, -1), list(range(1, len(grid) + 1))
        else:
            axes = [axis for axis in range(1, x.ndim) if axis != self.channels]
        return filter_signal(x, axes, level, power=3.0 if len(axes) == 3 else 2.0)


def filter_signal(x: Tensor, axes: Sequence[int], level: float, power: float) -> Tensor:
    """Returns x (B, *) through the filter for sigma / alpha = level, along these axes."""
    wide = x if x.dtype.itemsize >= 4 else x.float()
    spectrum = torch.fft.rfftn(wide, dim=axes)
    for axis in axes:
        size = x.shape[axis]
        gain = compute_gain(size, level, power).to(x.device, wide.dtype, non_blocking=True)
        gain = gain[: spectrum.shape[axis]]  # of the last axis, real input needs one half
        spectrum = spectrum * gain.reshape(-1, *[1] * (x.ndim - 1 - axis % x.ndim))
    filtered: Tensor = torch.fft.irfftn(spectrum, s=[x.shape[axis] for axis in axes], dim=axes)
    return filtered


def compute_gain(size: int, level: float, power: float) -> Tensor:
    """Returns the filter (size,) of one axis, of mean 1, in double precision on the CPU."""
    noise = min(max(level, 1.0 / FARTHEST), FARTHEST) ** 2
    spectrum = 1.0 / (torch.fft.fftfreq(size, dtype=torch.float64).abs() ** power + FLOOR)
    gain = spectrum / (spectrum + noise)
    normed: Tensor = gain / gain.mean()
    return normed


def find_grid(asked: Mapping[str, Any], tokens: int) -> tuple[int, ...]:
    """Returns the grid of so many tokens, from what the network is asked with; else a square.

    Raises:
        ModelError: if that is not their number.
    """
    grid: tuple[int, ...] = (math.isqrt(tokens),) * 2
    if {"num_frames", "height", "width"} <= asked.keys():
        grid = tuple(int(asked[name]) for name in ("num_frames", "height", "width"))
    elif asked.get("img_shapes"):
        first = asked["img_shapes"][0]
        grid = tuple(map(int, first[0] if isinstance(first, list) else first))
    elif isinstance(asked.get("img_ids"), Tensor):
        grid = _read_last_place(asked["img_ids"])
    if math.prod(grid) != tokens:
        raise ModelError(
            f"seacache takes {tokens} tokens for a grid of {' x '.join(map(str, grid))}, which they"
            " are not; take easycache or dicache, which need no grid"
        )
    return grid


@lru_cache(maxsize=4)
def _read_last_place(ids: Tensor) -> tuple[int, int]:
    """Returns the height and width of a grid whose tokens have ids (.., frame, row, column, ..)."""
    _, row, column, *_ = Reading(ids.reshape(-1, ids.shape[-1])[-1]).numbers()
    return int(row) + 1, int(column) + 1
