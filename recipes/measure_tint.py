"""Measures how much of a tint networks take for a part of the picture: docs/networks.md.

    python recipes/measure_tint.py [NETWORK_OR_FOLDER ...] [--images 64]

One row for each network: training images get a tint, even over each image, of deviation 0.015, and
then noise; the share of it that the prediction keeps on their background, by sigma / alpha. The
background is exactly -1 or 1 in all of them, so a network that knew it would keep none. Needs the
data of the network's recipe.
"""

import argparse
import json
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from training.pixels import pixels_of
from training.table import RECIPES

from fewstep.models.denoiser import Branch, Denoiser, Network
from fewstep.models.load import embedded_names, load

RATIOS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)  # sigma / alpha
TINT = 0.015


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked.add_argument("networks", nargs="*", metavar="NETWORK", default=embedded_names())
    asked.add_argument("--images", type=int, default=64)
    options = asked.parse_args()
    print(f"| network | {' | '.join(f'{ratio:g}' for ratio in RATIOS)} |")
    print(f"|---{'|---:' * len(RATIOS)}|")
    for name in options.networks:
        network = load(name)
        torch.manual_seed(0)
        x0, labels = pixels_of(RECIPES[find_recipe(name)]).draw(options.images)
        shares = [measure(network, ratio, x0, labels) for ratio in RATIOS]
        print(f"| `{name}` | {' | '.join(f'{share:.2f}' for share in shares)} |", flush=True)


def find_recipe(name: str) -> str:
    """Returns the recipe of an embedded network or of a folder with a card."""
    card = Path(name) / "card.json"
    return str(json.loads(card.read_text())["name"]) if card.is_file() else name


@torch.inference_mode()
def measure(network: Network, ratio: float, x0: Tensor, labels: Tensor) -> float:
    """Returns the share of a tint on images that is left in x0 at sigma / alpha = ratio."""
    node = network.schedule.at_lam(-math.log(ratio))
    x_t = node.alpha * x0 + node.sigma * torch.randn_like(x0)
    tint = TINT * torch.randn_like(x0[:, :, :1, :1]).expand_as(x0)
    denoiser = Denoiser(network, {Branch.COND: {"class_labels": labels}})
    plain, tinted = (denoiser.x0(x, node)[0] for x in (x_t, x_t + node.alpha * tint))
    return find_slope(tint, tinted - plain, find_background(x0))


def find_background(x0: Tensor) -> Tensor:
    """Returns where an image and the pixels around are of the value that most of its corners have.

    bool, of the shape (B, C, H, W) of the images.
    """
    corner = x0[:, :, :1, :1].flatten().median().sign()
    objects = F.max_pool2d((x0 != corner).any(1, keepdim=True).float(), 3, stride=1, padding=1)
    return (objects == 0.0).expand_as(x0)


def find_slope(a: Tensor, b: Tensor, where: Tensor) -> float:
    """Returns b . a / a . a over some places: the share of a that is in b."""
    return float((b * a)[where].sum() / a[where].square().sum())


if __name__ == "__main__":
    main()
