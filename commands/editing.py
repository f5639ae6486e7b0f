"""`fewstep invert` and `fewstep edit`: a picture to its noise, and to another one."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from ..eval.options import (
    GREY_MODEL,
    IMAGES,
    OUTPUT,
    SAMPLING,
    SEEDS,
    Device,
    GridType,
    ModelOption,
    PictureFile,
    Quiet,
    Steps,
    Strip,
    describe,
    option,
)
from ..models.errors import SettingError
from .console import gather_options


@dataclass(frozen=True, kw_only=True)
class InvertOptions:
    """The way of a picture to its noise."""

    class_: int | None = option(
        None, "Class label of the picture. By default it has none.", IMAGES, "--class"
    )
    prompt: str | None = option(
        None, "Prompt that describes the picture. By default it is empty.", IMAGES
    )
    solver: str = option(
        "rf-solver",
        "A solver that can run from data to noise too, as name[:key=value,...].",
        SAMPLING,
    )
    nfe: int | None = option(
        None,
        "Number of network evaluations from the picture to the noise. The default is 30.",
        SAMPLING,
    )
    steps: Steps = None
    grid_type: GridType = None
    t_min: float | None = option(
        None,
        "Time that the picture is placed at, such as 0.01; no node of the grid lies nearer to data."
        " The default is 1e-6 on rectified flow, and the schedule's smallest time elsewhere.",
        SAMPLING,
    )


@gather_options
def invert(
    image: PictureFile,
    options: InvertOptions,
    model: ModelOption = GREY_MODEL,
    out: Annotated[
        Path, describe("The .safetensors file that the noise is written to.", OUTPUT)
    ] = Path("noise.safetensors"),
    strip: Strip = None,
    device: Device = "cpu",
    quiet: Quiet = False,
) -> None:
    """Finds the noise of a picture, and reports how well the picture is restored from it."""
    from ..samplers import inversion
    from ..samplers.images import format_psnr, read_picture, to_pil, write_strip
    from ..samplers.sampler import Sampler

    _check_outputs(out, ".safetensors", strip, image)
    _either(options.class_, options.prompt, "--class", "--prompt")
    sampler = Sampler.from_pretrained(model, device=device)
    x = read_picture(image, sampler.network)
    noise = inversion.invert(
        sampler,
        x,
        solver=options.solver,
        class_labels=options.class_,
        prompt=options.prompt,
        progress=not quiet,
        nfe=options.nfe,
        steps=options.steps,
        grid=options.grid_type,
        t_min=options.t_min,
    )
    back = inversion.reconstruct(sampler, noise)
    noise.save(out)
    if strip is not None:
        write_strip([*to_pil(x), *back.images], strip)
    if not quiet:
        typer.echo(f"{out}: {noise.ledger}")
        typer.echo(f"reconstruction: {format_psnr(back.samples, x)}, {back.ledger}")


@dataclass(frozen=True, kw_only=True)
class EditOptions:
    """The classes or prompts of a picture before and after."""

    from_class: int | None = option(
        None, "Class label of the picture as it is. By default it has none.", IMAGES
    )
    to_class: int | None = option(None, "Class label of the edited picture.", IMAGES)
    from_prompt: str | None = option(
        None, "Prompt that describes the picture as it is. By default it is empty.", IMAGES
    )
    to_prompt: str | None = option(None, "Prompt that describes the edited picture.", IMAGES)
    negative_prompt: str | None = option(
        None, "Negative prompt: what the edited picture must not show.", IMAGES
    )
    editor: str = option(
        "rf-edit", "The editor, as name[:key=value,...]; see `fewstep list editors`.", SAMPLING
    )
    seed: int = option(0, "Random seed of editors that draw noise.", SAMPLING, within=SEEDS)

    def conditions(self) -> tuple[int | str | None, int | str]:
        """Returns what the picture shows and what it shall show, each a class or a prompt."""
        source = _either(self.from_class, self.from_prompt, "--from-class", "--from-prompt")
        target = _either(self.to_class, self.to_prompt, "--to-class", "--to-prompt")
        if target is None:
            raise SettingError(
                "nothing says what the edited picture shows; give --to-class or --to-prompt"
            )
        return source, target


@gather_options
def edit(
    image: PictureFile,
    options: EditOptions,
    model: ModelOption = GREY_MODEL,
    out: Annotated[Path, describe("The .png file for the edited picture.", OUTPUT)] = Path(
        "edit.png"
    ),
    strip: Strip = None,
    device: Device = "cpu",
    quiet: Quiet = False,
) -> None:
    """Changes the class or the prompt of a picture and keeps as much of it as possible."""
    from ..samplers.editing import Editor
    from ..samplers.images import read_picture, to_pil, write_png, write_strip
    from ..samplers.inversion import invert, reconstruct
    from ..samplers.sampler import Sampler

    _check_outputs(out, ".png", strip, image)
    source, target = options.conditions()
    sampler = Sampler.from_pretrained(model, device=device)
    x, edits = read_picture(image, sampler.network), Editor(sampler, options.editor)
    negative, seeds = options.negative_prompt, [options.seed]
    result = edits(x, source=source, target=target, negative=negative, seeds=seeds)
    write_png(result.images[0], out)
    if strip is not None:
        start = invert(sampler, x, class_labels=options.from_class, prompt=options.from_prompt)
        back = reconstruct(sampler, start)
        write_strip([*to_pil(x), *back.images, *result.images], strip)
    if not quiet:
        typer.echo(f"{out}: {result.ledger}")


def _check_outputs(out: Path, suffix: str, strip: Path | None, image: Path) -> None:
    from ..models.files import check_apart, check_writable

    check_writable(out, suffix)
    if strip is not None:
        check_writable(strip, ".png")
    check_apart([out, strip], [image])


def _either(label: int | None, prompt: str | None, *names: str) -> int | str | None:
    """Returns the class or the prompt, whichever was given."""
    if label is not None and prompt is not None:
        raise SettingError(f"give {' or '.join(names)}, not both")
    return label if prompt is None else prompt
