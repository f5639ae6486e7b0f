"""The registry of guidance policies, by name."""

from typing import Any

from ...models.registry import SettingsRegistry
from .base import Guidance

GUIDANCES: SettingsRegistry[Guidance] = SettingsRegistry("guidance")

register, names, policy_class = GUIDANCES.register, GUIDANCES.names, GUIDANCES.get


def guidance(name: str, /, **settings: Any) -> Guidance:
    """Returns the settings registered under a name; keywords are the fields of its dataclass.

    Raises:
        UnknownNameError: for an unknown name or setting.
        SettingError: for a setting that is missing or out of range; it names the setting.
    """
    return GUIDANCES.make(name, **settings)
