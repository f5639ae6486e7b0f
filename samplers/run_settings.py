"""The settings of a run as data: how a network is asked, whatever it is to draw."""

import math
from typing import Annotated, Any

from pydantic import Field

from ..models.errors import SettingError
from ..models.reading import StrictModel
from ..solvers import Schedule
from ..solvers.artefact import MAX_STEPS
from .guidance import CFG, Guidance, Thresholded, parse_guidance
from .guidance.forecast import OLDER, write_forecast


class RunSettings(StrictModel):
    """The settings that decide how a network is asked.

    solver, grid, nfe, steps, final: as `make_plan` takes them; schedule instead of all of them.
    recipe:   of a distilled network, which decided solver and grid.
    cfg_scale, cfg_interval: of `CFG`; threshold: the quantile of `Thresholded`, if any.
    guidance_spec: another guidance, as `parse_guidance` takes it with cfg_scale; but a forecast
              that names no space or warm-up has those of 0.1.0, x0 and 1.
    cache:    `name:key=value,...` of a cache; gates that look at a whole batch make an image depend
              on the others in it.
    """

    solver: str | None = None
    grid: str | Annotated[tuple[float, ...], Field(max_length=MAX_STEPS + 1)] | None = None
    nfe: int | None = None
    steps: int | None = None
    final: str = "zero"
    schedule: Schedule | None = None
    recipe: str | None = None
    cfg_scale: float = 1.0
    cfg_interval: tuple[float, float] | None = None
    threshold: float | None = None
    guidance_spec: str | None = None
    cache: str | None = None

    def choices(self) -> dict[str, Any]:
        """Returns the arguments of `make_plan`."""
        named = {"solver": self.solver, "nfe": self.nfe, "steps": self.steps, "grid": self.grid}
        named["recipe"] = self.recipe
        given = {name: value for name, value in named.items() if value is not None}
        given["final"] = self.final
        if self.schedule is None:
            return given
        if "solver" in given:
            raise SettingError("a schedule decides the solver; drop the solver's name")
        return {"solver": self.schedule, **given}

    def guidance(self) -> Guidance:
        """Returns the guidance; a scale of 1 is none."""
        interval = (0.0, math.inf) if self.cfg_interval is None else self.cfg_interval
        if self.cfg_interval is not None and self.cfg_scale == 1.0 and not self.guidance_spec:
            raise SettingError("a guidance interval needs a guidance scale other than 1")
        guidance: Guidance = CFG(self.cfg_scale, interval)
        if self.guidance_spec is not None:
            guidance = self._parse_guidance(self.guidance_spec)
        return guidance if self.threshold is None else Thresholded(guidance, self.threshold)

    def _parse_guidance(self, spec: str) -> Guidance:
        if self.cfg_interval is not None:
            low, high = self.cfg_interval
            raise SettingError(
                f"a named guidance takes its interval with it; write {spec}+interval:low={low:g},"
                f"high={high:g} and drop the guidance interval"
            )
        return parse_guidance(
            write_forecast(spec, OLDER), None if self.cfg_scale == 1.0 else self.cfg_scale
        )

    def arguments(self) -> dict[str, Any]:
        """Returns the arguments that a call of a sampler has of them."""
        return {"guidance": self.guidance(), "cache": self.cache, **self.choices()}
