"""Repositories of the Hugging Face Hub."""

from collections.abc import Sequence
from pathlib import Path

from .errors import SettingError


def is_hub_name(name: str) -> bool:
    """Tells whether a text can be `owner/name` or `owner/name@revision`, and is no path."""
    repo = name.partition("@")[0]
    is_path = name.startswith((".", "/", "~")) or repo.endswith(".json")
    return repo.count("/") == 1 and not is_path


def download(name: str, patterns: Sequence[str]) -> Path:
    """Returns the folder, in the Hub's ordinary cache, of the files that fit the patterns.

    name: `owner/name` or `owner/name@revision`.

    Raises:
        SettingError: with the reason of the Hub.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    repo, _, revision = name.partition("@")
    try:
        return Path(
            snapshot_download(repo, revision=revision or None, allow_patterns=list(patterns))
        )
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        raise SettingError(f"the hub says: {str(error).strip().splitlines()[0]}") from error
