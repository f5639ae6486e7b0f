"""Saved pipelines that bring the import of our scheduler with them."""

from pathlib import Path

from ...models.errors import SettingError
from ...models.files import write_bytes
from ...models.reading import read_object
from .scheduler import SolverScheduler

IMPORT = "from fewstep import SolverScheduler\n"


def write_import(folder: Path) -> Path:
    """Writes `scheduler/fewstep.py` into the folder of a saved pipeline and returns its path.

    diffusers imports the class from there where it is told to trust the folder. On the Hub there is
    no other way, and a folder with the file wants that trust too.

    Raises:
        SettingError: if no pipeline was saved there, or one with another scheduler.
    """
    index = folder / "model_index.json"
    if not index.is_file():
        raise SettingError(
            f"{str(folder)!r} holds no saved pipeline (model_index.json); make one with"
            " pipe.save_pretrained(folder)"
        )
    ours = [SolverScheduler.__module__, SolverScheduler.__name__]
    if (named := read_object(index).get("scheduler")) != ours:
        raise SettingError(
            f"the scheduler in {str(index)!r} is {named}, not {ours}; set pipe.scheduler ="
            " SolverScheduler.from_config(pipe.scheduler.config, ...) and save the pipeline again"
        )
    path = folder / "scheduler" / f"{SolverScheduler.__module__}.py"
    write_bytes(path, IMPORT.encode())
    return path
