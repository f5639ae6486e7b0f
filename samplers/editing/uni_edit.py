"""Uni-Edit: both velocities at one state, the difference where they differ (arXiv:2504.13109).

The image is inverted by Uni-Inv up to a share alpha of the grid. From there to the data, with
h = sigma_s - sigma_t < 0,

    g = v_target - v_source,   m = mean over channels of g, scaled to [0, 1] over the image,
    x_s = x + omega h (1 + m) g + h (m v_target + (1 - m) v_source).
"""

import math
from itertools import pairwise
from typing import Annotated, ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from ...models.errors import SettingError
from ...models.schedule import TimeGrid
from ..inversion import walk
from ..inversion_plan import InversionPlan, plan_inversion
from .base import EditorInfo, Steps, register
from .scene import Scene


@register
@dataclass(frozen=True)
class UniEdit:
    """alpha: share of the steps that are run, those next to the data.
    omega:    strength.
    steps:    of the whole grid.
    guidance: scale of both velocities.
    grid, t_min: as `plan_inversion` takes them.
    """

    info: ClassVar[EditorInfo] = EditorInfo(
        name="uni-edit", source="arXiv:2504.13109", families=("flow",)
    )
    alpha: Annotated[float, Field(gt=0.0, le=1.0)] = 0.6
    omega: float = 5.0
    steps: Steps = 15
    guidance: float = 1.0
    grid: str | None = None
    t_min: float | None = None

    def edit(self, scene: Scene) -> Tensor:
        way = self._take_last_steps(scene)
        x = scene.image * way.rising[0].alpha
        x = walk(scene.make_denoiser(scene.source), way, x, lambda n, _: None)
        for t, s in pairwise(way.grid.nodes):
            source, target = (
                scene.compute_velocity(x, t, branches, self.guidance)
                for branches in (scene.source, scene.target)
            )
            h, g = s.sigma - t.sigma, target - source
            m = _make_mask(g)
            x = x + h * (self.omega * (1 + m) * g + m * target + (1 - m) * source)
        return x / way.grid.nodes[-1].alpha

    def _take_last_steps(self, scene: Scene) -> InversionPlan:
        """Returns the last floor(alpha steps) steps of the grid."""
        whole = plan_inversion(
            scene.network, "uni-inv", steps=self.steps, grid=self.grid, t_min=self.t_min
        )
        count = math.floor(self.alpha * self.steps + 1e-9)
        if not count:
            raise SettingError(f"alpha={self.alpha:g} leaves none of {self.steps} steps; raise it")
        part = TimeGrid(whole.grid.schedule, whole.grid.nodes[-count - 1 :])
        return InversionPlan(whole.settings, whole.back, part)


def _make_mask(g: Tensor) -> Tensor:
    """Returns the mean over channels (B, 1, *), scaled to 0..1 over the places of each image."""
    mean = g.mean(1, keepdim=True)
    places = tuple(range(1, g.ndim))
    low, high = mean.amin(places, keepdim=True), mean.amax(places, keepdim=True)
    return (mean - low) / (high - low + 1e-7)
