"""Starting noise: one generator per image, so that an image depends on its seed alone."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..models.errors import SettingError


def noise(seeds: Sequence[int], shape: tuple[int, ...]) -> Tensor:
    """Standard normal noise (len(seeds), *shape), float32 on the CPU; row i from seeds[i] alone."""
    rows = [
        torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)
        for seed in seeds
    ]
    return torch.stack(rows)


def checked_seeds(seeds: Sequence[int]) -> list[int]:
    """The seeds as a list; raises SettingError if there are none or one is out of range."""
    if len(seeds) == 0:
        raise SettingError("no seeds; give one per image, such as range(64)")
    for seed in seeds:
        if not 0 <= seed < 2**63:
            raise SettingError(f"seed {seed} must lie between 0 and 2^63 - 1")
    return list(seeds)
