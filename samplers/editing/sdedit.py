"""SDEdit: the image with noise of a later time, sampled from there (arXiv:2108.01073).

With the noise z of the process, which on PFGM++ has one spread for the whole image, and the node t
of N at which the last `strength` N steps begin,

    x_t = alpha_t x0_source + sigma_t z,

and from there any solver runs to the data under the target's condition.
"""

from typing import Annotated, ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from ...models.errors import SettingError
from ...models.schedule import TimeGrid
from ...solvers.base import SOLVERS
from ..conditions import tell_scale
from ..guidance import CFG
from ..loop import integrate
from ..plan import make_plan
from .base import EditorInfo, Steps, register
from .scene import Scene, check_guided


@register
@dataclass(frozen=True)
class SDEdit:
    """strength: share of the steps that are run, those next to the data; more changes more.
    steps:    N of the whole grid.
    solver:   any with fixed steps.
    guidance: scale of the target.
    grid:     a name, as `make_plan` takes it.
    """

    info: ClassVar[EditorInfo] = EditorInfo(name="sdedit", source="arXiv:2108.01073", random=True)
    strength: Annotated[float, Field(gt=0.0, le=1.0)] = 0.6
    steps: Steps = 20
    solver: str = SOLVERS.preferred
    guidance: float = 1.0
    grid: str | None = None

    def edit(self, scene: Scene) -> Tensor:
        network = scene.network
        target, scale = tell_scale(network, scene.target, self.guidance)
        check_guided(target, scale, network.name)
        part = self._take_last_steps(scene)
        start = part.nodes[0]
        x = start.alpha * scene.image + start.sigma * scene.draw()
        solver = SOLVERS.make(self.solver).on(part)
        return integrate(
            scene.make_denoiser(target), solver, part, x, CFG(scale), noise=scene.noise.draw
        )

    def _take_last_steps(self, scene: Scene) -> TimeGrid:
        """Returns the last round(strength steps) steps of the grid."""
        plan = make_plan(scene.network.schedule, self.solver, steps=self.steps, grid=self.grid)
        count = round(self.strength * self.steps)
        if not count:
            raise SettingError(
                f"strength={self.strength:g} leaves none of {self.steps} steps; raise it"
            )
        return plan.grid.part(plan.grid.steps - count, plan.grid.steps)
