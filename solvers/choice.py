"""The question which of several candidates an image goes on with."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..models.errors import SettingError

Rate = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Choice:
    """Candidates (M, B, *) to choose from; the answer is the index (B,) of the one for each image.

    rate:    takes (B, *) and returns one number for each image; what it is called in errors: name.
    decodes: whether it is shown images, of networks that have a VAE.
    temperature: T of the probabilities e^{value / T}.
    shares:  (B,) in [0, 1], where each image is in its cumulative probabilities; None takes the
             largest value.
    """

    rate: Rate
    name: str
    decodes: bool
    temperature: float
    shares: Tensor | None

    def pick(self, candidates: Tensor, decode: Callable[[Tensor], Tensor] | None) -> Tensor:
        """Returns the indices; raises SettingError for values that are not finite numbers (B,)."""
        shown = decode if self.decodes and decode is not None else (lambda x: x)
        values = torch.stack([self._rate(shown(each)) for each in candidates])
        if self.shares is None:
            return values.argmax(0)
        reached = (values / self.temperature).softmax(0).cumsum(0)
        return (reached < self.shares * reached[-1]).sum(0).clamp(max=len(values) - 1)

    def _rate(self, x: Tensor) -> Tensor:
        values = self.rate(x)
        if not isinstance(values, Tensor) or values.shape != x.shape[:1]:
            given = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise SettingError(
                f"{self.name} must return one number for each image, a tensor ({len(x)},), not"
                f" {given}"
            )
        wrong = int((~values.isfinite()).sum())
        if wrong:
            raise SettingError(
                f"{self.name} is NaN or infinite for {wrong} of {len(x)} images; return finite"
                " numbers, large negative ones for what is to be avoided"
            )
        return values.to(x.device, torch.float32 if x.device.type == "mps" else torch.float64)
