"""A line through two full calls, at the place that leading blocks tell (DiCache)."""

from dataclasses import dataclass as plain
from typing import ClassVar

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor

from ...errors import SettingError
from ..memory import Memory, add_weighted, are_alike
from .base import Predictor, PredictorInfo, register


@register
@dataclass(frozen=True)
class Anchors(Predictor):
    """The skipped call is placed on the line of two full ones by what its leading blocks add.

    F^ = F_1 + g (F_0 - F_1),  g = mean |r - r_1| / mean |r_0 - r_1|, held between 1 and limit,

    with r what the leading blocks add to the image at the skipped call, r_0 and r_1 at the full
    ones; of each image by itself. Where r = r_0 = r_1, g is 1. It takes a policy with leading
    blocks.

    limit: above 1; published: 1.5 for FLUX and HunyuanVideo, 2 for Wan.
    """

    info: ClassVar[PredictorInfo] = PredictorInfo(
        name="anchors",
        kind="observation",
        exact_on="lines, as far as the limit",
        keeps="4",
        source="DiCache (arXiv:2508.17356)",
    )
    needs_probe: ClassVar[bool] = True

    limit: float = 1.5

    def __post_init__(self) -> None:
        if not 1.0 < self.limit < float("inf"):
            raise SettingError(f"limit must be above 1, not {self.limit:g}; 1.5 and 2 are usual")

    @property
    def depth(self) -> int:
        return 2

    @property
    def exact_degree(self) -> int:
        return 1

    def make_memory(self, calls: int | None = None) -> Memory:
        return AnchorValues(4, self.limit)


@plain
class AnchorValues(Memory):
    """F_0 and r_0, and after the second full call F_1 and r_1."""

    limit: float

    @property
    def expected_bytes(self) -> int:
        return 2 * sum(each.nbytes for each in self.stored[:2])

    def update(self, x: Tensor, index: int) -> None:
        assert self.probe is not None
        if not are_alike(self.stored, x, x.dtype):
            self.stored = []
        free = self.stored[2:] or [torch.empty_like(x), torch.empty_like(self.probe)]
        newest = [old.copy_(new) for old, new in zip(free, (x, self.probe), strict=True)]
        self.stored = [*newest, *self.stored[:2]]

    def forecast(self, index: int, onto: Tensor | None = None) -> Tensor:
        if len(self.stored) == 2:
            return add_weighted(self.stored[:1], [1.0], onto)
        assert self.probe is not None
        (last, r_0, earlier, r_1), r = self.stored, self.probe
        ratio = _sum_apart(r, r_1) / _sum_apart(r_0, r_1)
        place = ratio.nan_to_num(nan=1.0).clamp_(1.0, self.limit)
        out = add_weighted([last, earlier], [1.0, -1.0])
        out.mul_(place.reshape(-1, *[1] * (out.ndim - 1))).add_(earlier)
        return out if onto is None else out.add_(onto)


def _sum_apart(x: Tensor, y: Tensor) -> Tensor:
    """Returns sum |x - y| of each row, in single precision at least."""
    apart = add_weighted([x, y], [1.0, -1.0]).flatten(1)
    sums: Tensor = torch.linalg.vector_norm(apart, ord=1, dim=1)
    return sums
