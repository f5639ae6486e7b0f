"""The registry of guidance policies, by name."""

from collections.abc import Callable
from dataclasses import MISSING, Field, fields
from keyword import iskeyword
from typing import Any, TypeVar

from ...models.errors import SettingError, UnknownNameError
from .base import Guidance

_TABLE: dict[str, type[Guidance]] = {}
T = TypeVar("T")


def register(cls: type[T]) -> type[T]:
    """Adds a policy class under its `name`; a name can be taken once."""
    policy: Any = cls
    if policy.name in _TABLE:
        raise ValueError(f"two guidances are named {policy.name!r}: {_TABLE[policy.name]}, {cls}")
    _TABLE[policy.name] = policy
    return cls


def names() -> list[str]:
    """All registered names, sorted."""
    return sorted(_TABLE)


def policy_class(name: str) -> type[Guidance]:
    """The class registered under a name."""
    if name not in _TABLE:
        raise UnknownNameError("guidance", name, _TABLE)
    return _TABLE[name]


def settings_of(name: str) -> list["Field[Any]"]:
    """The fields that a policy is made from."""
    return list(fields(policy_class(name)))  # type: ignore[arg-type]


def guidance(name: str, **settings: Any) -> Guidance:
    """The policy registered under a name; keywords are the fields of its dataclass.

    A field whose name Python reserves, such as `in_`, is known without the bar too.

    Raises:
        UnknownNameError: for an unknown name or setting.
        SettingError: for a setting that is missing or out of range.
    """
    cls: Callable[..., Guidance] = policy_class(name)
    known = {field.name.rstrip("_"): field for field in settings_of(name)}
    given = {key.rstrip("_"): value for key, value in settings.items()}
    for key in given.keys() - known.keys():
        raise UnknownNameError(f"setting of {name}", key, known)
    missing = [key for key in known.keys() - given.keys() if is_needed(known[key])]
    if missing:
        wanted = sorted(missing)
        example = ",".join(f"{key}=..." for key in wanted)
        raise SettingError(f"{name} needs {', '.join(wanted)}; write {name}:{example}")
    return cls(**{f"{key}_" if iskeyword(key) else key: v for key, v in given.items()})


def is_needed(field: "Field[Any]") -> bool:
    """Whether a policy cannot be made without this setting."""
    return field.default is MISSING and field.default_factory is MISSING
