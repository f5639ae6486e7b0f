"""Measures Brownian paths beside fresh noise: the tables and the picture of docs/brownian.md.

    python recipes/measure_brownian.py [--cost] [--distance] [--picture FILE]

--cost: CPU time of one draw for one image, of a batch of 4, in turns with fresh noise, and the
        ratio: the median of 15 runs over ln C from -9 to 12, and its quartiles.
--distance: root mean square distance of fashion-dit's samples to those of 256 steps, 32 seeds.
--picture: six seeds at 16, 32 and 64 steps, with fresh noise on the left.
"""

import argparse
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fewstep.samplers.brownian import BROWNIAN, FRESH, BrownianNoise
from fewstep.samplers.images import make_contact_sheet
from fewstep.samplers.noise import Noise
from fewstep.samplers.sampler import Sampler

SOLVER, CLASS = "sde-dpmpp-2", 3
BATCH, RUNS, FINEST = 4, 15, 256


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked.add_argument("--cost", action="store_true")
    asked.add_argument("--distance", action="store_true")
    asked.add_argument("--picture", type=Path)
    given = asked.parse_args()
    if given.cost:
        torch.set_num_threads(1)
        print("| shape | steps | fresh | path | ratio |", "|---|---:|---:|---:|---:|", sep="\n")
        for shape in ((1, 32, 32), (3, 32, 32), (4, 64, 64)):
            for steps in (16, 128):
                print(measure_cost(shape, steps))
    if given.distance:
        print("| steps | fresh | path |", "|---:|---:|---:|", sep="\n")
        finest = {noise: draw(FINEST, noise) for noise in (FRESH, BROWNIAN)}
        for steps in (16, 32, 64):
            print(f"| {steps} |", *(measure_distance(steps, noise, finest) for noise in finest))
    if given.picture is not None:
        draw_picture(given.picture)


def measure_cost(shape: tuple[int, ...], steps: int) -> str:
    """Returns the row of one shape and number of steps."""
    spans = list(pairwise(np.linspace(-9.0, 12.0, steps + 2).tolist()))
    fresh, path = Noise(range(BATCH), shape), BrownianNoise(range(BATCH), shape)
    costs = []
    for _ in range(RUNS):
        path.draw(spans[0])
        plain = measure_time(lambda: [fresh.draw() for _ in spans[1:]])
        costs.append((plain, measure_time(lambda: [path.draw(span) for span in spans[1:]])))
    ratios = np.percentile([mine / plain for plain, mine in costs], [50, 25, 75])
    times = np.median(costs, axis=0) / steps / BATCH * 1e6
    middle, low, high = ratios
    return (
        f"| {'x'.join(map(str, shape))} | {steps} | {times[0]:.0f} us | {times[1]:.0f} us"
        f" | {middle:.1f} [{low:.1f}, {high:.1f}] |"
    )


def measure_time(work: Callable[[], object]) -> float:
    """Returns the CPU time of this thread, which other programs do not lengthen much."""
    start = time.thread_time()
    work()
    return time.thread_time() - start


def draw(steps: int, noise: str, images: int = 32) -> Tensor:
    """Returns samples of one class."""
    sampler = Sampler.from_pretrained("fashion-dit")
    made = sampler(range(images), class_labels=CLASS, solver=SOLVER, steps=steps, noise=noise)
    return made.samples


def measure_distance(steps: int, noise: str, finest: dict[str, Tensor]) -> str:
    """Returns the cell of one number of steps."""
    return f"{(draw(steps, noise) - finest[noise]).square().mean().sqrt():.3f} |"


def draw_picture(path: Path) -> None:
    """Writes the picture."""
    sampler, images = Sampler.from_pretrained("fashion-dit"), list[Image.Image]()
    for steps in (16, 32, 64):
        for noise in (FRESH, BROWNIAN):
            made = sampler(
                range(6), class_labels=CLASS, solver=SOLVER, steps=steps, noise=noise
            ).images
            images += made
    sheet = make_contact_sheet(images, 12)
    sheet.resize((2 * sheet.width, 2 * sheet.height), Image.Resampling.NEAREST).save(path)


if __name__ == "__main__":
    main()
