"""Measures networks by their samples: the table of docs/networks.md.

    python recipes/measure_networks.py [NETWORK ...] [--nfe 8,50] [--images 500] [--blocks 3]

One row for each network and number of evaluations, each figure as the mean and the range over
blocks of seeds, with the default solver and classes in turn:

fd          the distance to training images: fd-small of grey networks, fd-emoji of those in colour.
clean       the share of the pixels of the two outer rows, above and below, that are exactly black
            or white in an 8-bit picture, whichever of the two most of them are nearer to.
"""

import argparse
import sys
from collections.abc import Iterator
from statistics import mean

import torch
from measure_fd_small import statistics
from torch import Tensor

from fewstep.eval.extractors.small import EMOJI, FASHION, load_small, small_reference
from fewstep.eval.statistics import frechet
from fewstep.models.arguments import parse_ranges
from fewstep.models.load import embedded_names
from fewstep.samplers.grid import choose_default_grid
from fewstep.samplers.guidance import CFG
from fewstep.samplers.images import to_uint8
from fewstep.samplers.sampler import Sampler

MARGIN = 2
HEADER = "| network | grid | guidance | evaluations | fd | clean |\n|---|---|---:|---:|---:|---:|\n"


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked.add_argument("networks", nargs="*", metavar="NETWORK", default=embedded_names())
    asked.add_argument("--nfe", default="8,50")
    asked.add_argument("--images", type=int, default=500, help="of each block of seeds")
    asked.add_argument("--blocks", type=int, default=3)
    asked.add_argument("--seed", type=int, default=20_000, help="the first")
    asked.add_argument("--grid-type", help="a grid for all, in place of the default of each")
    asked.add_argument("--cfg-scale", type=float, default=1.0)
    options = asked.parse_args()
    sys.stdout.write(HEADER)
    for name in options.networks:
        for row in rows_of(name, options):
            sys.stdout.write(row)
            sys.stdout.flush()


def rows_of(name: str, options: argparse.Namespace) -> Iterator[str]:
    """Yields the rows of a network."""
    sampler = Sampler.from_pretrained(name)
    seeds = range(options.seed, options.seed + options.images * options.blocks)
    for nfe in parse_ranges(options.nfe):
        grid = options.grid_type or choose_default_grid(sampler.network.schedule, nfe)
        pixels = draw(sampler, seeds, nfe, grid, options.cfg_scale)
        blocks = pixels.split(options.images)
        distance = format_blocks([find_distance(block) for block in blocks])
        clean = format_blocks([find_clean_share(block) for block in blocks])
        yield f"| {name} | {grid} | {options.cfg_scale:g} | {nfe} | {distance} | {clean} |\n"


def draw(sampler: Sampler, seeds: range, nfe: int, grid: str, scale: float) -> Tensor:
    """Returns pictures as uint8 (B, C, H, W), the classes in turn."""
    classes = sampler.network.num_classes
    labels = [seed % classes for seed in seeds] if classes else None
    result = sampler(seeds, class_labels=labels, nfe=nfe, grid=grid, guidance=CFG(scale))
    return to_uint8(result.samples).permute(0, 3, 1, 2).contiguous()


def find_distance(pixels: Tensor) -> float:
    """Returns fd-small of grey images and fd-emoji of those in colour."""
    card = FASHION if pixels.shape[1] == 1 else EMOJI
    return frechet(statistics(load_small(card=card), pixels.split(500)), small_reference(card))


def find_clean_share(pixels: Tensor) -> float:
    """Returns the share of outer pixels that are exactly the background."""
    rows = torch.cat([pixels[:, :, :MARGIN], pixels[:, :, -MARGIN:]], dim=2)
    return float((rows == (255 if rows.median() > 127 else 0)).float().mean())


def format_blocks(values: list[float]) -> str:
    """Returns the mean and the range over the blocks."""
    return f"{mean(values):.3f} ({min(values):.3f}..{max(values):.3f})"


if __name__ == "__main__":
    main()
