"""FlowEdit: from source to target without inversion (arXiv:2412.08629).

From z = x_source, in each of the last n_max of N steps from t to s, with fresh eps ~ N(0, I),

    z_s = (1 - t) x_source + t eps,   z_t = z + z_s - x_source,
    z += (s - t) mean over n_avg of [v(z_t, target) - v(z_s, source)];

the last n_min steps sample the target from z + z_s - x_source.
"""

from itertools import pairwise
from typing import Annotated, ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from ...models.errors import SettingError
from ...models.schedule import Node
from ..inversion_plan import plan_inversion
from .base import EditorInfo, Steps, register
from .scene import Scene


@register
@dataclass(frozen=True)
class FlowEdit:
    """steps:      N of the whole grid.
    n_max:         steps that are run, those next to the data; more changes more.
    n_min:         of these, how many at the end are ordinary sampling of the target.
    n_avg:         noises that each step is the mean of.
    source_guidance, guidance: scales of the two velocities.
    grid:          as `plan_inversion` takes it.
    """

    info: ClassVar[EditorInfo] = EditorInfo(
        name="flow-edit", source="arXiv:2412.08629", families=("flow",), random=True
    )
    steps: Steps = 28
    n_max: Annotated[int, Field(ge=1)] = 24
    n_min: Annotated[int, Field(ge=0)] = 0
    n_avg: Annotated[int, Field(ge=1)] = 1
    source_guidance: float = 1.5
    guidance: float = 5.5
    grid: str | None = None

    def edit(self, scene: Scene) -> Tensor:
        if not self.n_min <= self.n_max <= self.steps:
            raise SettingError(
                f"flow-edit needs n_min <= n_max <= steps, not {self.n_min}, {self.n_max},"
                f" {self.steps}"
            )
        way = plan_inversion(scene.network, "euler", steps=self.steps, grid=self.grid)
        ends = list(pairwise(way.grid.nodes))[-self.n_max :]
        z = scene.image
        for t, s in ends[: self.n_max - self.n_min]:
            total = sum(
                (self._compute_difference(scene, z, t) for _ in range(self.n_avg)), start=0.0 * z
            )
            z = z + (s.sigma - t.sigma) / self.n_avg * total
        if not self.n_min:
            return z
        x = z + self._add_noise(scene, ends[-self.n_min][0]) - scene.image
        for t, s in ends[-self.n_min :]:
            x = x + (s.sigma - t.sigma) * scene.compute_velocity(x, t, scene.target, self.guidance)
        return x / way.grid.nodes[-1].alpha

    def _compute_difference(self, scene: Scene, z: Tensor, t: Node) -> Tensor:
        """Returns v(target) - v(source) under one fresh noise."""
        noised = self._add_noise(scene, t)
        moved = z + noised - scene.image
        target = scene.compute_velocity(moved, t, scene.target, self.guidance)
        return target - scene.compute_velocity(noised, t, scene.source, self.source_guidance)

    def _add_noise(self, scene: Scene, t: Node) -> Tensor:
        return t.alpha * scene.image + t.sigma * scene.draw()
