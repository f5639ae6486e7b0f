"""Where `sample` writes what it draws: pictures, or samples as they are."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from ..eval.options import OUTPUT, Json, Quiet, option
from ..models.errors import SettingError

if TYPE_CHECKING:
    from ..models.denoiser import Network
    from ..samplers.images import Picture
    from ..samplers.run_record import Run
    from ..samplers.sampler import Result
    from ..samplers.sheet_style import SheetStyle
    from .sample_options import SampleOptions

PICTURE, TENSORS = Path("samples.png"), Path("samples.safetensors")  # what is written by default


@dataclass(frozen=True, kw_only=True)
class SampleOutputs:
    """Where the images go, and what is printed."""

    out: Path | None = option(
        None,
        "The .png file for the grid of images, or a .safetensors file for the samples as a tensor."
        " The default is samples.png, or samples.safetensors for a network that draws no images.",
        OUTPUT,
    )
    save_images: Path | None = option(
        None, "Folder to write every image into, each as a .png file.", OUTPUT
    )
    zoom: int | None = option(
        None,
        "Side in pixels of the square that each pixel of an image becomes in the grid, 1 to 100. By"
        " default the grid is about 1,000 pixels wide. --save-images never enlarges.",
        OUTPUT,
        within=(1, 100),
    )
    class_names: bool = option(
        False, "Write the class of each row beside the grid.", OUTPUT, "--class-names"
    )
    preview: bool = option(
        False, "Show the grid in the terminal too, two pixels per character.", OUTPUT, "--preview"
    )
    json_: Json = False
    quiet: Quiet = False

    def check(self, inputs: list[Path | None]) -> None:
        """Raises SettingError if something could not be written, or would replace an input."""
        from ..models.files import check_apart, check_folder, check_writable

        for path in (PICTURE, TENSORS) if self.out is None else (self.out,):
            check_writable(path, PICTURE.suffix, TENSORS.suffix)
            check_apart([path], inputs)
        if self.save_images is not None:
            check_folder(self.save_images)

    def settle(self, network: "Network") -> "SampleOutputs":
        """Returns the outputs with the file of the samples of a network.

        Raises:
            SettingError: for pictures of a network that draws none.
        """
        from ..samplers.images import draws_pictures

        pictures = draws_pictures(network)
        out = self.out or (PICTURE if pictures else TENSORS)
        tensors = out.suffix.lower() == TENSORS.suffix
        drawing = {"--save-images": self.save_images, "--zoom": self.zoom}
        drawing |= {"--class-names": self.class_names or None, "--preview": self.preview or None}
        asked = [name for name, value in drawing.items() if value is not None]
        if asked and (tensors or not pictures):
            raise SettingError(f"{asked[0]} is for pictures; drop it, or give --out a .png")
        if not (tensors or pictures):
            raise SettingError(
                f"{network.name} draws samples of shape {network.shape}, which are not pictures;"
                " give --out a .safetensors file"
            )
        return replace(self, out=out)

    def choose_style(self, run: "Run", network: "Network") -> "SheetStyle":
        """Returns how the grid is drawn; raises SettingError for names that its rows have not."""
        from ..samplers.sheet_style import SheetStyle, name_rows

        names: tuple[str, ...] = ()
        if self.class_names:
            names = name_rows(run.classes, run.columns, network.class_names)
        return SheetStyle(run.columns, self.zoom, names)

    def show(self, run: "Run", result: "Result", style: "SheetStyle", origin: str | None) -> None:
        """Writes the pictures and prints what they cost, and last what was run.

        style:  of the grid.
        origin: where solver and grid come from, if it was not the options.
        """
        from ..samplers.run_record import save_pictures

        assert self.out is not None
        save_pictures(run, result, self.out, self.save_images, style)
        if self.preview:
            _show_preview(result.grid(style.columns, zoom=1))
        if self.json_:
            body = {"out": str(self.out), "ledger": result.ledger.as_dict()}
            body["run"] = run.model_dump(mode="json", exclude_none=True)
            typer.echo(json.dumps(body, indent=2))
        elif not self.quiet:
            parts = [f"{name} {value}" for name, value in run.list_choices().items()]
            typer.echo(f"{self.out}: {result.ledger}")
            typer.echo(" | ".join(parts if origin is None else [*parts, origin]))

    @staticmethod
    def explain(run: "Run", options: "SampleOptions", from_png: Path | None) -> str | None:
        """Returns where solver and grid come from; None where the options name them."""
        if from_png is not None:
            return f"as in {from_png}"
        if options.plan is not None:
            return f"as in the plan {options.plan}"
        if options.schedule is not None:
            return f"from {options.schedule}"
        if run.schedule is not None:
            return "searched for this network and NFE, and taken by itself; --solver takes another"
        return None


def _show_preview(picture: "Picture") -> None:
    """Shows a picture in the terminal; says on the error stream if there is none."""
    from rich.console import Console

    from ..samplers.preview import preview

    console = Console()
    if console.is_terminal:
        console.print(preview(picture, console.width))
    else:
        typer.echo("no preview: the output goes to no terminal", err=True)
