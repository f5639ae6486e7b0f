"""SMC-CFG: sliding-mode control of the difference of the branches (arXiv:2603.03281)."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor
from torch.nn.functional import softshrink

from ...models.prediction import Prediction
from .base import Guide, Moment, Setup, register
from .settings import Both, Scaled
from .signature import check_ddim
from .space import choose_prediction, compute_factor


@register
@dataclass(frozen=True)
class SlidingModeCFG(Scaled):
    """CFG of v, eps - x0 on rectified flow, whose difference e = c - u has k taken off.

    switch "sign", as published: q = (e - e') + rate e' with e' that of the evaluation before, at
    first e itself; e'' = e - k sign(q), which the next evaluation remembers; v = u + scale e''.
    "soft": v = c + (scale - 1) sign(e) max(0, |e| - k). Either is CFG with k = 0.

    scale:  as in `CFG`.
    k:      at least 0, in units of v, so that it does not carry over from one network to another.
    rate:   of "sign", lambda of the paper; at least 0.
    switch: "sign" changes from one evaluation to the next: entries smaller than k get a guidance
            of alternating sign. It is for ddim and euler. "soft" remembers nothing and runs on all
            solvers.
    """

    name: ClassVar[str] = "smc"
    source: ClassVar[str] = "arXiv:2603.03281; soft: none"

    k: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.1
    rate: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 5.0
    switch: Literal["sign", "soft"] = "sign"

    def check(self, setup: Setup) -> None:
        if self.switch == "sign" and not self.off:
            reason = (
                "switches from one evaluation to the next, which a solver of higher order takes for"
                " a change of the prediction (switch=soft does not)"
            )
            check_ddim(self.name, reason, setup)

    def guide(self, setup: Setup) -> Guide:
        kind = choose_prediction("v", setup.grid.schedule)
        return SoftGuide(self, kind) if self.switch == "soft" else SwitchedGuide(self, kind)


class SwitchedGuide(Both):
    """Remembers the last difference, in v."""

    def __init__(self, policy: SlidingModeCFG, kind: Prediction) -> None:
        self.policy, self.kind = policy, kind
        self.last: Tensor | None = None

    def blend(self, uncond: Tensor, cond: Tensor, x: Tensor, moment: Moment) -> Tensor:
        policy, factor = self.policy, compute_factor(moment.node, self.kind)
        e = (cond - uncond) * factor
        last = e if self.last is None else self.last
        q = (e - last).add_(last, alpha=policy.rate)
        self.last = e.sub_(q.sign_(), alpha=policy.k)
        return uncond.add(self.last, alpha=policy.scale / factor)


@dataclass(frozen=True)
class SoftGuide(Both):
    """Shrinks the difference; needs nothing of a run but the node."""

    policy: SlidingModeCFG
    kind: Prediction

    def blend(self, uncond: Tensor, cond: Tensor, x: Tensor, moment: Moment) -> Tensor:
        k = self.policy.k / abs(compute_factor(moment.node, self.kind))
        return cond.add(softshrink(cond - uncond, k), alpha=self.policy.scale - 1.0)
