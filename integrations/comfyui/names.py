"""Names of this pack in ComfyUI's own lists, and the version of ComfyUI that it is tested with."""

import logging
import os
from typing import Any

import comfy.samplers
from comfy.k_diffusion import sampling
from comfyui_version import __version__

import fewstep.k_diffusion

TESTED = "0.3.75"
SAMPLERS = ("dpmpp_3m", "evodiff", "unipc_2", "unipc_3")
GRID = "fewstep"
SWITCH = "FEWSTEP_COMFYUI_NAMES"  # in the environment; 0 leaves ComfyUI's lists alone


def add_names() -> None:
    """Adds samplers `fewstep_NAME` and the scheduler `fewstep` to the plain KSampler, once."""
    if os.environ.get(SWITCH) == "0":
        return
    for name in SAMPLERS:
        setattr(sampling, f"sample_fewstep_{name}", getattr(fewstep.k_diffusion, f"sample_{name}"))
        _append(comfy.samplers.KSAMPLER_NAMES, f"fewstep_{name}")
        _append(comfy.samplers.SAMPLER_NAMES, f"fewstep_{name}")
    comfy.samplers.SCHEDULER_HANDLERS[GRID] = comfy.samplers.SchedulerHandler(_place_default)
    _append(comfy.samplers.SCHEDULER_NAMES, GRID)


def warn_of_version() -> None:
    """Warns of a ComfyUI that this pack was not tested with."""
    if __version__ != TESTED:
        logging.warning(
            "fewstep's nodes are tested with ComfyUI %s, and this is %s; if a node fails, say both",
            TESTED,
            __version__,
        )


def _append(names: list[str], name: str) -> None:
    if name not in names:
        names.append(name)


def _place_default(model_sampling: Any, steps: int) -> Any:
    """Returns the sigmas of the default grid."""
    return fewstep.k_diffusion.place_sigmas(model_sampling, None, steps)
