"""Editors, which change an image on its way: a new one is a file here that registers itself."""

from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING

from ...models.deprecated import serve_renamed
from .base import EditorInfo, EditorSettings, editor, list_editors, names, take_editor
from .image_editor import Edit, Editor
from .scene import Scene

for _module in sorted(module.name for module in iter_modules(__path__)):
    import_module(f"{__name__}.{_module}")

__all__ = [
    "Edit",
    "Editor",
    "EditorInfo",
    "EditorSettings",
    "Scene",
    "editor",
    "list_editors",
    "names",
    "take_editor",
]

if not TYPE_CHECKING:  # to type checkers there are no old names
    __getattr__ = serve_renamed(__name__)
