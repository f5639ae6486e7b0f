"""Draws docs/strip.png: the same seeds at 4, 6, 8 and 50 evaluations, ours beside diffusers'.

    python recipes/draw_strip.py docs/strip.png

Ours is what `sample` takes when only the number of evaluations is given. Beside it stands the
scheduler of diffusers that is nearest to the converged run, of all the settings that
`fewstep bench rivals` tries, on 12 noises that are not shown; at 50 evaluations the one of 8. Its
name and the distances of both from the converged run are printed.
"""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from fewstep import CFG, Sampler
from fewstep.eval.experiments.rival_grid import choose_rivals
from fewstep.eval.experiments.rivals import RivalSampler
from fewstep.models.errors import FewstepError
from fewstep.samplers.guidance import Unguided
from fewstep.samplers.images import to_pil, write_png
from fewstep.samplers.schedule_choice import choose_default_schedule

BUDGETS, MANY = (4, 6, 8, 50), 50
SEEDS, CHOOSING = range(6), range(50_000, 50_012)
CLASSES = {"emoji": [6, 6, 2, 2, 5, 5], "fashion-dit": [0, 8, 1, 7, 3, 9]}
SCALES = {"emoji": 2.0, "fashion-dit": 1.0}
REFERENCE = {"solver": "unipc-3", "nfe": 100}
CELL, MARGIN, HEAD, FONT = 64, 56, 32, 22


class Bench:
    """One network, its converged run, and the distance of others from it."""

    def __init__(self, name: str) -> None:
        self.name, self.sampler = name, Sampler.from_pretrained(name)
        self.guidance = CFG(SCALES[name]) if SCALES[name] != 1.0 else Unguided()

    def call(self, seeds: range) -> dict[str, object]:
        """Returns the arguments of a run: each seed of the picture has its class."""
        labels = [CLASSES[self.name][seed % len(SEEDS)] for seed in seeds]
        return {"seeds": seeds, "class_labels": labels, "guidance": self.guidance}

    def draw_ours(self, nfe: int) -> Tensor:
        """Returns what `sample` draws."""
        schedule = choose_default_schedule(self.name, {"nfe": nfe}, self.guidance)
        size = {"nfe": nfe} if schedule is None else {"solver": schedule}
        return self.sampler(**self.call(SEEDS), **size).samples

    def draw_theirs(self, nfe: int, seeds: range, spec: str) -> Tensor:
        """Returns what a scheduler of diffusers draws."""
        return RivalSampler(self.sampler.network, spec, nfe)(**self.call(seeds)).samples

    def choose(self, nfe: int) -> str:
        """Returns the nearest scheduler on the noises for choosing."""
        reference = self.sampler(**self.call(CHOOSING), **REFERENCE).samples
        judge = partial(self._judge, nfe, reference)
        return choose_rivals(self.sampler.network.schedule, judge)[0]

    def _judge(self, nfe: int, reference: Tensor, spec: str) -> float:
        try:
            return distance(self.draw_theirs(nfe, CHOOSING, spec), reference)
        except FewstepError:  # it cannot spend so many evaluations, or not on this process
            return torch.inf


def distance(samples: Tensor, reference: Tensor) -> float:
    """Returns the root mean square difference."""
    return float((samples - reference).square().mean().sqrt())


def draw_network(name: str) -> list[tuple[int, Tensor, Tensor]]:
    """Returns of each budget our samples and diffusers', and prints their distances."""
    bench, rows, spec = Bench(name), [], ""
    reference = bench.sampler(**bench.call(SEEDS), **REFERENCE).samples
    for nfe in BUDGETS:
        spec = spec if nfe == MANY else bench.choose(nfe)
        ours, theirs = bench.draw_ours(nfe), bench.draw_theirs(nfe, SEEDS, spec)
        figures = f"ours {distance(ours, reference):.3f}, {spec} {distance(theirs, reference):.3f}"
        print(f"{name}, {nfe} evaluations, distance from the converged run: {figures}")
        rows.append((nfe, ours, theirs))
    return rows


def draw_sheet(networks: Sequence[list[tuple[int, Tensor, Tensor]]]) -> Image.Image:
    """Returns one picture: a row for each budget, ours on the left."""
    half = len(SEEDS) * CELL
    height = sum(HEAD + len(rows) * CELL for rows in networks)
    sheet = Image.new("RGB", (MARGIN + 2 * half + 16, height), "white")
    pen, font, top = ImageDraw.Draw(sheet), ImageFont.load_default(FONT), 0
    ours, theirs = (MARGIN, "fewstep"), (MARGIN + half + 16, "diffusers, best of its schedulers")
    for rows in networks:
        for left, title in ((4, "NFE"), ours, theirs):
            pen.text((left, top + 2), title, "black", font)
        top += HEAD
        for nfe, *halves in rows:
            pen.text((MARGIN - 10, top + CELL // 2), str(nfe), "black", font, anchor="rm")
            for left, samples in zip((MARGIN, MARGIN + half + 16), halves, strict=True):
                for i, picture in enumerate(to_pil(samples)):
                    sheet.paste(picture.resize((CELL, CELL)), (left + i * CELL, top))
            top += CELL
    return sheet


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked.add_argument("out", type=Path)
    out = asked.parse_args().out
    write_png(draw_sheet([draw_network(name) for name in CLASSES]), out)


if __name__ == "__main__":
    main()
