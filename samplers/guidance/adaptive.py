"""Adaptive guidance: the unconditional branch is dropped once it says the same (arXiv:2312.12487).

At a guided step, gamma = <c, u> / (|c| |u|) of every image. Once gamma > threshold in `need` steps
in a row, after a warm-up, the conditional branch alone is used from the next step on, for good:
what is no longer evaluated cannot be measured again. A run of S steps with K guided ones costs
S + K rows.

In eps the cosine starts near 1, since both predictions are mostly the noise itself, dips and rises
again; there a threshold that looks safe would end the guidance at the first step. So gamma is taken
in x0 unless asked otherwise, and a warm-up is required.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from ...models.denoiser import Ask, Branch
from ...models.devices import Reading, send
from ...models.errors import SettingError
from ...models.prediction import Prediction
from .base import BOTH, COND, Guide, Moment, Setup, register
from .forecast import PastDifferences
from .settings import Scaled
from .space import Space, choose_prediction, compute_similarity, convert_from_x0, shape_per_row


@register
@dataclass(frozen=True)
class AdaptiveGuidance(Scaled):
    """CFG until conditional and unconditional prediction agree.

    scale:     as in `CFG`.
    threshold: in (-1, 1]; 1 never stops and is CFG to the bit. The paper's 0.991 is of its own
               networks; `fewstep calibrate` proposes one for a wanted saving.
    space:     of the cosine: "x0", "v" (eps - x0 on rectified flow) or "eps".
    warmup:    steps that are guided in any case, at least 1.
    need:      steps in a row above the threshold.
    batch:     who has to agree: "all" images, their "mean", or each by itself ("per-sample": only
               the rows that still need it are evaluated).
    landing:   what follows: "drop" is the published end, "hold" and "linear" keep the guidance
               going with the last difference c - u of eps, held or extrapolated in lam. In x0 a
               held difference of eps fades with sigma / alpha.
    rewrite_history: with "drop", a multistep solver's memory follows; see `history`.

    Each batch of a run decides for itself, so with "all" and "mean" an image depends on the others
    in its batch.
    """

    name: ClassVar[str] = "adaptive"
    source: ClassVar[str] = "arXiv:2312.12487"

    threshold: float = 0.99
    space: Space = "x0"
    warmup: Annotated[int, Field(ge=1)] = 3
    need: Annotated[int, Field(ge=1)] = 2
    batch: Literal["all", "mean", "per-sample"] = "all"
    landing: Literal["drop", "hold", "linear"] = "drop"
    rewrite_history: bool = False

    @property
    def saves(self) -> bool:
        return not self.off

    def __post_init__(self) -> None:
        super().__post_init__()
        if not -1.0 < self.threshold <= 1.0:
            raise SettingError(
                f"adaptive: a threshold of a cosine lies in (-1, 1], not {self.threshold:g}; 1 is"
                " off, 0.99 a start"
            )
        if self.rewrite_history and self.landing != "drop":
            raise SettingError(
                f"adaptive: after landing={self.landing} nothing jumps that rewrite_history could"
                " mend; drop one of them"
            )

    @property
    def rewrites(self) -> bool:
        return self.rewrite_history

    def check(self, setup: Setup) -> None:
        if setup.cached and self.batch == "per-sample":
            raise SettingError(
                "a cache on the network remembers whole batches; take adaptive:batch=all with it"
            )
        if setup.adaptive:
            raise SettingError(
                "adaptive guidance changes the equation in mid-run, which an adaptive solver takes"
                " for its own error; take a solver with fixed steps"
            )

    def guide(self, setup: Setup) -> Guide:
        return AdaptiveGuide(self, setup)


class AdaptiveGuide(Guide):
    """Counts, for each image, the steps in a row whose branches agreed."""

    def __init__(self, policy: AdaptiveGuidance, setup: Setup) -> None:
        self.policy, self.kind = policy, choose_prediction(policy.space, setup.grid.schedule)
        self.hits, self.device = [0] * setup.images, setup.network.device
        self.on = [True] * setup.images  # whether an image is guided still
        self.asked: Tensor | None = None  # its rows, if not all
        self.gamma: Reading | None = None  # of the last step, read at the next
        self.past = PastDifferences(0 if policy.landing == "hold" else 1, "lam", Prediction.EPS)

    def ask(self, moment: Moment) -> tuple[Ask, ...]:
        if moment.stage == 0:
            self._judge(moment.step)
        if not any(self.on):
            return COND
        if all(self.on) or self.asked is None:
            return BOTH
        return (Ask(Branch.UNCOND, self.asked), Ask(Branch.COND))

    def _judge(self, step: int) -> None:
        """Reads the gamma of the step before, which decides this one."""
        if self.gamma is None:
            return
        gamma: list[float] = self.gamma.numbers()
        self.gamma = None
        if self.policy.batch == "mean":
            gamma = [sum(gamma) / len(gamma)] * len(gamma)
        rows = [row for row, on in enumerate(self.on) if on]
        for row, value in zip(rows, gamma, strict=True):
            self.hits[row] = self.hits[row] + 1 if value > self.policy.threshold else 0
        done = [step >= self.policy.warmup and hits >= self.policy.need for hits in self.hits]
        if self.policy.batch == "per-sample":
            self.on = [on and not end for on, end in zip(self.on, done, strict=True)]
            still_on = [row for row, on in enumerate(self.on) if on]
            self.asked = send(torch.tensor(still_on), self.device)
        elif all(done):
            self.on = [False] * len(self.on)

    def combine(self, outputs: Sequence[Tensor], x: Tensor, moment: Moment) -> Tensor:
        cond = outputs[-1]
        if len(outputs) == 1:
            return cond if self.policy.landing == "drop" else self._land(cond, moment)
        uncond, rows = outputs[0], None if len(outputs[0]) == len(cond) else self.asked
        if moment.stage == 0 and not moment.forecast:
            self._measure(uncond, cond if rows is None else cond[rows], x, rows, moment)
        if rows is None:
            self._keep(cond - uncond, moment)
            return torch.lerp(uncond, cond, self.policy.scale)
        return self._select_rows(uncond, cond, rows, moment)

    def _measure(
        self, uncond: Tensor, cond: Tensor, x: Tensor, rows: Tensor | None, moment: Moment
    ) -> None:
        x = x if rows is None else x[rows]
        a, b = (convert_from_x0(each, x, moment.node, self.kind) for each in (cond, uncond))
        self.gamma, self.device = Reading(compute_similarity(a, b)), x.device

    def _select_rows(self, uncond: Tensor, cond: Tensor, rows: Tensor, moment: Moment) -> Tensor:
        """Returns x0 guided in some rows, and in the others as after the end."""
        if self.policy.landing == "drop":
            out = cond.clone()
        else:
            out = self._land(cond, moment)
            gone = shape_per_row(send(torch.tensor(self.on), cond.device), cond)
            known = torch.zeros_like(cond).index_copy(0, rows, cond[rows] - uncond)
            self._keep(known * gone + self.past.at(moment.node) * (1.0 - gone), moment)
        out[rows] = torch.lerp(uncond, cond[rows], self.policy.scale)
        return out

    def _keep(self, difference: Tensor, moment: Moment) -> None:
        if self.policy.landing != "drop":
            self.past.add(moment.node, difference)

    def _land(self, cond: Tensor, moment: Moment) -> Tensor:
        return cond + (self.policy.scale - 1.0) * self.past.at(moment.node)

    @property
    def guided(self) -> bool | tuple[bool, ...]:
        if self.policy.landing != "drop" or all(self.on):
            return True
        return any(self.on) and tuple(self.on)
