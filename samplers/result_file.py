"""`Result.save`: the file of a call in Python, with the run inside as `sample` records it."""

import math
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..models.arguments import as_numbers
from ..models.errors import FewstepError, SettingError
from ..models.files import check_writable, write_whole
from ..models.speed import Speed
from ..solvers import Schedule
from .brownian import FRESH
from .expert_parts import format_low_noise
from .guidance import CFG, Measured
from .run_record import TENSORS, Run, save_png, save_samples

if TYPE_CHECKING:
    from .sampler import Result, SamplerCall

DTYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
UNWRITTEN = ("conditions", "negative", "callback")  # values of Python


def save_result(result: "Result", path: Path, zoom: int | None) -> None:
    """Writes a grid of the images as .png, or the samples as .safetensors; see `Result.save`."""
    check_writable(path, ".png", TENSORS)
    run = _find_record(result, path)
    if path.suffix.lower() == TENSORS:
        save_samples(result.samples, path, run)
        return
    sheet = result.grid(zoom=zoom)
    if run is None:
        write_whole(path, lambda file: sheet.save(file, format="PNG"))
    else:
        save_png(sheet, path, run, result.ledger.nfe)


def record_call(call: "SamplerCall") -> Run:
    """Returns the run as `sample` records it.

    Raises:
        SettingError: if an argument is a value of Python that has no text.
    """
    loaded, given = call.loaded, call.arguments
    if loaded is None or loaded.name is None:
        raise SettingError("its network was not loaded by a name")
    for name in UNWRITTEN:
        if given[name] is not None:
            raise SettingError(f"its {name} has no text")
    solver, labels = given.get("solver"), given["class_labels"]
    planned = isinstance(solver, Schedule)
    return Run(
        model=loaded.name,
        dtype=DTYPES.get(loaded.dtype, loaded.dtype or "fp32"),  # type: ignore[arg-type]
        device=str(loaded.device or "cpu"),
        speed=None if loaded.speed == Speed() else loaded.speed,
        schedule=solver if planned else None,
        solver=None if planned else _as_text("solver", solver),
        seeds=tuple(given["seeds"]),
        classes=None if labels is None else tuple(labels),
        grid=_record_grid(given.get("grid")),
        recipe=given.get("recipe"),
        low_noise=None if given["low_noise"] is None else format_low_noise(given["low_noise"]),
        cache=_as_text("cache", given["cache"]),
        final=str(given.get("final", "zero")),
        nfe=given.get("nfe"),
        steps=given.get("steps"),
        noise=None if given["noise"] == FRESH else given["noise"],
        batch=given["batch"],
        **_record_guidance(given["guidance"]),
    ).settle(call.noise_schedule)


def _find_record(result: "Result", path: Path) -> Run | None:
    """Returns the run of a result; warns where it has none that could be repeated."""
    try:
        if result.call is None:
            raise SettingError("it did not come from a call of a sampler")
        return record_call(result.call)
    except FewstepError as error:
        warnings.warn(f"{str(path)!r} carries no record of its run: {error}", stacklevel=4)
        return None


def _as_text(name: str, given: Any) -> str | None:
    """Returns an argument that was given as text, or not at all."""
    if given is None or isinstance(given, str):
        return given
    raise SettingError(f"its {name} was no text; give it as one, as on the command line")


def _record_grid(given: Any) -> str | tuple[float, ...] | None:
    """Returns the name of a grid, its times, or None for the default."""
    return given if given is None or isinstance(given, str) else tuple(as_numbers(given, "grid"))


def _record_guidance(given: Any) -> dict[str, Any]:
    """Returns the fields of a run that say how it was guided."""
    if given is None or isinstance(given, str):
        return {"guidance_spec": given}
    if isinstance(given, CFG) and given == CFG(given.scale, given.interval):
        always = given.interval == (0.0, math.inf)
        return {"cfg_scale": given.scale, "cfg_interval": None if always else given.interval}
    if isinstance(given, Measured):
        raise SettingError("its measurement was no file; `sample --operator` takes files")
    raise SettingError("its guidance was no text; give it as one, as in 'cfg:scale=2'")
