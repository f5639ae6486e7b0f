"""What an editor is, and the registry of editors.

An editor is a frozen value of settings with one method, `edit(scene) -> state`. The `Scene` holds
the network, the source image and the two conditions, and answers for both; so an editor is its
formula and nothing else.
"""

import json
from dataclasses import dataclass, fields
from typing import Annotated, Any, ClassVar, Protocol, TypeVar, cast

from pydantic import Field, ValidationError
from torch import Tensor

from ...models.errors import SettingError, UnknownNameError
from ..plan import parse_spec
from .scene import Scene

Steps = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]


@dataclass(frozen=True, slots=True, kw_only=True)
class EditorInfo:
    """Facts about an editor.

    name:     what users type.
    source:   paper of the rule.
    families: noise schedule families it runs on; empty for all.
    random:   whether the result depends on the seed.
    """

    name: str
    source: str
    families: tuple[str, ...] = ()
    random: bool = False


class EditorSettings(Protocol):
    """What the registry holds."""

    info: ClassVar[EditorInfo]

    def edit(self, scene: Scene) -> Tensor:
        """The edited state (B, *) at the clean end, of the scene's source image."""
        ...


_TABLE: dict[str, type[EditorSettings]] = {}
T = TypeVar("T")


def register(cls: type[T]) -> type[T]:
    """Adds an `EditorSettings` class under its `info.name`; a name can be taken once."""
    found = cast(type[EditorSettings], cls)
    name = found.info.name
    if name in _TABLE:
        raise ValueError(f"two editors are named {name!r}; give one another EditorInfo.name")
    _TABLE[name] = found
    return cls


def names() -> list[str]:
    """All registered editor names, sorted."""
    return sorted(_TABLE)


def editor(name: str, **settings: Any) -> EditorSettings:
    """The settings registered under a name; keywords are the fields of its dataclass."""
    if name not in _TABLE:
        raise UnknownNameError("editor", name, _TABLE)
    cls: Any = _TABLE[name]
    known = [field.name for field in fields(cls)]
    for key in settings.keys() - set(known):
        raise UnknownNameError(f"setting of {name}", key, known)
    try:
        found: EditorSettings = cls(**settings)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise SettingError(f"{name}: {where}={first['input']!r}: {first['msg']}") from error
    return found


def named_editor(spec: str) -> EditorSettings:
    """The settings of `name` or `name:key=value,...`."""
    name, settings = parse_spec(spec)
    return editor(name, **settings)


def listing() -> list[tuple[str, ...]]:
    """A header and a row per editor: the table of `fewstep list editors`."""
    rows: list[tuple[str, ...]] = [("editor", "runs on", "settings", "source")]
    for name in names():
        cls: Any = _TABLE[name]
        options = [f"{each.name}={_plain(each.default)}" for each in fields(cls)]
        where = ", ".join(cls.info.families) or "all"
        rows.append((name, where, " ".join(options), cls.info.source))
    return rows


def _plain(value: object) -> str:
    return str(value) if isinstance(value, str) else json.dumps(value)
