"""Inner products of what a cache would store, at all calls of full runs.

They tell how well any predictor of fixed weights forecasts any call after any full ones, without
the network: see `search/masks.py`.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..models.caching.base import CacheInfo, Keep, Policy
from ..models.caching.memory import Memory, add_weighted
from ..models.caching.predictors import Predictor, PredictorInfo
from ..models.errors import SettingError


def record_gram(policy: Policy, run: Callable[[Policy], object]) -> NDArray[np.float64]:
    """Returns G (S, S): G_ab = sum over noises, branches and numbers of F_a F_b, in float64.

    F_a is what the policy stores at call a; a policy that stores several tensors has their sum, and
    the stages of a step are added up.

    Args:
        policy: the cache, whose own full calls and predictor do not matter.
        run: makes runs of S calls with the cache that it is given, which never skips. All that the
            calls of one batch store is held at once.

    Raises:
        SettingError: if nothing was stored.
    """
    recorder = GramRecorder()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".* skipped none of ")  # which is what it is for
        run(FullRun(policy, recorder))
    return recorder.gram()


class GramRecorder(Predictor):
    """Takes the place of a predictor and notes inner products."""

    info = PredictorInfo(
        name="recorder", kind="index", exact_on="", keeps="one per call", source="inner products"
    )

    def __init__(self) -> None:
        self.products: dict[tuple[int, int], Tensor] = {}

    def make_memory(self, calls: int | None = None) -> Memory:
        return RecordedValues(calls or 1, self.products)

    def gram(self) -> NDArray[np.float64]:
        """Returns the sums over everything that was noted, (S, S)."""
        if not self.products:
            raise SettingError("this cache stores nothing at the calls of such a run")
        calls = 1 + max(a for a, _ in self.products)
        matrix = np.zeros((calls, calls))
        for (a, b), value in self.products.items():
            matrix[a, b] = matrix[b, a] = float(value)
        return matrix


@dataclass
class RecordedValues(Memory):
    """The values of one tensor at all calls so far."""

    products: dict[tuple[int, int], Tensor]
    times: list[int] = field(default_factory=list, kw_only=True)

    def update(self, x: Tensor, index: int) -> None:
        self.stored.append(x.detach().clone().flatten())
        self.times.append(index)
        new = self.stored[-1].double()
        for time, each in zip(self.times, self.stored, strict=True):
            product = torch.dot(new, each.double())
            self.products[index, time] = self.products.get((index, time), 0.0) + product

    def forecast(self, index: int, onto: Tensor | None = None) -> Tensor:
        return add_weighted(self.stored[-1:], [1.0], onto)


class FullRun(Policy):
    """A policy that never skips, and stores what another one would."""

    info = CacheInfo(
        name="full run", decides="never", keeps="all", runs_on="all", source="inner products"
    )

    def __init__(self, policy: Policy, recorder: GramRecorder) -> None:
        self.policy, self.recorder = policy, recorder

    @property
    def keep(self) -> Keep:
        return Keep(self.policy.keep.what, self.recorder)

    @property
    def lead(self) -> int:
        return self.policy.lead

    @property
    def tail(self) -> int:
        return self.policy.tail

    @property
    def by_module(self) -> bool:
        return self.policy.by_module

    @property
    def unet_branch(self) -> int | None:
        return self.policy.unet_branch

    def fit_to(self, root: nn.Module) -> Policy:
        return FullRun(self.policy.fit_to(root), self.recorder)
