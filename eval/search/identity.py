"""The files that identify a search in its folder: its settings and its scores on the test block."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from ...models.errors import SettingError
from ...models.files import write_bytes
from ...models.probe import are_alike, sketch
from ...models.reading import StrictModel, first_problem, parse_json, read_bytes
from ...samplers.columns import Columns
from ...solvers.artefact import ANSWER
from ..teacher import compute_digest
from .search import Search
from .uncached import DRIFT

T = TypeVar("T")
FACTS: TypeAdapter[dict[str, Any]] = TypeAdapter(dict[str, Any])


class TestScore(StrictModel):
    """A schedule on the test block: its objective, and its columns where its ends are finite."""

    __test__ = False
    score: float
    columns: Columns | None


class SearchRivals(StrictModel):
    """The schedulers of diffusers that a search is compared with.

    specs:    as `RivalSampler` takes them, best on validation noises first.
    left_out: the reason why there are none.
    """

    specs: tuple[str, ...] = ()
    left_out: str | None = None


SCORES: TypeAdapter[dict[str, TestScore | float]] = TypeAdapter(dict[str, TestScore | float])
RIVALS: TypeAdapter[dict[str, SearchRivals]] = TypeAdapter(dict[str, SearchRivals])
IDENTITY_FILE, SCORES_FILE, RIVALS_FILE = "search.json", "test.json", "rivals.json"


def describe_search(search: Search) -> dict[str, Any]:
    """Returns what two searches must share to be compared score by score."""
    problem = search.problem
    given = {"conditions": problem.conditions, "negative": problem.negative}
    return {
        **{
            name: {key: compute_digest(value) for key, value in each.items()}
            for name, each in given.items()
            if each
        },
        "model": problem.network.name,
        ANSWER: sketch(problem.network),
        "cfg_scale": problem.cfg_scale,
        "labels": list(problem.labels),
        "teacher": problem.teacher.choices(),
        "objective": search.objective.name,
        **({"run": search.base_id} if search.objective.name == DRIFT else {}),
        "train_seeds": find_ends(problem.train),
        "scored": search.noises,
    }


def find_ends(seeds: Sequence[int]) -> list[int]:
    """Returns the first and last of consecutive seeds, and all of others."""
    seeds = list(seeds)
    return [seeds[0], seeds[-1]] if seeds == list(range(seeds[0], seeds[-1] + 1)) else seeds


def write_identity(search: Search) -> None:
    """Writes down what the scores of a folder mean, or refuses a folder where they mean another."""
    check_identity(search)
    path = search.folder / IDENTITY_FILE
    if not path.exists():
        write_bytes(path, json.dumps(describe_search(search), indent=2).encode())


def check_identity(search: Search) -> None:
    """Raises SettingError for a folder whose scores mean another."""
    path = search.folder / IDENTITY_FILE
    if not path.exists():
        return
    mine, theirs = json.loads(json.dumps(describe_search(search))), _read(path, FACTS)
    for name in dict.fromkeys([*mine, *theirs]):
        if not _same(name, mine.get(name), theirs.get(name)):
            raise SettingError(
                f"the log in {str(search.folder)!r} is of another search: its {name} is"
                f" {theirs.get(name)!r}, not {mine.get(name)!r}; give another --log"
            )


def check_memory(folder: Path) -> None:
    """Raises SettingError if what a search has written down in a folder is damaged."""
    _read(folder / IDENTITY_FILE, FACTS)
    read_scores(folder)
    read_rivals(folder)


def read_scores(folder: Path) -> dict[str, TestScore]:
    """Returns the scores on the test block so far, by schedule id; raises as `check_memory`.

    Those of an older search have no columns, and are left out.
    """
    scores = _read(folder / SCORES_FILE, SCORES)
    return {name: each for name, each in scores.items() if isinstance(each, TestScore)}


def write_scores(folder: Path, scores: dict[str, TestScore | float]) -> None:
    """Writes them down, so that the test block is looked at once for each schedule."""
    write_bytes(folder / SCORES_FILE, SCORES.dump_json(scores))


def read_rivals(folder: Path) -> dict[str, SearchRivals]:
    """Returns the rivals that were chosen, by the mark of a size; raises as `check_memory`."""
    return _read(folder / RIVALS_FILE, RIVALS)


def write_rivals(folder: Path, rivals: dict[str, SearchRivals]) -> None:
    """Writes them down, so that they are chosen once."""
    write_bytes(folder / RIVALS_FILE, RIVALS.dump_json(rivals))


def _read(path: Path, kind: TypeAdapter[dict[str, T]]) -> dict[str, T]:
    """Returns the object in a JSON file, empty without one; raises SettingError for others."""
    if not path.exists():
        return {}
    try:
        body = read_bytes(path)
        parse_json(body)
        return kind.validate_json(body)
    except SettingError as error:
        raise SettingError(f"{str(path)!r} is damaged: {error}; give another --log") from error
    except ValidationError as error:
        raise SettingError(
            f"{str(path)!r} is damaged: {first_problem(error)}; give another --log"
        ) from error


def _same(name: str, mine: Any, theirs: Any) -> bool:
    """Equal; or, of a network's answers, alike."""
    if name == ANSWER and mine and isinstance(theirs, list):
        return all(isinstance(each, float) for each in theirs) and are_alike(mine, theirs)
    return bool(mine == theirs)
