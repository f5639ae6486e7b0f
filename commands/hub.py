"""`fewstep hub`: makes a saved pipeline ready to be published."""

from pathlib import Path
from typing import Annotated

import typer

from .console import echo


def hub(
    folder: Annotated[
        Path, typer.Argument(help="Folder of a saved pipeline whose scheduler is SolverScheduler.")
    ],
) -> None:
    """Writes the file with which diffusers loads fewstep's scheduler from the Hub.

    From then on `from_pretrained` needs trust_remote_code=True for this folder, on this machine
    too.
    """
    from ..samplers.diffusers.publishing import write_import

    echo(
        [
            f"{write_import(folder)}: load with trust_remote_code=True where fewstep is installed",
            f"hf upload OWNER/NAME {folder}",
        ]
    )
