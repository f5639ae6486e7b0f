"""`fewstep fid`: figures of plain folders and archives."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ...models.errors import SettingError
from ..data import ImageSet, images_of
from ..extractors import Extractor, extractor, origin_of
from ..statistics import holds_statistics
from .base import PairMetric, SetMetric, metric
from .measure import DEFAULT, Figure, How, Side, pair_figures, set_figures


@dataclass(frozen=True)
class Question:
    """What is asked: which figures of what, against what.

    metrics:   names, with commas; None is fid, or fd for another extractor than inception.
    extractor: name; weights: its path, if not found by itself.
    n, reference_n: only the first so many images; None for all.
    """

    images: str
    reference: str | None
    metrics: str | None = None
    extractor: str = "inception"
    weights: Path | None = None
    device: str = "cpu"
    n: int | None = None
    reference_n: int | None = None


@dataclass(frozen=True)
class Answer:
    """The figures and what they were measured with."""

    question: Question
    figures: Sequence[Figure]
    extractor: Extractor | None

    def lines(self) -> list[str]:
        """One line per figure; n belongs to it, for figures of different n do not compare."""
        return [
            f"{each.label:14} {each.value:12.6g}   n {each.n or '?'}"
            + (f", reference {each.n_reference or '?'}" if self.question.reference else "")
            for each in self.figures
        ]

    def as_json(self) -> str:
        """The figures, the question and the extractor."""
        body = {
            "figures": [asdict(each) for each in self.figures],
            "images": self.question.images,
            "reference": self.question.reference,
            "extractor": None if self.extractor is None else asdict(origin_of(self.extractor)),
        }
        return json.dumps(body, indent=2)


def answer(question: Question, how: How = DEFAULT) -> Answer:
    """Measures what was asked.

    Raises:
        FewstepError: for unknown names, sources that cannot be read, weights that cannot be had,
            and references that do not fit.
    """
    default = "fid" if question.extractor == "inception" else "fd"
    asked = [metric(name.strip()) for name in (question.metrics or default).split(",")]
    sets = [each for each in asked if isinstance(each, SetMetric)]
    pairs = [each for each in asked if isinstance(each, PairMetric)]
    if question.reference is None and (pairs or any(each.uses_reference for each in sets)):
        raise SettingError(
            "give --reference: a data set's name, a folder, a .zip, or an .npz of images or"
            " statistics"
        )
    images = side(question.images, question.n)
    reference = (
        None if question.reference is None else side(question.reference, question.reference_n)
    )
    figures = [] if not pairs else pair_figures(_set(images), _set(reference), pairs, how)
    network = None
    if sets:
        network = extractor(question.extractor, question.weights, question.device)
        figures = [*set_figures(images, reference, sets, network, how), *figures]
    return Answer(question, figures, network)


def side(source: str, n: int | None) -> Side:
    """Images, or the path of an npz that holds statistics."""
    path = Path(source)
    if path.suffix.lower() == ".npz" and holds_statistics(path):
        if n is not None:
            raise SettingError(f"{source!r} holds statistics of a whole set; drop its number")
        return path
    images = images_of(source)
    return images if n is None else images.first(n)


def _set(side: Side | None) -> ImageSet:
    if not isinstance(side, ImageSet):
        raise SettingError("figures of pairs need images on both sides, not statistics")
    return side
