"""Measures networks by their samples: the table of docs/networks.md.

    python recipes/measure_networks.py [NETWORK ...] [--nfe 8,50] [--images 500] [--blocks 3]

One row for each network and number of evaluations, each figure as the mean and the range over
blocks of seeds, with the default solver and classes in turn:

fd-small    the distance to the training images of Fashion-MNIST; for grey networks alone.
clean       the share of the pixels of the two outer rows, above and below, that are exactly black
            or white in an 8-bit picture, whichever of the two most of them are nearer to.
distance    root mean square to the same images at the largest number of evaluations, range [-1, 1].
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from statistics import mean

import torch
from measure_fd_small import statistics
from torch import Tensor
from tqdm import tqdm

from fewstep.eval.extractors.small import load_small, small_reference
from fewstep.eval.statistics import frechet
from fewstep.models.load import embedded_names
from fewstep.samplers.grid import choose_default_grid
from fewstep.samplers.guidance import CFG
from fewstep.samplers.images import to_uint8
from fewstep.samplers.labels import parse_ranges
from fewstep.samplers.sampler import Sampler

Figure = Callable[[Tensor, Tensor], float]
MARGIN = 2
HEADER = (
    "| network | grid | guidance | evaluations | fd-small | clean | distance |\n"
    "|---|---|---:|---:|---:|---:|---:|\n"
)


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked.add_argument("networks", nargs="*", metavar="NETWORK", default=embedded_names())
    asked.add_argument("--nfe", default="8,50", help="evaluations, the converged run last")
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
    """Yields the rows of a network, from few evaluations to many."""
    sampler = Sampler.from_pretrained(name)
    grid = options.grid_type or choose_default_grid(sampler.network.schedule)
    seeds = range(options.seed, options.seed + options.images * options.blocks)
    budgets = parse_ranges(options.nfe)
    samples = {
        nfe: draw(sampler, seeds, nfe, grid, options.cfg_scale)
        for nfe in tqdm(budgets, desc=name, disable=None)
    }
    converged = samples[budgets[-1]].split(options.images)
    for nfe, images in samples.items():
        blocks = list(zip(images.split(options.images), converged, strict=True))
        figures = [
            format_blocks(figure, blocks)
            for figure in (distance_of(sampler), clean_share, root_mean_square)
        ]
        yield f"| {name} | {grid} | {options.cfg_scale:g} | {nfe} | {' | '.join(figures)} |\n"


def draw(sampler: Sampler, seeds: range, nfe: int, grid: str, scale: float) -> Tensor:
    """Returns samples (B, C, 32, 32) in [-1, 1], the classes in turn."""
    labels = [seed % sampler.network.num_classes for seed in seeds]
    return sampler(
        seeds, class_labels=labels, nfe=nfe, grid=grid, guidance=CFG(scale), batch=100
    ).samples


def distance_of(sampler: Sampler) -> Figure | None:
    """Returns fd-small, or nothing for a network whose images its features do not know."""
    if sampler.network.shape[0] != 1:
        return None
    extractor, reference = load_small(), small_reference()

    def distance(images: Tensor, converged: Tensor) -> float:
        pixels = to_uint8(images).permute(0, 3, 1, 2).contiguous()
        return frechet(statistics(extractor, pixels.split(500)), reference)

    return distance


def clean_share(images: Tensor, converged: Tensor) -> float:
    """Returns the share of outer pixels that are the background in a picture."""
    pixels = to_uint8(images)  # (B, 32, 32, C)
    rows = torch.cat([pixels[:, :MARGIN], pixels[:, -MARGIN:]], dim=1)
    return float((rows == (255 if rows.median() > 127 else 0)).float().mean())


def root_mean_square(images: Tensor, converged: Tensor) -> float:
    return float((images - converged).square().mean().sqrt())


def format_blocks(figure: Figure | None, blocks: Sequence[tuple[Tensor, Tensor]]) -> str:
    """Returns the mean and the range over the blocks, or a dash for a figure that is none here."""
    if figure is None:
        return "-"
    values = [figure(*block) for block in blocks]
    return f"{mean(values):.3f} ({min(values):.3f}..{max(values):.3f})"


if __name__ == "__main__":
    main()
