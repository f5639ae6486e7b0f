"""Writes the reference statistics of the small networks and measures what their distances see.

    python recipes/measure_fd_small.py [fd-small] [--out FOLDER]
    python recipes/measure_fd_small.py fd-emoji

Needs `fewstep data fashion-mnist`, or `emoji`. Written are the reference, and measured.json: the
real-against-real floor at several n, and for fd-small the distance of damaged test images and of a
missing class. The reference of fd-small is of all training images, that of fd-emoji of images drawn
as `emoji` was trained with them, but all classes equally often. What samples have is in
recipes/measure_networks.py.
"""

import argparse
import io
import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from tqdm import tqdm
from training.pixels import pixels_of
from training.table import RECIPES

from fewstep.eval.data import ImageSet, images_of
from fewstep.eval.extractors import origin_of
from fewstep.eval.extractors.small import (
    EMOJI,
    FASHION,
    SMALL_CARDS,
    SmallCard,
    SmallExtractor,
    load_small,
)
from fewstep.eval.statistics import Moments, Statistics, frechet
from fewstep.eval.statistics_file import save_npz
from fewstep.models.files import write_bytes
from fewstep.samplers.noise import seed_everything

Distance = Callable[[Tensor], float]
EMBEDDED = Path(__file__).parents[1] / "eval" / "embedded"
DRAWN = 30_000  # emoji of the reference, with repetition
FLOORS = (500, 1000, 2000, 5000, 10_000)
N = 2000  # of the damages


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked.add_argument("name", nargs="?", choices=SMALL_CARDS, default=FASHION.name)
    asked.add_argument("--out", type=Path, help="default eval/embedded/NAME")
    options = asked.parse_args()
    card = SMALL_CARDS[options.name]
    out = options.out or EMBEDDED / card.name
    figures = measure(card, out / f"{card.reference}.npz")
    report(figures)
    write_bytes(out / "measured.json", (json.dumps(rounded(figures), indent=2) + "\n").encode())


def measure(card: SmallCard, path: Path) -> dict[str, object]:
    """Writes the reference of a network to a path and returns what was measured."""
    extractor = load_small(card=card)
    train = draw_emoji(DRAWN, 0) if card == EMOJI else load_train()
    batches = tqdm(train.split(500), desc="reference", disable=None)
    reference = statistics(extractor, batches)
    save_npz(path, {"pool": reference}, {})

    def distance(images: Tensor) -> float:
        return frechet(statistics(extractor, images.split(500)), reference)

    origin = {"name": card.name, "sha256": extractor.sha256, "reference": reference.sha256}
    if card == EMOJI:
        return {"extractor": origin, "floor": floors(draw_emoji(10_000, 1), distance)}
    on_test = on_test_images(images_of("fashion-mnist-32:test"), distance)
    return {"extractor": origin, "train halves": halves(train, extractor), **on_test}


def load_train() -> Tensor:
    return torch.cat(list(images_of("fashion-mnist-32").batches()))


def draw_emoji(n: int, seed: int) -> Tensor:
    """Returns n images drawn as in the training of `emoji`, but all classes equally often."""
    pixels = pixels_of(RECIPES["emoji"])
    classes = torch.zeros(len(pixels.mirrored)).index_add(0, pixels.labels, pixels.weights)
    seed_everything(seed)
    drawn, _ = replace(pixels, weights=pixels.weights / classes[pixels.labels]).draw(n)
    return ((drawn + 1.0) * 127.5).round().to(torch.uint8)


def on_test_images(test: ImageSet, distance: Distance) -> dict[str, object]:
    """The floor, and what the distance sees of damage."""
    pixels = torch.cat(list(test.batches()))
    classes = {str(label): pixels[test.labels != label][:N] for label in range(10)}
    return {
        "floor": floors(pixels, distance),
        f"damage, n = {N}": damages(pixels[:N], distance),
        f"missing class, n = {N}": {label: distance(others) for label, others in classes.items()},
    }


def statistics(extractor: SmallExtractor, batches: Iterable[Tensor]) -> Statistics:
    moments = Moments(extractor.outputs["pool"])
    for images in batches:
        moments.update(extractor(images)["pool"])
    return moments.statistics(origin_of(extractor))


def floors(pixels: Tensor, distance: Distance) -> dict[str, object]:
    """Test images against the reference: what a perfect network would be given at that n."""
    return {
        str(n): [distance(block) for block in pixels.split(n)[: max(1, min(5, 10_000 // n))]]
        for n in FLOORS
    }


def halves(pixels: Tensor, extractor: SmallExtractor) -> dict[str, float]:
    """Two sets of n training images with none in common: real against real, both finite."""
    order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0))
    figures = {}
    for n in (1000, 2000, 10_000, 30_000):
        parts = (pixels[order[:n]], pixels[order[n : 2 * n]])
        figures[str(n)] = frechet(*(statistics(extractor, part.split(500)) for part in parts))
    return figures


def damages(pixels: Tensor, distance: Distance) -> dict[str, list[float]]:
    """Each damage in rising strength."""
    cases = {
        "blur (sigma)": ((0.4, 0.6, 0.8, 1.2, 2.0), blurred),
        "noise (standard deviation, of 255)": ((2, 5, 10, 20, 40), noised),
        "jpeg (quality)": ((95, 80, 60, 40, 20, 10), compressed),
        "shift (pixels)": ((1, 2, 3, 4), lambda x, by: x.roll(int(by), 3)),
        "contrast (factor)": ((0.95, 0.9, 0.8, 0.6), lambda x, by: (x * by).to(torch.uint8)),
        "swirl (pixels)": ((0.5, 1.0, 2.0, 4.0), swirled),
        "noise image (share of the set)": ((0.01, 0.02, 0.05, 0.1), replaced),
    }
    return {
        name: {str(by): distance(damage(pixels, by)) for by in strengths}
        for name, (strengths, damage) in cases.items()
    }


def blurred(images: Tensor, sigma: float) -> Tensor:
    at = torch.arange(-6, 7).float()
    kernel = torch.exp(-(at**2) / (2 * sigma**2))
    kernel /= kernel.sum()
    x = F.conv2d(F.pad(images.float(), [6] * 4), (kernel[:, None] * kernel)[None, None])
    return x.round().clamp(0, 255).to(torch.uint8)


def noised(images: Tensor, std: float) -> Tensor:
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    return (images.float() + std * noise).round().clamp(0, 255).to(torch.uint8)


def compressed(images: Tensor, quality: float) -> Tensor:
    def one(image: Tensor) -> np.ndarray:
        file = io.BytesIO()
        Image.fromarray(image.numpy()).save(file, "JPEG", quality=int(quality))
        return np.array(Image.open(file))

    return torch.from_numpy(np.stack([one(image) for image in images[:, 0]]))[:, None]


def swirled(images: Tensor, by: float) -> Tensor:
    """Smooth random shifts of every place, by that many pixels."""
    g = torch.Generator().manual_seed(0)
    field = F.interpolate(torch.randn(len(images), 2, 5, 5, generator=g), 32, mode="bicubic")
    even = F.affine_grid(torch.eye(2, 3).expand(len(images), 2, 3), images.shape, False)
    moved = F.grid_sample(
        images.float(), even + field.permute(0, 2, 3, 1) * by / 16, align_corners=False
    )
    return moved.round().clamp(0, 255).to(torch.uint8)


def replaced(images: Tensor, share: float) -> Tensor:
    """A share of failed images: white noise."""
    count = int(share * len(images))
    g = torch.Generator().manual_seed(0)
    failed = torch.randint(0, 256, (count, *images.shape[1:]), generator=g)
    return torch.cat([images[count:], failed.to(torch.uint8)])


def report(figures: dict[str, object]) -> None:
    for name, each in figures.items():
        print(name)
        for key, value in each.items() if isinstance(each, dict) else [("", each)]:
            spread = isinstance(value, list) and len(value) > 1
            more = f"   mean {mean(value):.4f} +- {stdev(value):.4f}" if spread else ""
            print(f"  {key}: {rounded(value)}{more}")


def rounded(value: object) -> object:
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, list):
        return [rounded(each) for each in value]
    return {k: rounded(v) for k, v in value.items()} if isinstance(value, dict) else value


if __name__ == "__main__":
    main()
