"""A sampling run as data: built by a command or a call, carried by a picture, repeated from it."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from packaging.version import InvalidVersion, Version
from PIL.PngImagePlugin import PngInfo
from pydantic import BeforeValidator, Field

from .. import __version__
from ..models.arguments import MOST_NUMBERS, format_ranges, parse_ranges
from ..models.errors import SettingError, shorten
from ..models.files import check_apart, check_writable, make_folder, write_bytes, write_whole
from ..models.reading import parse_as, parse_json, read_tensors
from ..models.schedule import NoiseSchedule
from ..models.speed import Speed
from ..models.user_code import refuse_code
from ..models.weights import check_weights, hash_weights
from ..solvers.presets import find_preset
from .brownian import FRESH
from .guidance import Guidance, Measured
from .guidance.base import list_second_networks
from .guidance.forecast import write_forecast
from .images import Picture, open_picture
from .measurement_record import MeasurementRecord
from .plan import settle_choices
from .run_settings import RunSettings
from .schedule_choice import choose_default_schedule
from .sheet_style import SheetStyle

if TYPE_CHECKING:
    from torch import Tensor

    from .sampler import Result

CHUNK = "fewstep"  # the text chunk of a PNG that holds the run as JSON
SAMPLES, TENSORS = "samples", ".safetensors"  # the tensor in a file of samples, and its suffix


def _read_seeds(given: Any) -> Any:
    """Returns a range string such as `0-1999` as the list it stands for."""
    return parse_ranges(given) if isinstance(given, str) else given


class Run(RunSettings):
    """Everything that decides the pixels of a run on one machine; settings as in `RunSettings`.

    model:    what `models.load.load` takes.
    weights:  what `hash_weights` gives for each network that is asked, by its name, where known.
    low_noise: the choices for the second network, as `LowNoise` has them in a text.
    seeds:    one per image; in JSON also as ranges, such as "0-1999".
    classes:  one label per image, or None.
    noise:    of the steps, as `Sampler` takes it; None is fresh.
    measured: the measurement that the images agree with, if there is one.
    batch, dtype, device, speed: they change the last bits of the pixels.
    columns:  of the grid picture.
    version:  of fewstep when the run was made.
    """

    model: str
    weights: dict[str, str] | None = None
    low_noise: str | None = None
    seeds: Annotated[
        tuple[int, ...], BeforeValidator(_read_seeds), Field(min_length=1, max_length=MOST_NUMBERS)
    ]
    classes: tuple[int, ...] | None = None
    noise: str | None = None
    measured: MeasurementRecord | None = None
    batch: int = 32
    dtype: str = "fp32"
    device: str = "cpu"
    speed: Speed | None = None
    columns: Annotated[int, Field(ge=1, le=MOST_NUMBERS)] | None = None
    version: str = __version__

    def settle(self, noise_schedule: NoiseSchedule) -> "Run":
        """Returns the run of a network with the defaults that may become others written out.

        They are solver, grid and evaluations, or the schedule if only an NFE was asked for and
        there is one, space and warm-up of a guidance forecast, and the weights that names stand
        for, and the hashes of files. A picture then holds them, and is repeated when others are the
        best.
        """
        spec = None if self.guidance_spec is None else write_forecast(self.guidance_spec)
        named = self.model_copy(update={"guidance_spec": spec})._name_files().name_weights()
        if self.measured is not None and (self.solver, self.schedule) == (None, None):
            named = named.model_copy(update={"solver": Measured.solver})
        schedule = choose_default_schedule(named.model, named.choices(), named.guidance())
        if schedule is not None:
            return named.model_copy(update={"schedule": schedule, "nfe": None})
        if self.schedule is not None:
            return named
        return named.model_copy(update=settle_choices(noise_schedule, named.choices()))

    def bind(self, force: bool = False) -> "Run":
        """Returns the run on the weights and files that are here.

        force: also if they are others than it was drawn with, or than its schedule is for.

        Raises:
            SettingError: if they are others.
        """
        if force:
            schedule = None if self.schedule is None else self.schedule.for_any()
            return self.model_copy(update={"schedule": schedule})._name_files().name_weights()
        if self.measured is not None:
            self.measured.check_files()
        recorded, remedy = self.weights or {}, "add --force to draw another image with those here"
        for name in self._list_networks():
            check_weights(name, recorded.get(name), "this picture was drawn", remedy)
        return self.name_weights()

    def name_code(self, named: str | None, path: Path) -> "Run":
        """Returns the run of a network as it was named anew, if it was.

        path: of the picture.

        Raises:
            SettingError: for code that only the picture names.
        """
        where, second = f"the record in {shorten(path)}", list_second_networks(self.guidance())
        refuse_code(second, where, "draw it anew with the options of its command")
        if named is None:
            refuse_code([self.model], where, f"sample {self.model} --from-png {path}")
            return self
        recorded = (self.weights or {}).get(self.model)
        weights = None if recorded is None else {named: recorded}
        return self.model_copy(update={"model": named, "weights": weights})

    def name_weights(self) -> "Run":
        """Returns the run with the hashes of the weights that are here."""
        hashes = {name: hash_weights(name) for name in self._list_networks()}
        known = {name: weights for name, weights in hashes.items() if weights is not None}
        return self.model_copy(update={"weights": known or None})

    def _name_files(self) -> "Run":
        """Returns the run with the hashes of the files of its measurement."""
        if self.measured is None:
            return self
        return self.model_copy(update={"measured": self.measured.name_files()})

    def guidance(self) -> Guidance:
        inner = super().guidance()
        return inner if self.measured is None else self.measured.guide(inner)

    def _list_networks(self) -> list[str]:
        """Returns the names of the network and of those that its guidance asks."""
        return [self.model, *list_second_networks(self.guidance())]

    def arguments(self) -> dict[str, Any]:
        """Returns the arguments with which a sampler of the model draws the images."""
        drawn: dict[str, Any] = {"seeds": self.seeds, "class_labels": self.classes}
        drawn |= {"batch": self.batch, "low_noise": self.low_noise, "noise": self.noise or FRESH}
        return {**drawn, **super().arguments()}

    def select_image(self, i: int) -> "Run":
        """Returns the run that draws the i-th image alone."""
        classes = None if self.classes is None else (self.classes[i],)
        return self.model_copy(update={"seeds": (self.seeds[i],), "classes": classes, "columns": 1})

    def list_choices(self) -> dict[str, str]:
        """Returns what is run in words: solver and grid, or the schedule, and all beside them."""
        schedule, grid, interval = self.schedule, self.grid, self.cfg_interval
        named = schedule and (find_preset(schedule) or f"of {schedule.nfe} evaluations")
        choices = {
            "recipe": self.recipe,
            "solver": self.solver,
            "schedule": named,
            "grid": ",".join(f"{t:g}" for t in grid) if isinstance(grid, tuple) else grid,
            "end": None if self.final == "zero" else self.final,
            "CFG scale": None if self.cfg_scale == 1.0 else f"{self.cfg_scale:g}",
            "CFG interval": interval and f"{interval[0]:g} to {interval[1]:g}",
            "guidance": self.guidance_spec,
            "threshold": self.threshold and f"{self.threshold:g}",
            "cache": self.cache,
            "low noise": self.low_noise,
            "noise": self.noise,
            "operator": self.measured and self.measured.operator,
        }
        return {name: str(value) for name, value in choices.items() if value is not None}

    def describe(self, nfe: float) -> str:
        """Returns the line that web interfaces keep under `parameters`."""
        choices = self.list_choices()
        parts = {
            "Sampler": choices.pop("solver", "schedule"),
            "NFE": f"{nfe:g}",
            "CFG scale": choices.pop("CFG scale", "1"),
            "Seed": format_ranges(self.seeds),
            "Model": self.model,
            "Version": f"fewstep {self.version}",
            **{name[0].upper() + name[1:]: value for name, value in choices.items()},
        }
        return ", ".join(f"{name}: {value}" for name, value in parts.items())


def save_png(image: Picture, path: Path, run: Run, nfe: float) -> None:
    """Writes a PNG whose metadata says how it was made and can repeat it."""
    chunks = PngInfo()
    chunks.add_text("parameters", run.describe(nfe))
    chunks.add_text(CHUNK, run.model_dump_json(exclude_none=True))
    write_whole(path, lambda file: image.save(file, format="PNG", pnginfo=chunks))


def save_samples(samples: "Tensor", path: Path, run: Run | None) -> None:
    """Writes the tensor `samples` of a .safetensors file, with the run if it is known."""
    from safetensors.torch import save

    metadata = {} if run is None else {CHUNK: run.model_dump_json(exclude_none=True)}
    write_bytes(path, save({SAMPLES: samples.contiguous()}, metadata))


def list_picture_paths(run: Run, folder: Path) -> list[Path]:
    """Returns where `save_pictures` puts each image: SEED-CLASS.png, or SEED.png."""
    labels = [""] * len(run.seeds) if run.classes is None else [f"-{each}" for each in run.classes]
    return [
        folder / f"{seed:06d}{label}.png" for seed, label in zip(run.seeds, labels, strict=True)
    ]


def check_pictures(run: Run, out: Path, folder: Path, inputs: Iterable[Path | None] = ()) -> None:
    """Raises SettingError if `save_pictures` could not write there, or over what is read."""
    paths = dict.fromkeys(list_picture_paths(run, folder))
    check_apart([out, *paths], inputs)
    for path in paths:
        if path.exists():
            check_writable(path)


def save_pictures(
    run: Run,
    result: "Result",
    out: Path,
    folder: Path | None = None,
    style: SheetStyle | None = None,
) -> None:
    """Writes the grid of all images to out and, to a folder if given, each as a PNG of its own.

    To a .safetensors file it writes the samples as they are. The grid alone follows the style.
    """
    if out.suffix.lower() == TENSORS:
        save_samples(result.samples, out, run)
        return
    nfe = result.ledger.nfe
    if folder is not None:
        make_folder(folder)
        for i, path in enumerate(list_picture_paths(run, folder)):
            save_png(result.images[i], path, run.select_image(i), nfe)
    style = SheetStyle(run.columns) if style is None else style
    save_png(style.draw(result.images), out, run, nfe)


def read_run(path: Path) -> Run:
    """Returns the run stored in a PNG, or beside the samples in a .safetensors file.

    Raises:
        SettingError: if the file is broken, holds no run, or one of a newer fewstep.
    """
    if path.suffix.lower() == TENSORS:
        text = read_tensors(path)[1].get(CHUNK)
    else:
        text = getattr(open_picture(path), "text", {}).get(CHUNK)
    if text is None:
        raise SettingError(
            f"{shorten(path)} carries no fewstep run; only pictures made by `sample` can be"
            " replayed"
        )
    try:
        made = _read_version(parse_json(text))
        if made <= Version(__version__):
            return parse_as(Run, text, path.parent)
    except SettingError as error:
        raise SettingError(f"the run stored in {shorten(path)} is damaged: {error}") from error
    raise SettingError(
        f"{shorten(path)} was made by fewstep {made}, which is newer than this {__version__} and"
        " may mean something else by the same words; update fewstep to repeat it"
    )


def _read_version(body: Any) -> Version:
    """Returns the version of fewstep that wrote a run; raises SettingError if it names none."""
    try:
        return Version(body["version"])
    except (TypeError, KeyError, InvalidVersion):
        raise SettingError("it does not say which version of fewstep made it") from None
