"""The registry of cache policies, by name."""

from typing import Any

from ..registry import SettingsRegistry
from .base import CacheInfo, Policy

CACHES: SettingsRegistry[Policy] = SettingsRegistry("cache")

register, names, policy_class = CACHES.register, CACHES.names, CACHES.get


def cache(name: str, /, **settings: Any) -> Policy:
    """Returns the settings registered under a name; keywords are the fields of its dataclass.

    Raises:
        UnknownNameError: for an unknown name or setting.
        SettingError: for a setting that is missing or out of range; it names the setting.
    """
    return CACHES.make(name, **settings)


def take_cache(given: Policy | str) -> Policy:
    """Returns a policy given as such or as `name:key=value,...`.

    Raises:
        UnknownNameError, SettingError: as `cache`, and for anything else; it names the argument.
    """
    return CACHES.take(given, "cache", CacheInfo)
