"""Old names of what packages export, kept for one release."""

import sys
import warnings
from collections.abc import Callable
from typing import Any

RENAMED = {  # package -> old name -> new name
    "fewstep.models.caching": {"attached": "find_attachment"},
    "fewstep.samplers.editing": {"listing": "list_editors", "named_editor": "take_editor"},
    "fewstep.samplers.guidance": {"policy_of": "take_guidance"},
    "fewstep.solvers": {
        "GuidedExecutor": "Executor",
        "Rewritable": "Revisable",
        "executor": "Executor",
        "queries": "list_queries",
        "retold": "revise_step",
    },
}


def serve_renamed(package: str) -> Callable[[str], Any]:
    """Returns the `__getattr__` of a package: it knows old names, and warns of them."""

    def find(name: str) -> Any:
        new = RENAMED[package].get(name)
        if new is None:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        warnings.warn(
            f"{package}.{name} is called {new} now; the old name goes with the next release",
            DeprecationWarning,
            stacklevel=2,
        )
        return getattr(sys.modules[package], new)

    return find
