"""The config of a scheduler: what `from_config` makes of it, and changes after it was built.

A config of diffusers is a mapping whose items are attributes too, and neither follows the other:
`config.shift = 5` changes the attribute alone, which is what schedulers of diffusers read when they
run; `config["shift"] = 5` changes the item alone, which is what is saved; `register_to_config`
makes a new mapping. A run here follows them all.
"""

from collections import OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields
from typing import Any

from diffusers.utils import logging

from ...models.diffusers_config import EXPLODING, FACTS, SHIFTS, class_name_of, shift_key_of
from ...models.errors import ModelError, SettingError, UnknownNameError
from .planning import Choices
from .trained_process import GRID_FLAGS, TrainedProcess, find_classes, guess_class

logger = logging.get_logger(__name__)

DEFAULTS: dict[str, Any] = {field.name: field.default for field in fields(Choices)}
NOT_TAKEN_OVER = ("clip_sample", "clip_denoised", "thresholding", "stochastic_sampling")
RUNS = {"solver", "schedule", "recipe"}  # the choices that say what runs
AS_PIPELINES_PUT_IT = {"steps_offset": 1, "skip_prk_steps": True}  # into old configs
READ_BY_PIPELINES = ("base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len")
INSTEAD = {  # of fields that say what runs in diffusers: what says it here
    "steps_offset": "it is of timestep_spacing='leading'; give that too",
    "algorithm_type": "choose with solver=, as in solver='dpmpp-2m'",
    "solver_order": "choose with solver=, as in solver='unipc-3'",
    "solver_type": "set it with the solver, as in solver='unipc-2:solver_type=bh1'",
    "final_sigmas_type": "say how the run ends with final=, 'zero' or 'sigma_min'",
    "stochastic_sampling": "take solver='renoise', which is the same",
    "clip_sample": "no prediction is clipped here",
    "thresholding": "no prediction is clipped here",
}


def read_choices(config: Mapping[str, Any], given: Mapping[str, Any]) -> tuple[dict[str, Any], ...]:
    """Returns the network's config, with the changes to it, and the choices of what shall run.

    given: arguments of `from_config`. They replace choices of the config: a solver takes the place
        of a schedule and the other way round. use_karras_sigmas and its like are grids.

    Raises:
        UnknownNameError: for a setting that does not exist.
        SettingError: for a change that would change nothing, or a config with two values of one.
    """
    _check_attributes(config, given)
    base = _add_class({key: value for key, value in config.items() if key not in DEFAULTS})
    chosen = {key: config[key] for key in DEFAULTS if key in config}
    given = _name_grid(base, chosen, given)
    picked = {key: value for key, value in given.items() if key in DEFAULTS}
    changes = {key: value for key, value in given.items() if key not in DEFAULTS}
    if picked.get("solver") is not None:
        chosen |= {"schedule": None, "recipe": None}
    if picked.get("schedule") is not None:
        chosen |= {"solver": None, "grid": None, "nfe": None, "recipe": None}
    if picked.get("recipe") is not None:
        chosen |= {"solver": None, "grid": None, "nfe": None, "schedule": None}
    _say_what_is_left(base | changes, decided=bool(chosen.get("solver") or picked.keys() & RUNS))
    _check_changes(base, _merge_shifts(base, changes), str(picked.get("grid")))
    changes |= _collect_shifts(base, changes)
    return base | changes | _find_unset(base, changes), {**DEFAULTS, **chosen, **picked}


def _add_class(base: dict[str, Any]) -> dict[str, Any]:
    """Returns a config that says its class, which its fields do until others are added."""
    with suppress(ModelError):
        return base | {"base_class": class_name_of(base) or guess_class(base)}
    return base


def _merge_shifts(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Returns changes with the shift, which has two names, under the one that counts here."""
    shifts, main = _collect_shifts(base, changes), shift_key_of(base)
    if any(shifts[key] != changes[key] for key in SHIFTS if key in changes):
        raise SettingError("shift and flow_shift are one number; give one of them")
    rest = {key: value for key, value in changes.items() if key not in SHIFTS}
    return rest | ({main: shifts[main]} if shifts else {})


def _collect_shifts(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a changed shift under all names that it has: none shall keep the old value."""
    values = [changes[key] for key in SHIFTS if key in changes]
    names = {shift_key_of(base), *(key for key in SHIFTS if key in base or key in changes)}
    return dict.fromkeys(names, values[0]) if values else {}


def _find_unset(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, list[str]]:
    """Returns the fields that nobody set, for which another class takes its own defaults."""
    unset = base.get("_use_default_values", ())
    return {"_use_default_values": [key for key in unset if key not in changes]} if unset else {}


def _check_attributes(config: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Raises where `config.x = value` was typed, which leaves the item as it was."""
    for key, value in read_attributes(config).items():
        matters = key in (*FACTS, *GRID_FLAGS, *DEFAULTS) and key not in given
        if matters and not is_same(value, config.get(key)):
            raise SettingError(
                f"this config has {key}={value!r} as an attribute and {config.get(key)!r} as an"
                f" item; say which, as in from_config(config, {key}={value!r})"
            )


def _name_grid(
    base: Mapping[str, Any], chosen: Mapping[str, Any], given: Mapping[str, Any]
) -> dict[str, Any]:
    """Puts a grid in the place of use_karras_sigmas=True and its like, as diffusers has them, and
    beside a timestep_spacing that is asked for."""
    flags = [flag for flag in GRID_FLAGS if given.get(flag)]
    spaced = ["timestep_spacing"] if given.get("timestep_spacing") is not None else []
    asked = flags + spaced + [key for key in ("grid", "schedule") if given.get(key) is not None]
    if flags + spaced and len(asked) > 1:
        raise SettingError(f"{' and '.join(asked)} each say where the steps lie; drop all but one")
    rest = {key: value for key, value in given.items() if not (key in GRID_FLAGS and value)}
    moved = "steps_offset" in given and str(chosen.get("grid")).startswith("leading:")
    if spaced or (moved and len(asked) == 0):
        return rest | {"grid": choose_spacing(base, given)}
    return rest | ({"grid": GRID_FLAGS[flags[0]]} if flags else {})


def _check_changes(base: dict[str, Any], changes: dict[str, Any], grid: str) -> None:
    """Raises for a change of the config that does not exist or has no effect here.

    grid: the one that is asked for.
    """
    public = [key for key in base if not key.startswith("_")]
    for key, value in changes.items():
        if key not in {*public, *INSTEAD, *GRID_FLAGS, "timestep_spacing", *FACTS}:
            raise UnknownNameError("scheduler setting", key, sorted({*DEFAULTS, *public, *FACTS}))
        rest = {other: changes[other] for other in changes if other != key}
        same = is_same(value, base.get(key)) or _agrees(key, value) or _spaces(key, grid)
        if not same and not _matters(key, base | rest, base | changes):
            raise SettingError(f"{key}={value!r} changes nothing here; {_suggest(key, base)}")


def _suggest(key: str, base: Mapping[str, Any]) -> str:
    if key == "shift" and base.get("use_dynamic_shifting"):
        return "this network shifts by the size of its images; add use_dynamic_shifting=False"
    return INSTEAD.get(key, "drop it, and choose what runs with solver= and grid=")


def _agrees(key: str, value: Any) -> bool:
    """Tells whether a value says what holds here anyway."""
    off = key in NOT_TAKEN_OVER and value is False
    return off or (key in AS_PIPELINES_PUT_IT and bool(value == AS_PIPELINES_PUT_IT[key]))


def _spaces(key: str, grid: str) -> bool:
    """Tells whether a field says where the steps lie, if this grid is asked for."""
    return key == "timestep_spacing" or (key == "steps_offset" and grid.startswith("leading:"))


def _matters(key: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    process = TrainedProcess.of(after)
    if key in GRID_FLAGS or (key in READ_BY_PIPELINES and process.dynamic):
        return True
    try:
        return TrainedProcess.of(before).facts != process.facts
    except ModelError:  # it is what makes the config one that can be read
        return True


def _say_what_is_left(base: Mapping[str, Any], decided: bool) -> None:
    """Logs what of a config is not taken over, or was guessed where nothing else is decided."""
    for key in NOT_TAKEN_OVER:
        if base.get(key):
            logger.warning(f"{key} of the config is not taken over: it belongs to its own solver")
    if base.get("original_inference_steps") and not base.get("base_class") and not decided:
        logger.warning(
            "this config is of LCMScheduler or TCDScheduler and does not say which: it is taken for"
            " the first; for the other give solver='tcd'"
        )


SPARE = {  # they take one point more than there are steps
    *("DEISMultistepScheduler", "DPMSolverMultistepScheduler", "SASolverScheduler"),
    "UniPCMultistepScheduler",
}


def choose_spacing(config: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    """Returns the grid that the class of a config makes of the timestep_spacing asked for."""
    named = {key for key in config if not key.startswith("_") and key != "base_class"}
    classes = {class_name_of(config)} - {""} or set(find_classes(named))
    spare, asked = int(bool(classes & SPARE)), {**config, **given}
    match asked.get("timestep_spacing"):
        case "trailing":
            return "trailing"
        case "leading":
            return f"leading:offset={asked.get('steps_offset', 0)},spare={spare}"
        case "linspace":
            return f"linspace:spare={spare},whole={str(not classes & EXPLODING).lower()}"
    known = ("leading", "linspace", "trailing")
    raise UnknownNameError("timestep spacing", asked.get("timestep_spacing"), known)


def read_values(config: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the values that a config now has, given those before: of an item and its attribute
    the one that was changed, and the attribute if both were."""
    items = {key: value for key, value in config.items() if not key.startswith("_")}
    return items | find_changes(read_attributes(config), before)


def read_attributes(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the public attributes of a config; none of a plain dict."""
    attributes: dict[str, Any] = getattr(config, "__dict__", {})
    return {key: value for key, value in attributes.items() if not key.startswith("_")}


def write_values(config: OrderedDict[str, Any], values: Mapping[str, Any]) -> None:
    """Puts values into a config as items and as attributes, so that it is saved as it runs."""
    for key, value in values.items():
        OrderedDict.__setitem__(config, key, value)  # a FrozenDict refuses its own methods
        object.__setattr__(config, key, value)


def find_changes(values: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
    """Returns those of the values that are new or other than before."""
    return {
        key: value
        for key, value in values.items()
        if key not in before or not is_same(value, before[key])
    }


def is_same(value: Any, other: Any) -> bool:
    """Tells whether two values of a config are equal; arrays are if they are one."""
    return value is other or not (hasattr(value, "shape") or bool(value != other))
