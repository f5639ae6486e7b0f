"""The nodes. Their ids stand in saved workflows and are never renamed."""

from pathlib import Path
from typing import Any

import folder_paths
from comfy.samplers import KSAMPLER
from comfy_api.latest import io

import fewstep
from fewstep.k_diffusion import check_schedule, get_sigmas, place_sigmas, sample, take_policy
from fewstep.k_diffusion.run import find_lack
from fewstep.models import caching
from fewstep.models.errors import SettingError
from fewstep.samplers.guidance.unbound import list_unbound
from fewstep.samplers.placement import list_grids
from fewstep.samplers.plan import DEFAULT_SOLVER
from fewstep.solvers.base import SOLVERS
from fewstep.solvers.presets import preset, preset_names

from .cache import add_cache
from .guider import make_guider
from .logged import log_warnings

CATEGORY = "sampling/fewstep"
DEFAULT = "default"
SOLVER_NAMES = [name for name in SOLVERS if not find_lack(SOLVERS.get(name).info)]
SETTINGS = "key=value,...; those of fewstep's page for this name"


class FewstepSampler(io.ComfyNode):
    """A solver of fewstep as a SAMPLER."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FewstepSampler",
            display_name="Sampler (fewstep)",
            category=CATEGORY,
            inputs=[
                io.Combo.Input("solver", options=SOLVER_NAMES, default=DEFAULT_SOLVER),
                io.String.Input("settings", default="", tooltip=SETTINGS),
            ],
            outputs=[io.Sampler.Output()],
        )

    @classmethod
    def execute(cls, solver: str, settings: str) -> io.NodeOutput:
        options = {"solver": fewstep.solver(_join(solver, settings))}
        return io.NodeOutput(KSAMPLER(sample, options))


class FewstepGrid(io.ComfyNode):
    """A time grid of fewstep on a network, as SIGMAS."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FewstepGrid",
            display_name="Grid (fewstep)",
            category=CATEGORY,
            inputs=[
                io.Model.Input("model"),
                io.Combo.Input("grid", options=[DEFAULT, *list_grids()], default=DEFAULT),
                io.String.Input("settings", default="", tooltip=SETTINGS),
                io.Int.Input("steps", default=10, min=1, max=10000),
                io.Float.Input("denoise", default=1.0, min=0.0, max=1.0, step=0.01),
            ],
            outputs=[io.Sigmas.Output()],
        )

    @classmethod
    def execute(
        cls, model: Any, grid: str, settings: str, steps: int, denoise: float
    ) -> io.NodeOutput:
        if grid == DEFAULT and settings.strip():
            raise SettingError(f"the default grid takes no settings, not {settings!r}; name a grid")
        spec = None if grid == DEFAULT else _join(grid, settings)
        sampling = model.get_model_object("model_sampling")
        with log_warnings():
            return io.NodeOutput(place_sigmas(sampling, spec, steps, denoise))


class FewstepSchedule(io.ComfyNode):
    """A schedule of fewstep as the SIGMAS and the SAMPLER that belong together."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FewstepSchedule",
            display_name="Schedule (fewstep)",
            category=CATEGORY,
            inputs=[
                io.Model.Input("model"),
                io.String.Input(
                    "schedule",
                    default=preset_names()[0],
                    multiline=True,
                    tooltip="a name of `fewstep list schedules`, a file in ComfyUI's input folder,"
                    " or the JSON itself",
                ),
            ],
            outputs=[io.Sigmas.Output(), io.Sampler.Output()],
        )

    @classmethod
    def execute(cls, model: Any, schedule: str) -> io.NodeOutput:
        known = _read_schedule(schedule.strip())
        check_schedule(known, model.get_model_object("model_sampling"))
        return io.NodeOutput(get_sigmas(known), KSAMPLER(sample, {"solver": known}))


class FewstepCache(io.ComfyNode):
    """A MODEL whose blocks are forecast at some of its calls."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FewstepCache",
            display_name="Cache (fewstep)",
            category=CATEGORY,
            inputs=[
                io.Model.Input("model"),
                io.Combo.Input("policy", options=caching.names(), default="taylorseer"),
                io.String.Input(
                    "settings", default="interval=3,order=1,level=last-block", tooltip=SETTINGS
                ),
            ],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def execute(cls, model: Any, policy: str, settings: str) -> io.NodeOutput:
        return io.NodeOutput(add_cache(model, caching.cache(_join(policy, settings))))


class FewstepGuidance(io.ComfyNode):
    """A guidance policy as a GUIDER."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FewstepGuidance",
            display_name="Guidance (fewstep)",
            category=CATEGORY,
            inputs=[
                io.Model.Input("model"),
                io.Conditioning.Input("positive"),
                io.Conditioning.Input("negative", optional=True),
                io.Combo.Input("policy", options=list_unbound(), default="cfg"),
                io.String.Input("settings", default="scale=4", tooltip=SETTINGS),
            ],
            outputs=[io.Guider.Output()],
        )

    @classmethod
    def execute(
        cls, model: Any, positive: Any, policy: str, settings: str, negative: Any = None
    ) -> io.NodeOutput:
        known = take_policy(_join(policy, settings))
        return io.NodeOutput(make_guider(model, positive, negative, known))


NODES: list[type[io.ComfyNode]] = [
    FewstepSampler,
    FewstepGrid,
    FewstepSchedule,
    FewstepCache,
    FewstepGuidance,
]


def _join(name: str, settings: str) -> str:
    """Returns `name:key=value,...`, or the name alone."""
    return f"{name}:{settings.strip()}".rstrip(":")


def _read_schedule(text: str) -> fewstep.Schedule:
    """Returns the schedule of this JSON or this name, or of a file in ComfyUI's input folder.

    Raises:
        ScheduleError: for what is none of them; SettingError for a file elsewhere.
    """
    if text.startswith("{"):
        return fewstep.Schedule.parse(text)
    if text in preset_names():
        return preset(text)
    folder = Path(folder_paths.get_input_directory()).resolve()
    path = (folder / text).resolve()
    if not path.is_relative_to(folder):
        raise SettingError(
            f"schedules are read from ComfyUI's input folder, {folder}; put it there"
        )
    return fewstep.Schedule.load(path)
