"""The config of a scheduler as its users change it after it was built.

A config of diffusers is a mapping whose items are attributes too, and neither follows the other:
`config.shift = 5` changes the attribute alone, which is what schedulers of diffusers read when they
run; `config["shift"] = 5` changes the item alone, which is what is saved; `register_to_config`
makes a new mapping. A run here follows them all.
"""

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any


def read_values(config: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the values that a config now has, given those before: of an item and its attribute
    the one that was changed, and the attribute if both were."""
    items = {key: value for key, value in config.items() if not key.startswith("_")}
    return items | find_changes(read_attributes(config), before)


def read_attributes(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the public attributes of a config; none of a plain dict."""
    found: dict[str, Any] = getattr(config, "__dict__", {})
    return {key: value for key, value in found.items() if not key.startswith("_")}


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
