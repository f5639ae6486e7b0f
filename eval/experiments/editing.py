"""`fewstep bench edit`: whether class edits reach their class, and what they keep of the image.

Image i of class c is to become class (c + 1 + i mod 9) mod 10, so that all pairs are tried alike.
An edit has arrived if fd-small's classifier calls it the target. What it kept is a distance to the
source, beside the same distance of fresh samples of the target class, drawn with guidance 2.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ...models.errors import SettingError
from ...samplers.editing import Editor
from ...samplers.editing.base import take_editor
from ...samplers.guidance import CFG
from ...samplers.images import to_pil, to_uint8, write_sheet
from ...samplers.sampler import Sampler
from ..bench.table import markdown_table
from ..extractors.small import FASHION, load_small
from ..metrics import PairMetric, pair_metric
from .inversion import load_labelled_images

FRESH = "fresh samples"
EDITORS = (  # the published settings of the last three were found on text-to-image networks
    "rf-edit",
    "uni-edit:alpha=0.75,omega=1",
    "rf-inversion:guidance=3,stop=0.3",
    "flow-edit:n_max=20",
)
SHOWN = 10  # images in a strip


@dataclass(frozen=True)
class Edited:
    """The result of one editor. arrived: share called the target; distance: mean to the source;
    nfe: evaluations per image, rows: with guidance counting twice.
    """

    name: str
    arrived: float
    distance: float
    nfe: float
    rows: float
    samples: Tensor


@dataclass(frozen=True, kw_only=True)
class ClassEdits:
    """The table to be measured.

    distance: a metric of pairs, such as lpips, ssim or rmse.
    """

    model: str = "fashion-dit"
    data: str = "fashion-mnist-32:test"
    images: int = 40
    editors: Sequence[str] = EDITORS
    distance: str = "lpips"
    guidance: float = 2.0

    def run(self, strip: Path | None = None, *, progress: bool = False) -> list[Edited]:
        """Returns one entry per editor, and the fresh samples first.

        Raises:
            UnknownNameError: for a distance that does not exist.
            SettingError: for a network of other classes, or a distance that compares whole sets.
        """
        distance = pair_metric(self.distance)
        for name in self.editors:
            take_editor(name)
        sampler = Sampler.from_pretrained(self.model)
        if sampler.network.num_classes != FASHION.classes:
            raise SettingError(
                f"the classifier knows {FASHION.classes} classes; {self.model} has others"
            )
        editors = [Editor(sampler, name) for name in self.editors]
        x, source = load_labelled_images(self.data, self.images)
        target = [(label + 1 + i % 9) % FASHION.classes for i, label in enumerate(source)]
        seeds = range(len(x))
        fresh = sampler(seeds, class_labels=target, nfe=20, guidance=CFG(self.guidance))
        judge = _EditJudge(x, target, distance)
        edits = [judge(FRESH, fresh.samples, fresh.ledger.nfe, fresh.ledger.rows / len(x))]
        bar = tqdm(self.editors, disable=None if progress else True, leave=False)
        for name, editor in zip(bar, editors, strict=True):
            edit = editor(x, source=source, target=target, seeds=seeds)
            edits.append(judge(name, edit.samples, edit.ledger.nfe, edit.ledger.rows / len(x)))
        if strip is not None:
            shown = [x, *(each.samples for each in edits)]
            write_sheet([p for part in shown for p in to_pil(part[:SHOWN])], SHOWN, strip)
        return edits


class _EditJudge:
    """Holds edits against their targets and sources."""

    def __init__(self, x: Tensor, target: Sequence[int], distance: PairMetric) -> None:
        self.x, self.target, self.distance = x, torch.tensor(target), distance
        self.network = load_small()

    def __call__(self, name: str, samples: Tensor, nfe: float, rows: float) -> Edited:
        samples = samples.clamp(-1.0, 1.0)
        features = self.network(to_uint8(samples).permute(0, 3, 1, 2))["pool"]
        small = self.network.network
        with torch.no_grad():
            called = small.head(features).argmax(1)
        arrived = float((called == self.target).float().mean())
        distance = float(self.distance.function(samples, self.x).mean())
        return Edited(name, arrived, distance, nfe, rows, samples)


def lines(edits: Sequence[Edited], distance: str) -> Iterator[str]:
    """Yields a Markdown table."""
    rows = [("editor", "target class", f"{distance} to the source", "NFE", "rows")]
    for each in edits:
        arrived, away = f"{each.arrived:.1%}", f"{each.distance:.3f}"
        rows.append((each.name, arrived, away, f"{each.nfe:g}", f"{each.rows:g}"))
    return markdown_table(rows)
