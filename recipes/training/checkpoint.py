"""How a training is kept in a file, and goes on from it."""

import json
from collections import deque
from pathlib import Path
from typing import Any

import torch

from fewstep.models.errors import SettingError
from fewstep.models.files import write_whole

from .recipe import Recipe, write_recipe
from .run import WINDOW, Progress, Run

VERSION = 2


def save(run: Run, path: Path) -> None:
    """Keeps everything that the next step depends on; a half file is never seen."""
    content = {
        "version": VERSION,
        "recipe": write_recipe(run.recipe),
        "start": run.start,
        "progress": {**vars(run.progress), "losses": list(run.progress.losses)},
        "network": run.network.state_dict(),
        "average": run.average,
        "optimizer": run.optimizer.state_dict(),
    }
    write_whole(path, lambda file: torch.save(content, file))


def restore(run: Run, path: Path) -> None:
    """Goes on from a file of `save`.

    Raises:
        SettingError: if it is of another recipe or start, or cannot be read.
    """
    content = read_checkpoint(path)
    check_same(content["recipe"], run.recipe, path)
    if content["start"] != run.start:
        raise SettingError(
            f"{str(path)!r} began from {content['start'][:12] or 'scratch'}, and --start gives"
            f" {run.start[:12] or 'scratch'} (sha256); repeat that, or give another --out"
        )
    try:
        run.network.load_state_dict(content["network"])
        for mine, its in zip(run.average, content["average"], strict=True):
            mine.copy_(its)
        run.optimizer.load_state_dict(content["optimizer"])
        facts = dict(content["progress"])
        run.progress = Progress(**facts | {"losses": deque(facts["losses"], maxlen=WINDOW)})
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise _unreadable(path, error) from error


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Returns what `save` wrote, on the CPU; raises SettingError if it cannot be read."""
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        if content["version"] != VERSION:
            raise ValueError(f"version {content['version']}, not {VERSION}")
        content["recipe"]
    except Exception as error:  # torch.load has no error of its own for damaged files
        raise _unreadable(path, error) from error
    return content


def check_same(text: str, recipe: Recipe, path: Path) -> None:
    """Raises SettingError if a kept training is not of this recipe, and says what differs."""
    its, mine = json.loads(text), json.loads(write_recipe(recipe))
    if its == mine:
        return
    if its["name"] != mine["name"]:
        raise SettingError(
            f"{str(path)!r} is a training of {its['name']!r}, not of {mine['name']!r};"
            " give another --out"
        )
    field = next(name for name in mine if its.get(name) != mine[name])
    raise SettingError(
        f"{str(path)!r} was trained with {field} = {its.get(field)!r}, not {mine[field]!r};"
        " repeat that, or give another --out"
    )


def _unreadable(path: Path, error: Exception) -> SettingError:
    reason = str(error).strip().partition("\n")[0]
    return SettingError(
        f"cannot go on from {str(path)!r} ({type(error).__name__}: {reason});"
        " remove it to begin again, or give another --out"
    )
