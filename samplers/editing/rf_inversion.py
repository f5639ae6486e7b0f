"""RF-Inversion: a flow that is drawn to a fixed noise, and back to the source (arXiv:2410.10792).

With y1 ~ N(0, I) fixed, the null condition, and dt > 0 on the way to the noise,

    x += ((1 - gamma) v + gamma (y1 - x) / (1 - t)) dt,

and with the target on the way back, where x0_source is the image and v = dx/dt,

    x += ((1 - eta_i) v + eta_i (x - x0_source) / t) (s - t).

(x - x0) / t is the velocity of the straight line to the source.
"""

from itertools import pairwise
from typing import ClassVar

from pydantic.dataclasses import dataclass
from torch import Tensor

from ...models.denoiser import Branch
from ..conditions import Branches
from ..inversion_plan import plan_inversion
from .base import EditorInfo, Share, Steps, register
from .scene import Scene


@register
@dataclass(frozen=True)
class RFInversion:
    """gamma: pull to the noise on the way there.
    eta:      pull to the source on the way back, in steps floor(start N) <= i < floor(stop N).
    start, stop: shares of the steps.
    decay:    exponent p of (1 - i / N)^p, which multiplies eta.
    steps:    N.
    guidance: scale on the way back.
    grid:     as `plan_inversion` takes it.
    """

    info: ClassVar[EditorInfo] = EditorInfo(
        name="rf-inversion", source="arXiv:2410.10792", families=("flow",), random=True
    )
    gamma: Share = 0.5
    eta: Share = 0.9
    start: Share = 0.0
    stop: Share = 0.25
    decay: float = 0.0
    steps: Steps = 28
    guidance: float = 1.0
    grid: str | None = None

    def edit(self, scene: Scene) -> Tensor:
        way = plan_inversion(scene.network, "euler", steps=self.steps, grid=self.grid)
        x, y1 = scene.image * way.rising[0].alpha, scene.draw()
        for t, s in pairwise(way.rising):
            v = scene.compute_velocity(x, t, _take_null(scene.source))
            pull = (y1 - x) / max(t.alpha, 1.0 / self.steps)
            x = x + (s.sigma - t.sigma) * (v + self.gamma * (pull - v))
        for i, (t, s) in enumerate(pairwise(way.grid.nodes)):
            v = scene.compute_velocity(x, t, scene.target, self.guidance)
            home = (x - scene.image) / max(t.sigma, 1.0 / self.steps)
            x = x + (s.sigma - t.sigma) * (v + self._compute_eta(i) * (home - v))
        return x / way.grid.nodes[-1].alpha

    def _compute_eta(self, i: int) -> float:
        inside = int(self.start * self.steps) <= i < min(int(self.stop * self.steps), self.steps)
        decayed: float = (1.0 - i / self.steps) ** self.decay
        return self.eta * decayed if inside else 0.0


def _take_null(branches: Branches) -> Branches:
    """Returns the unconditional branch where there is one, else the condition."""
    return {Branch.COND: branches.get(Branch.UNCOND, branches[Branch.COND])}
