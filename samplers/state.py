"""The state of a run whose network is called from outside, and the sample that the caller holds."""

import torch
from torch import Tensor


def to_state(sample: Tensor) -> Tensor:
    """Returns a sample as the state is held: float32, or float64 if it is that."""
    return sample.to(torch.promote_types(sample.dtype, torch.float32))


def rescale(x: Tensor, factor: float) -> Tensor:
    """Returns factor x, and x itself where the factor is 1."""
    return x if factor == 1.0 else factor * x
