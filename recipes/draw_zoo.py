"""Draws docs/zoo.png: ten samples of each network of the zoo, a row for each.

make zoo
python recipes/draw_zoo.py docs/zoo.png
"""

import argparse
from pathlib import Path

from PIL.Image import Image, Resampling

from fewstep import CFG, Sampler
from fewstep.samplers.guidance import Unguided
from fewstep.samplers.images import to_pil, write_sheet

NAMES = ("mnist-flow", "mnist-v", "mnist-eps", "fashion-flow", "fashion-edm", "emoji-v")
SEEDS, NFE, SIDE = range(10), 20, 64


def draw_row(folder: Path) -> list[Image]:
    """Returns the samples of one network, classes in turn; emoji are guided."""
    sampler = Sampler.from_pretrained(folder)
    classes = sampler.network.num_classes
    labels = [seed % classes for seed in SEEDS] if classes else None
    guidance = CFG(2.0) if "emoji" in folder.name else Unguided()
    result = sampler(SEEDS, class_labels=labels, guidance=guidance, solver="unipc-2", nfe=NFE)
    pictures = (picture.convert("RGB") for picture in to_pil(result.samples))
    return [each.resize((SIDE, SIDE), Resampling.NEAREST) for each in pictures]


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked.add_argument("out", type=Path)
    asked.add_argument("--folder", type=Path, default=Path("trained"))
    given = asked.parse_args()
    rows = [draw_row(given.folder / f"zoo-{name}") for name in NAMES]
    write_sheet([picture for row in rows for picture in row], len(SEEDS), given.out)


if __name__ == "__main__":
    main()
