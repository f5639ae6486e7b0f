"""Adaptive projected guidance (arXiv:2410.02416): guidance without its over-saturating part."""

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from .base import Guide, Moment, Setup, register
from .settings import Both, Scaled
from .space import shape_per_row


@register
@dataclass(frozen=True)
class APG(Scaled):
    """The difference D = c - u of x0, with momentum, clipped in norm and in part taken out.

    D <- c - u + momentum D,  D <- D min(1, norm / |D|),  D = D_par + D_orth along c,
    update = D_orth + eta D_par. With eta = 1, norm = inf and momentum = 0 it is CFG.

    scale:    as in `CFG`.
    eta:      share of the part parallel to c that is kept, 0 in the paper; diffusers has 1.
    norm:     the most that |D| may be; the paper has 15 for SDXL and 2.5 to 7.5 for ImageNet.
    momentum: in (-1, 1); the paper has -0.5 to -0.75, diffusers 0. It runs over evaluations and
              alternates from one to the next, which a multistep solver takes for a change of the
              prediction: with unipc-2 in 8 to 12 evaluations it gave noise. Use it with ddim.
    form:     "cond": c + (scale - 1) update, as the paper; "uncond": u + scale update, as
              diffusers. They differ where the update is not c - u.
    """

    name: ClassVar[str] = "apg"
    source: ClassVar[str] = "arXiv:2410.02416 alg. 1"

    eta: float = 0.0
    norm: Annotated[float, Field(gt=0)] = 15.0
    momentum: Annotated[float, Field(gt=-1, lt=1)] = 0.0
    form: Literal["cond", "uncond"] = "cond"

    def guide(self, setup: Setup) -> Guide:
        return ProjectedGuide(self)


class ProjectedGuide(Both):
    """Remembers the running difference."""

    def __init__(self, policy: APG) -> None:
        self.policy = policy
        self.running: Tensor | None = None

    def blend(self, uncond: Tensor, cond: Tensor, x: Tensor, moment: Moment) -> Tensor:
        policy = self.policy
        d = cond - uncond
        if policy.momentum and self.running is not None:
            d = d.add(self.running, alpha=policy.momentum)
        self.running = d if policy.momentum else None
        update = _project(_clip(d, policy.norm), cond, policy.eta)
        if policy.form == "cond":
            return cond.add(update, alpha=policy.scale - 1.0)
        return uncond.add(update, alpha=policy.scale)


def _clip(d: Tensor, norm: float) -> Tensor:
    if math.isinf(norm):
        return d
    size = d.flatten(1).float().norm(dim=1).clamp_min(1e-30)
    return d * shape_per_row((norm / size).clamp(max=1.0), d)


def _project(d: Tensor, along: Tensor, eta: float) -> Tensor:
    """Returns D_orth + eta D_par, the projection in float64 where the device has it."""
    if eta == 1.0:
        return d
    wide = torch.float32 if d.device.type == "mps" else torch.float64
    a, b = d.flatten(1).to(wide), along.flatten(1).to(wide)
    share = (a * b).sum(1) / (b * b).sum(1).clamp_min(1e-30)
    return d - shape_per_row(share * (1.0 - eta), d) * along
