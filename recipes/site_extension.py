"""The public names as users import them, and formulas in their docstrings, for mkdocstrings."""

from typing import Any

import griffe

import fewstep
from fewstep.eval.formulas import to_markdown


class PublicNames(griffe.Extension):
    """Makes `fewstep.NAME` of each public name, and LaTeX of the formulas in docstrings."""

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        """Adds the names that the package imports only when they are used."""
        if pkg.name == "fewstep":
            for name, home in fewstep._HOMES.items():
                pkg.set_member(name, griffe.Alias(name, f"fewstep{home}.{name}", parent=pkg))

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrites a docstring as the pages of solvers have it."""
        if obj.docstring:
            obj.docstring.value = to_markdown(obj.docstring.value)
