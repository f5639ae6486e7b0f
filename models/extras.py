"""Optional dependencies: which extra brings each of them, and what is said where one is missing."""

from importlib.util import find_spec

from .errors import SettingError

EXTRAS = {  # of pyproject.toml, by module
    "matplotlib": "report",
    "jinja2": "report",
    "torchmetrics": "eval",
    "transformers": "transformers",
    "cache_dit": "rivals",
}


def check_installed(*modules: str) -> None:
    """Raises SettingError for the first of some optional dependencies that is not installed."""
    for name in modules:
        if find_spec(name) is None:
            shown = name.replace("_", "-")
            raise SettingError(f"{shown} is not installed; pip install 'fewstep[{EXTRAS[name]}]'")
