"""An operator from a function: its transpose by differentiation, solved with by iteration."""

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

from ....models.errors import SettingError, reason_of
from .operators import Operator, Shape


class LinearMap(Operator):
    """A linear function of samples.

    Args:
        function: (B, *shape) -> (B, *measured), linear, each row by itself.
        shape: of one sample.
        adjoint: its transpose, (B, *measured) -> (B, *shape); None differentiates the function.

    Raises:
        SettingError: if the function cannot be called so, is not linear, or has another transpose.
    """

    name: ClassVar[str] = "function"

    def __init__(
        self,
        function: Callable[[Tensor], Tensor],
        shape: Shape,
        adjoint: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.function, self.shape, self.transpose = function, tuple(shape), adjoint
        self.measured = self._check()

    def measure(self, shape: Shape) -> Shape:
        if shape != self.shape:
            raise SettingError(
                f"the operator is for samples of shape {self.shape}, and these have {shape}"
            )
        return self.measured

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)

    def adjoint(self, y: Tensor) -> Tensor:
        if self.transpose is not None:
            return self.transpose(y)
        with torch.inference_mode(False), torch.enable_grad():
            x = y.new_zeros(len(y), *self.shape).requires_grad_()
            (back,) = torch.autograd.grad(self.function(x), x, y.clone())
        return back

    def _check(self) -> Shape:
        """Returns the shape of a measurement, from two samples."""
        for dtype in (torch.float32, torch.float64):  # a matrix may be of either
            try:
                return self._compare(dtype)
            except SettingError:
                raise
            except (RuntimeError, TypeError, ValueError, LookupError) as error:
                failure = error
        raise SettingError(
            f"the operator cannot be called with samples of shape {self.shape}:"
            f" {reason_of(failure)}"
        ) from failure

    def _compare(self, dtype: torch.dtype) -> Shape:
        """Returns the shape of a measurement; raises SettingError for a map that is not linear."""
        x = torch.randn(2, *self.shape, generator=torch.Generator().manual_seed(0), dtype=dtype)
        y, mixed = self.function(x), self.function(2.0 * x + x.flip(0))
        if not torch.allclose(mixed, 2.0 * y + y.flip(0), rtol=1e-3, atol=1e-3):
            raise SettingError("the operator is not linear: f(2 a + b) is not 2 f(a) + f(b)")
        back = self.adjoint(y)
        if back.shape != x.shape or not torch.allclose((y * y).sum(), (back * x).sum(), rtol=1e-3):
            raise SettingError("the adjoint is not the operator's: <A x, y> is not <x, A^T y>")
        return tuple(y.shape[1:])
