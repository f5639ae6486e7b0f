"""Schedules that come with the package: searched for the embedded networks, and published ones."""

from functools import cache
from importlib.resources import files

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


def best_preset(model: str, nfe: int, cfg_scale: float) -> str | None:
    """Returns the name of the best schedule for an embedded network at an NFE and a guidance scale.

    Only those count that came nearer to the teacher than the best hand-made solver, on noises that
    neither was chosen on.
    """
    scores = {}
    for name in preset_names():
        schedule = preset(name)
        facts = schedule.provenance
        asked = (facts.get("model"), schedule.nfe, facts.get("cfg_scale"))
        if asked == (model, nfe, cfg_scale) and not schedule.guided:
            score, rival = facts["scores"]["test"], facts["baseline"]["test"]
            scores.update({name: score} if score < rival else {})
    return min(scores, key=scores.__getitem__, default=None)
