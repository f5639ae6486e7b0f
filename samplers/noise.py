"""Noise from seeds of any size: one generator per image, so that it depends on its seed alone.

The noise of a process is standard normal z, but on PFGM++ (`EDM.aug_dim` = D) it is Student's t,

    z sqrt(D / c),   c = 2 g,   g ~ Gamma(D / 2),

with one c, a chi^2 of D degrees of freedom, for each image (arXiv:2302.04265; the radius of that
kernel over sigma, squared and over the dimension N, is F(N, D)). It tends to z as D grows.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..models.arguments import Integers, as_integers
from ..models.errors import ModelError, SettingError
from ..models.schedule import Node, NoiseSchedule

WORD = 2**32
STATE = slice(3, 627)  # where a generator of torch keeps its 624 words, in units of eight bytes


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


def draw_noise(noise: Noise, schedule: NoiseSchedule) -> Tensor:
    """Returns noise (B, *) of a process at unit scale, float32 on the CPU."""
    return spread_noise(noise.draw(), schedule, noise.generators)


def draw_start(noise: Noise, schedule: NoiseSchedule, node: Node) -> Tensor:
    """Returns the noise (B, *) that runs start from at a node, float32 on the CPU."""
    return draw_noise(noise, schedule) * schedule.noise_scale(node)


def spread_noise(
    z: Tensor, schedule: NoiseSchedule, generators: Sequence[torch.Generator | None]
) -> Tensor:
    """Returns noise of a process made of standard normal z (B, *): z itself, but on PFGM++.

    generators: of each sample, for its c; None is torch's own.
    """
    aug_dim: int | None = getattr(schedule, "aug_dim", None)
    if aug_dim is None:
        return z
    shape = torch.tensor(0.5 * aug_dim, dtype=torch.float64)
    gammas = torch.stack([torch._standard_gamma(shape, generator=each) for each in generators])
    return z * (shape / gammas).sqrt().view(-1, *[1] * (z.ndim - 1)).to(z)


def check_seeds(given: Integers) -> list[int]:
    """Returns the seeds as a list; raises SettingError if there are none or one is out of range."""
    seeds = as_integers(given, "seeds")
    if not seeds:
        raise SettingError("there are no seeds; give one per image, such as range(64)")
    for seed in seeds:
        if not 0 <= seed < 2**63:
            raise SettingError(f"seed {seed} must lie between 0 and 2^63 - 1")
    return seeds


def make_generator(seed: int) -> torch.Generator:
    """Returns a generator of the CPU, a Mersenne Twister of its own for each seed >= 0.

    Below 2^32 it is `torch.Generator().manual_seed(seed)`, which drops all higher bits. From there
    on the twister starts from the words of the seed, low ones first, by `init_by_array` (Matsumoto
    and Nishimura, 2002), so that seeds that share some of their bits share nothing else.

    Raises:
        SettingError: for a negative seed.
        ModelError: if this version of torch lays its state out in another way.
    """
    if seed < 0:
        raise SettingError(f"seed {seed} must not be negative")
    generator = torch.Generator().manual_seed(seed % WORD)
    if seed >= WORD:
        generator.set_state(_make_state(seed, generator.get_state()))
    return generator


def seed_everything(seed: int) -> None:
    """Seeds torch's own generators, that of the CPU as `make_generator` does.

    Raises:
        SettingError, ModelError: as `make_generator`, for a seed from 2^64 on too.
    """
    if seed >= WORD**2:
        raise SettingError(f"seed {seed} must be less than 2^64")
    state = make_generator(seed).get_state()
    torch.manual_seed(seed)
    torch.set_rng_state(state)


def _make_state(seed: int, state: torch.Tensor) -> torch.Tensor:
    """Returns the state of a generator for the whole seed, from that for its low word."""
    words = state.numpy().copy().view(np.uint64)
    if not np.array_equal(words[STATE], _make_twister(seed % WORD)):
        raise ModelError(
            f"torch {torch.__version__} keeps its random state in an unknown way, so"
            f" seed {seed} cannot be used; take one below 2^32"
        )
    words[0] = seed % WORD**2  # what `initial_seed` reports
    words[STATE] = _make_twister(_split_words(seed))
    return torch.from_numpy(words.view(np.uint8))


def _make_twister(key: int | list[int]) -> np.ndarray:
    """Returns the 624 words of a twister seeded with a number, or with several."""
    state = np.random.RandomState(key).get_state(legacy=False)
    return np.asarray(state["state"]["key"])


def _split_words(seed: int) -> list[int]:
    """Returns the 32-bit words of a number, low ones first."""
    return [seed >> shift & (WORD - 1) for shift in range(0, seed.bit_length(), 32)]
