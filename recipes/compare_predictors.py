"""Compares all predictors of a cache, and the one that a calibration takes: a table of the docs.

    python recipes/compare_predictors.py [NETWORK ...] [--intervals 3 4] [--images 48] [--others 96]

Figures are |x - y| / |y| to the uncached run of the same noises: on `--images` noises, and on
others on which nothing was chosen. The choice (in bold) is made as by `fewstep calibrate
--predictor all`: the leading ones meet on further blocks of `--images` noises, until one is better
beyond chance.
"""

import argparse
from collections.abc import Sequence
from functools import cache

from torch import Tensor

from fewstep.eval.bench.front import relative_error
from fewstep.eval.bench.front_table import FrontPoint, FrontRun
from fewstep.eval.cache_candidates import PREDICTORS, cross
from fewstep.eval.cache_contest import FURTHER, LEADING, hold_contest
from fewstep.eval.cache_fit import CHOOSE, FIT, fit_predictor
from fewstep.eval.cache_quality import Quality
from fewstep.eval.experiments.cache import TO_UNCACHED, judge_images
from fewstep.models.caching import Policy, take_cache
from fewstep.models.errors import SettingError
from fewstep.models.load import load
from fewstep.samplers.sampler import Sampler

FIT_SEEDS = range(10**6, 10**6 + FIT + CHOOSE)
BATCH = 48


class Runs:
    """The runs of one network, in batches."""

    def __init__(self, name: str, solver: str, nfe: int, grid: str | None) -> None:
        self.sampler = Sampler(load(name))
        self.choices = {"solver": solver, "nfe": nfe, "grid": grid}

    def draw(self, seeds: Sequence[int], cache: Policy | None) -> Tensor:
        classes = self.sampler.network.num_classes
        labels = [seed % classes for seed in seeds] if classes else None
        call = {**self.choices, "batch": BATCH, "class_labels": labels, "cache": cache}
        return self.sampler(seeds, **call).samples


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked.add_argument("networks", nargs="*", default=["fashion-dit", "fashion-unet", "emoji"])
    asked.add_argument("--solver", default="dpmpp-2m")
    asked.add_argument("--nfe", type=int, default=30)
    asked.add_argument("--grid-type", help="in place of the default")
    asked.add_argument("--intervals", type=int, nargs="*", default=[3, 4])
    asked.add_argument("--images", type=int, default=48)
    asked.add_argument("--others", type=int, default=96)
    given = asked.parse_args()
    used = (1 + FURTHER) * given.images
    blocks = range(given.images), range(used, used + given.others)
    print("| network | interval | choice over the best", *PREDICTORS, "fitted |", sep=" | ")
    print("|---|---|---|" + "---|" * (len(PREDICTORS) + 1))
    for name in given.networks:
        runs = Runs(name, given.solver, given.nfe, given.grid_type)
        plain = [runs.draw(block, None) for block in blocks]
        for interval in given.intervals:
            print_row(runs, name, interval, blocks, plain)


def print_row(
    runs: Runs, name: str, interval: int, blocks: Sequence[range], plain: Sequence[Tensor]
) -> None:
    """Prints what each predictor gives at an interval."""
    specs = cross([f"taylorseer:interval={interval},level=last-block"], (*PREDICTORS, "fitted"))
    columns, policies = list[list[float] | None](), dict[str, Policy]()
    for spec in specs:
        policy = take_cache(spec)
        if spec.endswith("fitted"):
            policy = fit_predictor(policy, runs.draw, FIT_SEEDS)
        try:
            ends = [runs.draw(block, policy) for block in blocks]
        except SettingError:  # dmd, where no four full calls lie at equal gaps
            columns.append(None)
            continue
        columns.append([relative_error(x, y) for x, y in zip(ends, plain, strict=True)])
        policies[spec] = policy
    figures = {spec: each for spec, each in zip(specs, columns, strict=True) if each is not None}
    chosen = choose(
        runs, len(blocks[0]), {spec: each[0] for spec, each in figures.items()}, policies
    )
    ratio = figures[chosen][1] / min(each[1] for each in figures.values())
    cells = (_format_cell(figures.get(spec), spec == chosen) for spec in specs)
    print(f"| {name} | {interval} | {ratio:.2f}", *cells, sep=" | ", end=" |\n", flush=True)


def choose(runs: Runs, images: int, figures: dict[str, float], policies: dict[str, Policy]) -> str:
    """Returns the setting that a calibration takes of those of one cost."""
    quality = Quality.parse("rel-l2=1")
    points = [
        FrontPoint(FrontRun("", "", 0, spec), 0.0, change=figures[spec])
        for spec in sorted(figures, key=figures.__getitem__)[:LEADING]
    ]

    @cache
    def draw_plain(block: int) -> Tensor:
        return runs.draw(range(block * images, (block + 1) * images), None)

    def judge(run: FrontRun, block: int) -> Tensor:
        seeds = range(block * images, (block + 1) * images)
        samples = runs.draw(seeds, policies[run.policy or ""])
        return judge_images(TO_UNCACHED, samples, draw_plain(block))

    return hold_contest(points, quality, judge)[0].point.run.policy or ""


def _format_cell(figures: Sequence[float] | None, chosen: bool) -> str:
    if figures is None:
        return "none"
    text = ", ".join(f"{each:.4f}".lstrip("0") for each in figures)
    return f"**{text}**" if chosen else text


if __name__ == "__main__":
    main()
