"""Files that a user names, read in one place: ordinary ones of a bounded size, or a plain refusal.

A pipe or a device may never end, a folder or a looping link is no file, and JSON that names a key
twice says two things of which one would be dropped.
"""

import json
import stat
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from .errors import SHOWN, SettingError, reason_of, shorten

if TYPE_CHECKING:
    from torch import Tensor

FOLDER = "folder"  # in the context of a validation
LARGEST = 2**26  # bytes of a file that is read whole, unless its reader says otherwise
M = TypeVar("M", bound=BaseModel)


class StrictModel(BaseModel):
    """A value of a file that refuses fields it does not know and is never changed."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def ordinary_file(
    path: str | PathLike[str], kind: str = "file", *, missing_ok: bool = False
) -> Path:
    """Returns the path of an ordinary file, links followed; raises SettingError for anything else.

    kind:       what the file holds, for the message.
    missing_ok: a path where nothing is yet is returned too.
    """
    named = f"cannot read {f'{kind} ' if kind != 'file' else ''}{shorten(path)}"
    try:
        mode = Path(path).stat().st_mode
    except FileNotFoundError:
        if missing_ok:
            return Path(path)
        raise SettingError(f"{named}: there is no such file") from None
    except (OSError, ValueError) as error:
        raise SettingError(f"{named}: {reason_of(error)}") from None
    if stat.S_ISDIR(mode):
        raise SettingError(f"{named}: it is a folder; give a file")
    if not stat.S_ISREG(mode):
        raise SettingError(f"{named}: it is a pipe, a device or a socket; give an ordinary file")
    return Path(path)


def read_bytes(path: str | PathLike[str], kind: str = "file", largest: int = LARGEST) -> bytes:
    """Returns all bytes of an ordinary file; raises SettingError where there are too many."""
    try:
        with ordinary_file(path, kind).open("rb") as file:
            body = file.read(largest + 1)
    except OSError as error:
        raise SettingError(f"cannot read {shorten(path)}: {reason_of(error)}") from None
    if len(body) > largest:
        raise SettingError(
            f"cannot read {shorten(path)}: it has more than {largest:,} bytes, too many for a"
            f" {kind} of fewstep"
        )
    return body


def read_text(path: str | PathLike[str], kind: str = "file", largest: int = LARGEST) -> str:
    """Returns the UTF-8 text of an ordinary file; raises SettingError for other bytes."""
    try:
        return read_bytes(path, kind, largest).decode()
    except UnicodeDecodeError as error:
        raise SettingError(
            f"cannot read {kind} {shorten(path)}: it is not UTF-8 text ({error.reason})"
        ) from None


def read_object(path: str | PathLike[str]) -> dict[str, Any]:
    """Returns the object in a JSON file; raises SettingError for any other content."""
    text = read_text(path)
    try:
        body = parse_json(text)
    except SettingError as error:
        raise SettingError(f"cannot read {shorten(path)}: {error}") from error
    if not isinstance(body, dict):
        raise SettingError(f"{shorten(path)} must hold a JSON object")
    return body


def read_tensors(
    path: str | PathLike[str], kind: str = "file"
) -> tuple[dict[str, "Tensor"], dict[str, str]]:
    """Returns the tensors and the metadata of a safetensors file; SettingError if it is none."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(ordinary_file(path, kind)), framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise SettingError(f"cannot read {kind} {shorten(path)}: {reason_of(error)}") from error


def parse_json(text: str | bytes) -> Any:
    """Returns the value of JSON text.

    Raises:
        SettingError: if it is none, nests too deeply, or names a key twice in one object.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except SettingError:
        raise
    except RecursionError:
        raise SettingError("Invalid JSON: it nests too deeply") from None
    except ValueError as error:
        raise SettingError(f"Invalid JSON: {error}") from None


def parse_as(kind: type[M], text: str | bytes, folder: Path | None = None) -> M:
    """Returns a value of this kind from JSON text; raises SettingError at its first problem.

    folder: that the text lies in, if it is from a file, where files that it names are looked for.
    """
    parse_json(text)
    try:
        return kind.model_validate_json(text, context={FOLDER: folder})
    except ValidationError as error:
        raise SettingError(first_problem(error)) from error
    except ArithmeticError as error:
        raise SettingError(f"its numbers are out of range: {error}") from error


def first_problem(error: ValidationError) -> str:
    """Returns the place and the text of the first validation error."""
    first = error.errors(include_url=False, include_context=False)[0]
    where = ".".join(map(str, first["loc"]))
    message = str(first["msg"]).removeprefix("Value error, ")
    return f"{where}: {message}" if where else message


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    body = dict(pairs)
    if len(body) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise SettingError(f"it names the key {twice[:SHOWN]!r} twice; keep one of the two")
    return body


def load_kept(kind: type[M], path: Path, remedy: str) -> M | None:
    """Returns what a file of ours keeps, None if there is none.

    Raises:
        SettingError: if it is damaged, with the remedy.
    """
    try:
        return kind.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise SettingError(f"{str(path)!r} is damaged: {first_problem(error)}; {remedy}") from error
