"""Schedules by name, and those that stand in where nothing but a budget is asked for."""

from collections.abc import Mapping
from typing import Any

from ..models.errors import SettingError
from ..solvers import Schedule
from ..solvers.artefact import SCALE, Artefact
from ..solvers.presets import best_preset, preset, preset_names
from .grid import Final
from .guidance import CFG, Guidance
from .plan import DEFAULT_NFE


def choose_default_schedule(
    model: str, choices: Mapping[str, Any], guided: Guidance
) -> Schedule | None:
    """Returns the schedule of the package that stands in where nothing but an NFE is asked for.

    model: the network's name. None if there is no such schedule that is better than named solvers.
    """
    final = Final.named(choices.get("final", Final.ZERO))
    if choices.keys() - {"nfe", "final"} or final != Final.ZERO:
        return None
    scale = 1.0 if guided.off else None
    if isinstance(guided, CFG) and guided == CFG(guided.scale):  # guided throughout
        scale = guided.scale
    name = None if scale is None else best_preset(model, choices.get("nfe", DEFAULT_NFE), scale)
    return None if name is None else preset(name)


def check_scale(schedule: Artefact, guided: Guidance) -> None:
    """Raises SettingError if a schedule was searched for another guidance scale than that.

    A schedule that brings its guidance, or does not say what it was searched for, takes any.
    """
    made_for = schedule.provenance.get(SCALE)
    if made_for is None or schedule.guided or made_for == read_scale(guided):
        return
    raise SettingError(
        f"this schedule was searched for guidance scale {made_for:g}, and the run has"
        f" {read_scale(guided):g} (1 is no guidance): give --cfg-scale {made_for:g}, or --force (in"
        " Python schedule.for_any()) to use it all the same"
    )


def read_scale(guided: Guidance) -> float:
    """Returns the scale of classifier-free guidance, also inside other policies; 1 is none."""
    if guided.off:
        return 1.0
    inner = getattr(guided, "inner", None)
    return float(getattr(guided, "scale", 1.0)) if inner is None else read_scale(inner)


def find_schedule(name: str) -> Schedule:
    """Returns the schedule of a file, a folder, a hub id, or a name that the package knows."""
    return preset(name) if name in preset_names() else Schedule.from_pretrained(name)
