"""`fewstep invert` and `fewstep edit`: a picture to its noise, and to another one."""

from pathlib import Path
from typing import Annotated

import typer

from ..models.errors import SettingError
from .options import (
    DEFAULT_MODEL,
    LAST_SEED,
    Device,
    GridType,
    ModelOption,
    PictureFile,
    Quiet,
    Steps,
)


def invert(
    image: PictureFile,
    model: ModelOption = DEFAULT_MODEL,
    class_: Annotated[
        int | None, typer.Option("--class", help="What the picture shows. Default: no class.")
    ] = None,
    prompt: Annotated[
        str | None, typer.Option(help="The same for networks with text. Default: the empty prompt.")
    ] = None,
    solver: Annotated[
        str, typer.Option(help="Name[:key=value,...] of one that runs both ways.")
    ] = "rf-solver",
    nfe: Annotated[
        int | None, typer.Option(help="Evaluations on the way to the noise. Default 30.")
    ] = None,
    steps: Steps = None,
    grid_type: GridType = None,
    t_min: Annotated[
        float | None, typer.Option(help="Time of the clean end, as 0.01; skips what is below.")
    ] = None,
    out: Annotated[Path, typer.Option(help="The noise, .safetensors.")] = Path("noise.safetensors"),
    strip: Annotated[
        Path | None, typer.Option(help="A PNG of the picture and of what comes back.")
    ] = None,
    device: Device = "cpu",
    quiet: Quiet = False,
) -> None:
    """Finds the noise that a picture comes from, and says how well it comes back."""
    from ..samplers import inversion
    from ..samplers.images import to_pil
    from ..samplers.picture_files import decibels, read_picture, write_strip
    from ..samplers.sampler import Sampler

    _check_outputs(out, ".safetensors", strip, image)
    _either(class_, prompt, "--class", "--prompt")
    sampler = Sampler.from_pretrained(model, device=device)
    x = read_picture(image, sampler.network)
    found = inversion.invert(
        sampler,
        x,
        solver=solver,
        class_labels=class_,
        prompt=prompt,
        progress=not quiet,
        nfe=nfe,
        steps=steps,
        grid=grid_type,
        t_min=t_min,
    )
    back = inversion.reconstruct(sampler, found)
    found.save(out, model=model)
    if strip is not None:
        write_strip([*to_pil(x), *back.images], strip)
    if not quiet:
        typer.echo(f"{out}: {found.ledger}")
        typer.echo(f"reconstruction: {decibels(back.samples, x)}, {back.ledger}")


def edit(
    image: PictureFile,
    model: ModelOption = DEFAULT_MODEL,
    from_class: Annotated[
        int | None, typer.Option(help="What it shows. Default: no class.")
    ] = None,
    to_class: Annotated[int | None, typer.Option(help="What it shall show.")] = None,
    from_prompt: Annotated[
        str | None, typer.Option(help="What it shows, for networks with text. Default: empty.")
    ] = None,
    to_prompt: Annotated[str | None, typer.Option(help="What it shall show.")] = None,
    negative_prompt: Annotated[
        str | None, typer.Option(help="What it shall not show, for guided editors.")
    ] = None,
    editor: Annotated[
        str, typer.Option(help="Name[:key=value,...]; see `fewstep list editors`.")
    ] = "rf-edit",
    seed: Annotated[
        int, typer.Option(min=0, max=LAST_SEED, help="For editors that draw noise.")
    ] = 0,
    out: Annotated[Path, typer.Option(help="The edited picture.")] = Path("edit.png"),
    strip: Annotated[
        Path | None, typer.Option(help="A PNG of source, reconstruction and edit.")
    ] = None,
    device: Device = "cpu",
    quiet: Quiet = False,
) -> None:
    """Changes what a picture shows, a class or a prompt, and keeps what it can of it."""
    from ..samplers.editing import Editor
    from ..samplers.images import to_pil
    from ..samplers.inversion import invert, reconstruct
    from ..samplers.picture_files import read_picture, write_png, write_strip
    from ..samplers.sampler import Sampler

    _check_outputs(out, ".png", strip, image)
    source = _either(from_class, from_prompt, "--from-class", "--from-prompt")
    target = _either(to_class, to_prompt, "--to-class", "--to-prompt")
    if target is None:
        raise SettingError("say what the picture shall show: --to-class or --to-prompt")
    sampler = Sampler.from_pretrained(model, device=device)
    x, edits = read_picture(image, sampler.network), Editor(sampler, editor)
    found = edits(x, source=source, target=target, negative=negative_prompt, seeds=[seed])
    write_png(found.images[0], out)
    if strip is not None:
        there = invert(sampler, x, class_labels=from_class, prompt=from_prompt)
        back = reconstruct(sampler, there)
        write_strip([*to_pil(x), *back.images, *found.images], strip)
    if not quiet:
        typer.echo(f"{out}: {found.ledger}")


def _check_outputs(out: Path, suffix: str, strip: Path | None, image: Path) -> None:
    from ..models.files import check_apart, check_writable

    check_writable(out, suffix)
    if strip is not None:
        check_writable(strip, ".png")
    check_apart([out, strip], [image])


def _either(label: int | None, prompt: str | None, *names: str) -> int | str | None:
    """The class or the prompt, whichever was given."""
    if label is not None and prompt is not None:
        raise SettingError(f"give {' or '.join(names)}, not both")
    return label if prompt is None else prompt
