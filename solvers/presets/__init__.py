"""Schedules that come with the package: searched for the embedded networks, and published ones."""

from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from ...models.errors import UnknownNameError
from ..schedule_data import Schedule


def preset_names() -> list[str]:
    """Returns all names, sorted."""
    entries = (entry.name for entry in files(__package__).iterdir())
    return sorted(name.removesuffix(".json") for name in entries if name.endswith(".json"))


@cache
def preset(name: str) -> Schedule:
    """Returns the schedule of a name; raises UnknownNameError for another."""
    if name not in preset_names():
        raise UnknownNameError("schedule", name, preset_names())
    return Schedule.parse((files(__package__) / f"{name}.json").read_text(encoding="utf-8"))


def is_better(facts: Mapping[str, Any]) -> bool:
    """Returns whether a searched schedule beat the default, by its provenance.

    It must on test noises, in both columns: in the distance to the reference and in the distance of
    features of their images. One that was searched for a number of rows is beside the best
    hand-made one instead, as no default spends rows.
    """
    columns = facts.get("columns") or {}
    other = "hand_made" if "rows" in facts else "default"
    mine, rival = (columns.get(key) or {} for key in ("searched", other))
    pairs = [(mine.get(name), rival.get(name)) for name in ("distance", "features")]
    return all(a is not None and b is not None and a["value"] < b["value"] for a, b in pairs)


def best_preset(model: str, nfe: int, cfg_scale: float) -> str | None:
    """Returns the name of the best schedule for an embedded network at an NFE and a guidance scale.

    Only those count that are better than the default; see `is_better`.
    """
    scores = {}
    for name in preset_names():
        schedule = preset(name)
        facts = schedule.provenance
        asked = (facts.get("model"), schedule.nfe, facts.get("cfg_scale"))
        if asked == (model, nfe, cfg_scale) and not schedule.guided:
            scores.update({name: facts["scores"]["test"]} if is_better(facts) else {})
    return min(scores, key=scores.__getitem__, default=None)


def is_default(schedule: Schedule, name: str) -> bool:
    """Returns whether the schedule of this name is the best for what it was searched for."""
    facts = schedule.provenance
    asked = facts.get("model", ""), schedule.nfe, facts.get("cfg_scale", 1.0)
    return name == best_preset(*asked)


def find_preset(schedule: Schedule) -> str | None:
    """Returns the name by which a schedule comes with the package; None if it does not."""
    return next((name for name in preset_names() if preset(name) == schedule), None)
