"""Starting noise: one generator per image, so that an image depends on its seed alone."""

from collections.abc import Sequence

import torch
from torch import Tensor


def noise(seeds: Sequence[int], shape: tuple[int, ...]) -> Tensor:
    """Standard normal noise (len(seeds), *shape), float32 on the CPU; row i from seeds[i] alone."""
    rows = [
        torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)
        for seed in seeds
    ]
    return torch.stack(rows)
