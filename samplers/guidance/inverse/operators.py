"""The interface of the linear operators A of y = A x0 + noise, and their registry."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from ....models.errors import SettingError, shorten
from ....models.registry import SettingsRegistry, settings_of
from ..space import shape_per_row

MOST_ROUNDS = 50  # of conjugate gradients where A A^T has no closed form

Shape = tuple[int, ...]


class Operator(ABC):
    """A linear map A from samples (B, *shape) to measurements (B, *measured), row by row.

    name: what users type.
    """

    name: ClassVar[str] = ""

    @abstractmethod
    def measure(self, shape: Shape) -> Shape:
        """Returns the shape of a measurement of one sample; raises SettingError if none fits."""

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Returns A x."""

    @abstractmethod
    def adjoint(self, y: Tensor) -> Tensor:
        """Returns A^T y."""

    def restrict(self, y: Tensor) -> Tensor:
        """Returns a measurement with 0 where nothing was measured."""
        return y

    def solve(self, v: Tensor, a: float, b: float) -> Tensor:
        """Returns (a A A^T + b I)^-1 v, with the pseudo-inverse where that is singular."""

        def apply(each: Tensor) -> tuple[Tensor, Tensor]:
            return a * self.forward(self.adjoint(each)) + b * each, each

        return sum_conjugate_steps(apply, v, min(v[0].numel(), MOST_ROUNDS))

    @property
    def files(self) -> tuple[str, ...]:
        """The files that it was made of."""
        return ()


OPERATORS: SettingsRegistry[Operator] = SettingsRegistry("operator", Operator)


def take_operator(given: Any) -> Operator:
    """Returns an operator given as such, or as `name`, `name:value` or `name:key=value,...`.

    Raises:
        FewstepError: for an unknown name or setting, a file that is no mask, or anything else.
    """
    if isinstance(given, Operator):
        return given
    if not isinstance(given, str):
        raise SettingError(
            f"operator={given!r} is not an operator; give a text, as in 'downsample:4', or a"
            " function as LinearMap(function, shape)"
        )
    name, _, value = given.partition(":")
    if not value or "=" in value:
        return OPERATORS.make(given)
    known = settings_of(OPERATORS.get(name))
    if not known:
        raise SettingError(f"{name} has no settings; write {name}, not {shorten(given)}")
    return OPERATORS.make(name, **{known[0].name: _read_value(value)})


def _read_value(text: str) -> int | float | str:
    """Returns a number where it is one; a file name otherwise."""
    try:
        return int(text) if text.isdecimal() else float(text)
    except ValueError:
        return text


def sum_conjugate_steps(
    apply: Callable[[Tensor], tuple[Tensor, Tensor]], v: Tensor, rounds: int
) -> Tensor:
    """Solves V w = v by conjugate gradients from w = 0, each row of (B, *) by itself.

    A row stops at its solution, and where a direction has no length under V, which is singular.

    Args:
        apply: direction p -> (V p, g): with g = p the sum is w, and with g = M p it is M w.
        v: (B, *).
        rounds: at most so many products with V, which is symmetric.

    Returns:
        The sum of each round's step times its g.
    """
    residual = direction = v
    start = size = _dot(v, v)
    least = (10.0 * torch.finfo(v.dtype).eps) ** 2 * start
    total: Tensor | None = None
    for _ in range(rounds):
        product, image = apply(direction)
        step = _divide(torch.where(size > least, size, 0.0), _dot(direction, product))
        moved = shape_per_row(step, image) * image
        total = moved if total is None else total + moved
        residual = residual - shape_per_row(step, v) * product
        before, size = size, _dot(residual, residual)
        direction = residual + shape_per_row(_divide(size, before), v) * direction
    assert total is not None
    return total


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Returns the inner product of each pair of rows, (B,)."""
    return (a * b).flatten(1).sum(1)


def _divide(value: Tensor, by: Tensor) -> Tensor:
    """Returns value / by where `by` is positive, and 0 elsewhere."""
    return torch.where(by > 0.0, value / torch.where(by > 0.0, by, 1.0), 0.0)
