"""Where fetched files are kept: the user's cache folder."""

import os
from pathlib import Path

VARIABLE = "FEWSTEP_CACHE"


def cache_folder() -> Path:
    """Returns $FEWSTEP_CACHE, else $XDG_CACHE_HOME/fewstep, else ~/.cache/fewstep."""
    if chosen := os.environ.get(VARIABLE):
        return Path(chosen).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME", "")
    root = Path(shared) if os.path.isabs(shared) else Path.home() / ".cache"
    return root / "fewstep"
