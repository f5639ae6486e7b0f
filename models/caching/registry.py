"""The registry of cache policies, by name."""

from collections.abc import Callable
from dataclasses import fields
from functools import wraps
from typing import Any, TypeVar, cast

from pydantic import ValidationError

from ..errors import FewstepError, SettingError, UnknownNameError
from .base import Policy

_TABLE: dict[str, type[Policy]] = {}
T = TypeVar("T")


def register(cls: type[T]) -> type[T]:
    """Adds a policy class under its `info.name`; a name can be taken once.

    Values out of range then raise SettingError in one line, not pydantic's ValidationError.
    """
    policy = cast(type[Policy], cls)
    name = policy.info.name
    if name in _TABLE:
        raise ValueError(f"two caches are named {name!r}: {_TABLE[name]} and {cls}")
    _TABLE[name] = policy
    setattr(cls, "__init__", _in_one_line(name, cls.__init__))  # noqa: B010
    return cls


def names() -> list[str]:
    """All registered cache names, sorted."""
    return sorted(_TABLE)


def policy_class(name: str) -> type[Policy]:
    """The settings class registered under a name."""
    if name not in _TABLE:
        raise UnknownNameError("cache", name, _TABLE)
    return _TABLE[name]


def cache(name: str, **settings: Any) -> Policy:
    """The settings registered under a name; keywords are the fields of its dataclass.

    Raises:
        UnknownNameError: for an unknown name or setting.
        SettingError: for a setting out of range.
    """
    cls = policy_class(name)
    known = [field.name for field in fields(cls)]  # type: ignore[arg-type]
    for key in settings.keys() - set(known):
        raise UnknownNameError(f"setting of {name}", key, known)
    return cls(**settings)


def _in_one_line(name: str, made: Callable[..., None]) -> Callable[..., None]:
    @wraps(made)
    def init(self: Any, *args: Any, **settings: Any) -> None:
        try:
            made(self, *args, **settings)
        except ValidationError as error:
            raise _setting_error(name, error) from error

    return init


def _setting_error(name: str, error: ValidationError) -> FewstepError:
    first = error.errors(include_url=False)[0]
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, FewstepError):
        return cause
    where = ".".join(map(str, first["loc"]))
    return SettingError(f"{name}: {where}={first['input']!r}: {first['msg']}")
