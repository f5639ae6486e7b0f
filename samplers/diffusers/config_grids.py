"""The grids that the config of a scheduler asks for."""

from collections.abc import Mapping
from typing import Any

from ...models.diffusers_config import EXPLODING, class_name_of
from ...models.errors import UnknownNameError
from ...models.schedule import NoiseSchedule, RectifiedFlow, VPDiscrete
from ..grid import choose_default_grid
from .trained_process import find_classes

GRID_FLAGS = {
    "use_karras_sigmas": "karras",
    "use_exponential_sigmas": "exponential",
    "use_beta_sigmas": "beta",
    "use_lu_lambdas": "logsnr",
}
DISTILLED = ("", "LCMScheduler", "TCDScheduler")  # "" is a config that was never saved
SPARE = {  # they take one point more than there are steps
    *("DEISMultistepScheduler", "DPMSolverMultistepScheduler", "SASolverScheduler"),
    "UniPCMultistepScheduler",
}


def choose_grid(schedule: NoiseSchedule, config: Mapping[str, Any]) -> str:
    """Returns the grid where none is chosen: what its flags say, of LCM and TCD the labels that
    they were distilled at, else uniform on flow, as pipelines do."""
    for flag, grid in GRID_FLAGS.items():
        if config.get(flag):
            return grid
    original = config.get("original_inference_steps")
    if original and isinstance(schedule, VPDiscrete) and class_name_of(config) in DISTILLED:
        return f"lcm:original={original}"
    return "uniform" if isinstance(schedule, RectifiedFlow) else choose_default_grid(schedule)


def choose_spacing(config: Mapping[str, Any], own: Mapping[str, Any]) -> str:
    """Returns the grid that the class of a config makes of a timestep_spacing that own asks for."""
    fields = {key for key in config if not key.startswith("_") and key != "base_class"}
    classes = {class_name_of(config)} - {""} or set(find_classes(fields))
    spare, asked = int(bool(classes & SPARE)), {**config, **own}
    match asked.get("timestep_spacing"):
        case "trailing":
            return "trailing"
        case "leading":
            return f"leading:offset={asked.get('steps_offset', 0)},spare={spare}"
        case "linspace":
            return f"linspace:spare={spare},whole={str(not classes & EXPLODING).lower()}"
    known = ("leading", "linspace", "trailing")
    raise UnknownNameError("timestep spacing", asked.get("timestep_spacing"), known)
