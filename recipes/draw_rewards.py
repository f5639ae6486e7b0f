"""Draws docs/rewards.png: Fashion-MNIST without a reward, the best of several, and steered.

    python recipes/draw_rewards.py docs/rewards.png

The best of `DRAWS` plain samples cost at least the network rows of a steered one.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor

from fewstep.samplers.images import to_pil, write_sheet
from fewstep.samplers.sampler import Sampler
from fewstep.solvers.steered import Steered

MODEL, LABEL, SEEDS, STEPS = "fashion-dit", 8, range(8), 12
CANDIDATES, DRAWS, TEMPERATURE = 4, 4, 0.01


def compute_darkness(images: Tensor) -> Tensor:
    """Returns minus the mean of each image (B, C, H, W)."""
    return -images.mean((1, 2, 3))


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked.add_argument("out", type=Path)
    out = asked.parse_args().out
    sampler = Sampler.from_pretrained(MODEL)
    steered = Steered(compute_darkness, TEMPERATURE, CANDIDATES)
    plain, rows = draw(sampler, "ddpm", SEEDS)
    sheets = {"plain": (plain, rows), "best of four": draw_best(sampler)}
    sheets["steered"] = draw(sampler, steered, SEEDS)
    for name, (images, cost) in sheets.items():
        dark = compute_darkness(images)
        print(f"{name}: {cost:g} rows an image, darkness {dark.mean():.3f} +- {dark.std():.3f}")
    pictures = to_pil(torch.cat([images for images, _ in sheets.values()]))
    write_sheet(pictures, len(SEEDS), out)


def draw(sampler: Sampler, solver: str | Steered, seeds: range) -> tuple[Tensor, float]:
    """Returns the samples of a solver, and the network rows of each."""
    result = sampler(seeds, class_labels=LABEL, solver=solver, steps=STEPS, grid="logsnr")
    return result.samples, result.ledger.rows / len(seeds)


def draw_best(sampler: Sampler) -> tuple[Tensor, float]:
    """Returns the darkest of several plain samples for each place, and their rows."""
    samples, rows = draw(sampler, "ddpm", range(100, 100 + DRAWS * len(SEEDS)))
    groups = samples.unflatten(0, (len(SEEDS), DRAWS))
    best = compute_darkness(samples).unflatten(0, (len(SEEDS), DRAWS)).argmax(1)
    return groups[torch.arange(len(SEEDS)), best], rows * DRAWS


if __name__ == "__main__":
    main()
