"""`fewstep fid`: figures of plain folders and archives."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ...models.errors import SettingError
from ..data import ImageSet, images_of
from ..extractors import Extractor, extractor, origin_of
from ..requests import EvaluationRequest
from ..statistics_file import holds_statistics
from .base import PairMetric, SetMetric, metric
from .measure import Figure, How, Side, pair_figures, set_figures


@dataclass(frozen=True)
class MetricReport:
    """The figures and what they were measured with."""

    request: EvaluationRequest
    figures: Sequence[Figure]
    extractor: Extractor | None

    def lines(self) -> list[str]:
        """Returns one line per figure, with its n: figures of different n do not compare."""
        return [
            f"{each.label:14} {each.value:12.6g}   n {each.n or '?'}"
            + (f", reference {each.n_reference or '?'}" if self.request.reference else "")
            for each in self.figures
        ]

    def as_json(self) -> str:
        """Returns the figures, the question and the extractor."""
        body = {
            "figures": [asdict(each) for each in self.figures],
            "images": self.request.images,
            "reference": self.request.reference,
            "extractor": None if self.extractor is None else asdict(origin_of(self.extractor)),
        }
        return json.dumps(body, indent=2)


def measure_request(request: EvaluationRequest, progress: bool = False) -> MetricReport:
    """Measures what was asked.

    Raises:
        FewstepError: for unknown names, sources that cannot be read, weights that cannot be had,
            and references that do not fit.
    """
    how = How(request.batch, progress=progress)
    default = "fid" if request.extractor == "inception" else "fd"
    metrics = [metric(name.strip()) for name in (request.metrics or default).split(",")]
    sets = [each for each in metrics if isinstance(each, SetMetric)]
    pairs = [each for each in metrics if isinstance(each, PairMetric)]
    if request.reference is None and (pairs or any(each.uses_reference for each in sets)):
        raise SettingError(
            "give --reference: a data set's name, a folder, a .zip, or an .npz of images or"
            " statistics"
        )
    images = side(request.images, request.n)
    reference = None if request.reference is None else side(request.reference, request.reference_n)
    figures = [] if not pairs else pair_figures(_set(images), _set(reference), pairs, how)
    network = None
    if sets:
        network = extractor(request.extractor, request.weights, request.device)
        figures = [*set_figures(images, reference, sets, network, how), *figures]
    return MetricReport(request, figures, network)


def side(source: str, n: int | None) -> Side:
    """Returns images, or the path of an npz that holds statistics."""
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
