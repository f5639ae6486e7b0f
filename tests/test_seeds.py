"""Random generators from seeds: every bit of a seed counts."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

import fewstep
from fewstep import Sampler
from fewstep.models.errors import SettingError
from fewstep.samplers.noise import Noise, make_generator, seed_everything
from fewstep.solvers import solver

from .test_sampler import gaussian

HIGH = [7 + 2**32, 7 + 2**33, 7 + 2**62, 2**32, 2**63 - 1]
FROZEN = {  # the first three normal draws
    7 + 2**32: [0.5667182, -0.8662586, 0.8720228],
    2**63 - 1: [-1.8444828, 0.1309040, -0.6630807],
}


def test_low_seeds_are_torchs_own():
    for seed in (0, 7, 2**32 - 1):
        own = torch.Generator().manual_seed(seed)
        assert torch.equal(make_generator(seed).get_state(), own.get_state())


def test_numbers_of_high_seeds_are_frozen():
    for seed, normal in FROZEN.items():
        rows = torch.randn(3, generator=make_generator(seed)).tolist()
        assert rows == pytest.approx(normal, abs=1e-6)
        assert make_generator(seed).initial_seed() == seed


def test_high_seeds_start_the_twister_from_their_words():
    drawn = torch.randint(0, 1000, (5,), generator=make_generator(7 + 5 * 2**32))
    raw = np.random.RandomState([7, 5]).randint(0, 2**32, 5, dtype=np.uint32)
    assert drawn.tolist() == (raw % 1000).tolist()


def test_seeds_that_share_their_low_half_are_independent():
    seeds = [7, *HIGH, 2**63 + 7, 2**64 + 7]
    rows = torch.stack([torch.randn(40_000, generator=make_generator(seed)) for seed in seeds])
    correlations = torch.corrcoef(rows) - torch.eye(len(seeds))
    assert float(correlations.abs().max()) < 0.025  # five standard deviations
    assert torch.allclose(rows.mean(1), torch.zeros(len(seeds)), atol=0.025)
    assert torch.allclose(rows.std(1), torch.ones(len(seeds)), atol=0.02)


def test_images_and_the_noise_of_solvers_depend_on_the_whole_seed():
    sampler = Sampler(gaussian())
    for name in ("unipc-2", "sde-dpmpp-2"):
        low, high = sampler([7, 7 + 2**32], solver=solver(name), nfe=4).samples
        assert not torch.equal(low, high)
    noise = Noise([7, 7 + 2**32], (3, 4))
    noise.draw()
    later = noise.draw()
    assert not torch.equal(later[0], later[1])


def test_torchs_own_generator_takes_the_whole_seed():
    with torch.random.fork_rng(devices=[]):
        for seed in (7, 7 + 2**32):
            seed_everything(seed)
            assert torch.equal(torch.randn(20), torch.randn(20, generator=make_generator(seed)))


def test_seeds_out_of_range_are_refused():
    with pytest.raises(SettingError, match="seed -1"):
        make_generator(-1)
    with pytest.raises(SettingError, match="less than 2\\^64"):
        seed_everything(2**64)


def test_generators_are_made_in_one_place():
    root = Path(fewstep.__file__).parent
    fixed = re.compile(r"manual_seed\((?!\d+\)|SEED\)|1000 \* SEED|_seed\()")
    folders = ("models", "solvers", "samplers", "eval", "commands", "recipes")
    files = [path for folder in folders for path in (root / folder).rglob("*.py")]
    found = [path.name for path in files if fixed.search(path.read_text())]
    assert found == ["noise.py"]
