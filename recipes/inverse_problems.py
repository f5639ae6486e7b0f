"""Restores test images of Fashion-MNIST by each method: docs/inverse-problems.md.

    python recipes/inverse_problems.py [--network fashion-dit] [--images 6] [--rows 30]

Three blocks of test images, each with seeds and noise of its own. Two problems, a hole of 14x14
pixels in the middle and a quarter of the pixels a side, both with noise of deviation 0.05. Every
method has the same network rows; what it goes backward is in a column of its own, and in another
the processor's time over that of diffpir. A figure is the mean of the blocks, with the least
and the largest of them. The pictures go to docs/inverse-problems.png: the truth, what was measured,
and one sample of each method. Needs the data (`fewstep data fashion-mnist`) and the weights of
LPIPS, which are fetched.
"""

import argparse
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from fewstep import Measured, Sampler
from fewstep.eval.data import images_of
from fewstep.eval.metrics import pair_metric
from fewstep.samplers.guidance.inverse import Downsample, Inpaint, Operator
from fewstep.samplers.images import to_pil, write_sheet
from fewstep.samplers.noise import make_generator

BLOCKS, SHOWN, SIGMA_Y = 3, 5, 0.05
METHODS = {  # rows of a step; scales of dps and stsl were chosen on the first block's images
    "dps:scale=4": 1,
    "diffpir": 1,
    "pigdm": 1,
    "mmps": 1,
    "stsl:rounds=2": 5,
}
Figures = dict[tuple[str, str], list[tuple[float, ...]]]  # by method and problem, one of each block


def main() -> None:
    asked = argparse.ArgumentParser(description="Restores test images by each method.")
    asked.add_argument("--network", default="fashion-dit")
    asked.add_argument("--images", type=int, default=6)
    asked.add_argument("--rows", type=int, default=30)
    asked.add_argument("--out", type=Path, default=Path("docs/inverse-problems.png"))
    given = asked.parse_args()
    figures: Figures = defaultdict(list)
    shown: list[Tensor] = []
    sampler = Sampler.from_pretrained(given.network)
    batches = iter(images_of("fashion-mnist-32:test").batches(given.images))
    for block in range(BLOCKS):
        x = torch.as_tensor(next(batches)).float() / 127.5 - 1.0
        pictures = measure_block(sampler, x, block, given.rows, figures)
        shown = shown or pictures
    print_table(figures)
    write_sheet(to_pil(torch.cat(shown)), 2 * SHOWN, given.out)


def make_problems() -> Mapping[str, Operator]:
    mask = torch.ones(32, 32)
    mask[9:23, 9:23] = 0.0
    return {"hole": Inpaint(mask), "downsample:4": Downsample(4)}


def measure_block(
    sampler: Sampler, x: Tensor, block: int, rows: int, figures: Figures
) -> list[Tensor]:
    """Adds the figures of a block of images; returns the rows of its picture."""
    sheet: dict[str, list[Tensor]] = defaultdict(list)
    for problem, operator in make_problems().items():
        draw = make_generator(block)
        y = operator.forward(x)
        y = y + SIGMA_Y * torch.randn(y.shape, generator=draw)
        sheet["truth"].append(x)
        sheet["measured"].append(enlarge(y))
        for method, each in METHODS.items():
            samples, figure = restore(
                sampler, Measured(operator, y, SIGMA_Y, method), x, block, rows // each
            )
            figures[method, problem].append(figure)
            sheet[method].append(samples)
            print(f"block {block}, {problem}, {method}: {figure}", flush=True)
    return [torch.cat([part[:SHOWN] for part in parts]) for parts in sheet.values()]


def restore(
    sampler: Sampler, policy: Measured, x: Tensor, block: int, steps: int
) -> tuple[Tensor, tuple[float, ...]]:
    """Returns samples, and their PSNR, LPIPS, rows, rows backward, and seconds of the processor."""
    seeds = range(1000 * block, 1000 * block + len(x))
    start = time.process_time()
    result = sampler(seeds, steps=steps, guidance=policy)
    seconds = time.process_time() - start
    samples = result.samples.clamp(-1.0, 1.0)
    psnr = (10.0 * torch.log10(4.0 / (samples - x).square().mean((1, 2, 3)))).mean()
    lpips = pair_metric("lpips").function(samples, x).mean()
    ledger = result.ledger
    return samples, (
        float(psnr),
        float(lpips),
        ledger.rows_per_image,
        ledger.backwards_per_image,
        seconds,
    )


def enlarge(y: Tensor) -> Tensor:
    """Returns measurements (B, 1, h, w) at the size of the images."""
    factor = 32 // y.shape[-1]
    large = y.repeat_interleave(factor, -1).repeat_interleave(factor, -2)
    return large.clamp(-1.0, 1.0)


def print_table(figures: Figures) -> None:
    """Prints a row for each method."""
    problems = list(make_problems())
    heads = " | ".join(f"{problem}, PSNR | LPIPS" for problem in problems)
    print(f"| method | rows | backward | time | {heads} |", f"|---|{'---:|' * 7}", sep="\n")
    for method in METHODS:
        _, _, rows, backwards, _ = figures[method, problems[0]][0]
        cells = [
            format_spread([block[i] for block in figures[method, problem]], digits)
            for problem in problems
            for i, digits in ((0, 2), (1, 4))
        ]
        pace = sum(figures[method, p][b][4] for p in problems for b in range(BLOCKS))
        own = sum(figures["diffpir", p][b][4] for p in problems for b in range(BLOCKS))
        print(
            f"| `{method}` | {rows:g} | {backwards:g} | {pace / own:.1f} |", " | ".join(cells), "|"
        )


def format_spread(values: Sequence[float], digits: int) -> str:
    """Returns the mean of the blocks, with the least and the largest."""
    mean = sum(values) / len(values)
    return f"{mean:.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


if __name__ == "__main__":
    main()
