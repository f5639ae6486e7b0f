"""The common part of the policies' settings: checked fields, and a scale."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cache
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from ...models.denoiser import Ask, Branch
from ...models.errors import SettingError
from ...models.schedule import TimeGrid
from .base import BOTH, Conditional, Guidance, Guide, Moment, Setup

LARGEST_SCALE = 1e6  # of guidance; a hundred times less leaves nothing of an image


class Checked:
    """A dataclass whose fields are held to their annotations as it is made.

    Raises:
        SettingError: for a field out of its range, in one line.
    """

    def __post_init__(self) -> None:
        cls: Any = type(self)
        for name, adapter in _adapters(cls).items():
            given = getattr(self, name)
            try:
                value = adapter.validate_python(given)
            except ValidationError as error:
                said = error.errors(include_url=False)[0]["msg"].removeprefix("Value error, ")
                called = getattr(self, "name", cls.__name__)
                raise SettingError(f"{called}: {name.rstrip('_')}={given!r}: {said}") from error
            object.__setattr__(self, name, value)


@cache
def _adapters(cls: Any) -> dict[str, TypeAdapter[Any]]:
    hints = get_type_hints(cls, include_extras=True)
    return {field.name: TypeAdapter(hints[field.name]) for field in fields(cls)}


@dataclass(frozen=True)
class Scaled(Checked, Guidance, ABC):
    """The common part of policies that stretch the difference c - u.

    scale: of guidance, as in `CFG`; 1 is off and costs one branch.
    """

    scale: float

    def __post_init__(self) -> None:
        super().__post_init__()
        check_scale(self.scale)

    @property
    def off(self) -> bool:
        return self.scale == 1.0

    def needs(self, grid: TimeGrid) -> set[Branch]:
        return {Branch.COND} if self.off else {ask.branch for ask in BOTH}

    def begin(self, setup: Setup) -> Guide:
        return Conditional() if self.off else self.guide(setup)

    @abstractmethod
    def guide(self, setup: Setup) -> Guide:
        """Returns the guide of settings that are not off."""


class Both(Guide):
    """A guide that evaluates both branches everywhere; `blend` is its rule."""

    def ask(self, moment: Moment) -> tuple[Ask, ...]:
        return BOTH

    def combine(self, outputs: Sequence[Tensor], x: Tensor, moment: Moment) -> Tensor:
        uncond, cond = outputs
        return self.blend(uncond, cond, x, moment)

    @abstractmethod
    def blend(self, uncond: Tensor, cond: Tensor, x: Tensor, moment: Moment) -> Tensor:
        """Returns the guided x0 (B, *) of two x0, at the state x."""


def check_scale(scale: float) -> None:
    """Raises SettingError if it is no number, or one that drives every state beyond float32."""
    if not math.isfinite(scale):
        raise SettingError(f"a guidance scale must be a number, not {scale}; 1 is off")
    if abs(scale) > LARGEST_SCALE:
        raise SettingError(
            f"a guidance scale must lie within {LARGEST_SCALE:g}, not be {scale:g}; 1 is off"
        )
