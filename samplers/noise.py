"""Noise: one generator per image, so that an image depends on its seed alone."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..models.arguments import Integers, as_integers
from ..models.errors import SettingError
from ..models.seeds import make_generator


class Noise:
    """Standard normal noise for a batch: row i of every draw comes from seeds[i] alone."""

    def __init__(self, seeds: Sequence[int], shape: tuple[int, ...]) -> None:
        self.shape = shape
        self.generators = [make_generator(seed) for seed in seeds]

    def draw(self) -> Tensor:
        """Returns the next (len(seeds), *shape), float32 on the CPU."""
        rows = [
            torch.randn(self.shape, generator=generator, dtype=torch.float32)
            for generator in self.generators
        ]
        return torch.stack(rows)


def check_seeds(given: Integers) -> list[int]:
    """Returns the seeds as a list; raises SettingError if there are none or one is out of range."""
    seeds = as_integers(given, "seeds")
    if not seeds:
        raise SettingError("no seeds; give one per image, such as range(64)")
    for seed in seeds:
        if not 0 <= seed < 2**63:
            raise SettingError(f"seed {seed} must lie between 0 and 2^63 - 1")
    return seeds
