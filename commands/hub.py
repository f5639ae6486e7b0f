"""`fewstep hub`: makes a saved pipeline ready to be published."""

from pathlib import Path
from typing import Annotated

import typer

from .console import echo


def hub(
    folder: Annotated[
        Path, typer.Argument(help="Folder that a pipeline with a SolverScheduler was saved in.")
    ],
) -> None:
    """Writes the file by which diffusers loads our scheduler from the Hub, on trust.

    From then on `from_pretrained` wants trust_remote_code=True for the folder, here too.
    """
    from ..samplers.diffusers.publishing import write_import

    echo(
        [
            f"{write_import(folder)}: load with trust_remote_code=True where fewstep is installed",
            f"hf upload OWNER/NAME {folder}",
        ]
    )
