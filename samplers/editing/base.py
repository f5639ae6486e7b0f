"""The interface of editors, and their registry.

An editor is a frozen value of settings with one method, `edit(scene) -> state`. The `Scene` holds
the network, the source image and the two conditions, and answers for both; so an editor is its
formula and nothing else.
"""

import json
from dataclasses import dataclass, fields
from typing import Annotated, Any, ClassVar, Protocol

from pydantic import Field
from torch import Tensor

from ...models.registry import SettingsRegistry
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
    """The settings of an editor, as the registry holds them."""

    info: ClassVar[EditorInfo]

    def edit(self, scene: Scene) -> Tensor:
        """Returns the edited state (B, *) at the clean end, of the scene's source image."""
        ...


EDITORS: SettingsRegistry[EditorSettings] = SettingsRegistry("editor", EditorInfo)

register, names = EDITORS.register, EDITORS.names
editor, take_editor = EDITORS.make, EDITORS.take


def list_editors() -> list[tuple[str, ...]]:
    """Returns a header and a row per editor: the table of `fewstep list editors`."""
    rows: list[tuple[str, ...]] = [("editor", "runs on", "settings", "source")]
    for name in names():
        cls: Any = EDITORS.get(name)
        options = [f"{each.name}={_format_value(each.default)}" for each in fields(cls)]
        where = ", ".join(cls.info.families) or "all"
        rows.append((name, where, " ".join(options), cls.info.source))
    return rows


def _format_value(value: object) -> str:
    return str(value) if isinstance(value, str) else json.dumps(value)
