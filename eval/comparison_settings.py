"""Settings that are compared: how they are named, typed and guided."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..models.errors import SettingError, UnknownNameError
from ..samplers.guidance import take_guidance
from ..samplers.plan_file import take_plan
from ..samplers.schedule_choice import find_schedule, read_scale
from ..solvers.artefact import SCALE, Artefact

Choices = Mapping[str, Any]
NAMES = ("solver", "nfe", "steps", "grid", "final", "recipe", "cache", "guidance", "plan")


def find_scale(choices: Choices) -> float:
    """Returns the scale of classifier-free guidance that a setting stands for; 1 is none."""
    if (plan := choices.get("plan")) is not None:
        settings = take_plan(plan).point.settings
        return 1.0 if settings is None else find_scale(settings.arguments())
    solver = choices.get("solver")
    if isinstance(solver, Artefact) and solver.guided:
        return float(solver.provenance.get(SCALE, 1.0))
    return read_scale(take_guidance(choices.get("guidance")))


def name_settings(settings: Mapping[str, Choices] | Sequence[Choices]) -> dict[str, Choices]:
    """Returns the settings by name; raises SettingError for none, and for two of one name."""
    if isinstance(settings, Mapping):
        named = dict(settings)
    else:
        named = {_describe(each): each for each in settings}
        if len(named) < len(settings):
            raise SettingError(
                "two settings are alike; give settings by name, as in"
                ' {"first": {"solver": "unipc-2"}, ...}'
            )
    if not named:
        raise SettingError("there is nothing to compare; give settings, such as nfe=5")
    return named


def _describe(choices: Choices) -> str:
    """Returns a setting in words."""
    return ", ".join(f"{name} {_write(value)}" for name, value in choices.items()) or "the default"


def _write(value: Any) -> str:
    if isinstance(value, Artefact):
        return str(value.provenance.get("name", value.schedule_id[:12]))
    return str(value)


def parse_setting(text: str) -> dict[str, Any]:
    """Returns a setting that is typed as `solver=unipc-2 nfe=5 guidance=cfg:scale=2`.

    Beside the arguments of `Sampler` it takes `schedule`, as `sample` does, and `cfg-scale`.

    Raises:
        FewstepError: for anything else.
    """
    choices: dict[str, Any] = {}
    for word in text.split():
        name, equals, value = word.partition("=")
        if not equals or not value:
            raise SettingError(f"{word!r} is not a choice; write NAME=VALUE, as in solver=unipc-2")
        if name == "schedule":
            choices["solver"] = find_schedule(value)
        elif name == "cfg-scale":
            choices["guidance"] = f"cfg:scale={value}"
        elif name in NAMES:
            choices[name] = _parse_number(name, value) if name in ("nfe", "steps") else value
        else:
            raise UnknownNameError("choice", name, [*NAMES, "schedule", "cfg-scale"])
    return choices


def _parse_number(name: str, value: str) -> int:
    try:
        return int(value)
    except ValueError:
        raise SettingError(f"{name} must be a whole number, not {value!r}") from None
