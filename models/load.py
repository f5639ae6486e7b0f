"""Finds a network: by embedded name, folder, hub id, or in a live diffusers pipeline."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import torch

from .adapters import from_checkpoint, from_module, from_pipeline
from .checkpoint import WEIGHTS, load_module, load_pipeline, read_config
from .devices import memory_advice
from .errors import FewstepError, ModelError, SettingError, UnknownNameError, reason_of, shorten
from .hashing import hash_file
from .hub import download, is_hub_name
from .network import Network
from .pipeline_network import (
    asks_for_text,
    default_size,
    make_adapter_error,
    network_of,
    prompt_adapter,
)
from .reading import ordinary_file
from .schedule import noise_schedule
from .speed import Speed, faster, use_tf32
from .user_code import LENT, import_network, names_code

TF32 = "tf32"
DTYPES = {
    "fp32": torch.float32,
    TF32: torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


def embedded_names() -> list[str]:
    """Returns the names of the networks that come with the package."""
    folder = files(f"{__package__}.embedded")
    return sorted(entry.name for entry in folder.iterdir() if (entry / "card.json").is_file())


def read_card(name: str) -> dict[str, Any]:
    """Reads an embedded network's card: class, schedule, prediction, data, licence, sha256 etc."""
    if name not in embedded_names():
        raise UnknownNameError("embedded network", name, embedded_names())
    text = (files(f"{__package__}.embedded") / name / "card.json").read_text(encoding="utf-8")
    facts: dict[str, Any] = json.loads(text)
    return facts


def load(
    source: Any,
    *,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    speed: Speed | None = None,
) -> Network:
    """Loads a network ready to sample from.

    Args:
        source: an embedded name; a diffusers pipeline folder or checkpoint folder (the latter with
            a card.json or scheduler_config.json beside its weights); a hub id `owner/name`;
            `file.py:attribute` or `package.module:attribute`, a `Network` or a function that makes
            one, whose code is run; a live diffusers pipeline; or a `Network`, which is returned as
            it is.
        dtype: "fp32", "bf16", "fp16" or torch's own, of the network's weights; states stay
            float32. "tf32" is fp32 whose matrix products may round to TF32 on a GPU. None is fp32,
            and for a live pipeline and for code what it has.
        device: a torch device; None is cpu, and for a live pipeline and for code where it is.
        speed: how it is run, such as `Speed(compile=True)`; None changes nothing.

    Raises:
        ModelError: if nothing is found there, or the network found cannot be sampled from.
        SettingError: if it cannot be run so; see `faster`.
        MemoryLackError: if its weights do not fit on the device.
    """
    doing, advice = f"loading {shorten(source)}", "take dtype bf16, or a device with more memory"
    with _guard_files(source), memory_advice(doing, advice):
        network = _find_network(source, dtype, device)
    network = use_tf32(network) if dtype == TF32 else network
    return network if speed is None else faster(network, speed)


def _find_network(
    source: Any, dtype: str | torch.dtype | None, device: str | torch.device | None
) -> Network:
    if isinstance(source, Network):
        return source
    if str(source) in LENT:
        return LENT[str(source)]
    kind, where = _find_dtype(dtype or "fp32"), find_device(device or "cpu")
    asked = kind if dtype else None, where if device else None
    if not isinstance(source, str | Path):
        return _make_from_pipeline(_move_pipeline(source, *asked))
    if str(source) in embedded_names():
        with as_file(files(f"{__package__}.embedded") / str(source)) as folder:
            return _load_folder(folder, kind, where)
    if names_code(source) and not is_folder(source):
        return import_network(str(source), *asked)
    folder = Path(source) if is_folder(source) else _download(str(source))
    return replace(_load_folder(folder, kind, where), name=str(source))


def is_folder(source: str | Path) -> bool:
    """Returns whether a source is that of a folder."""
    try:
        return bool(str(source)) and Path(source).is_dir()
    except (OSError, ValueError):  # too long for a file system, or no name at all
        return False


@contextmanager
def _guard_files(source: Any) -> Iterator[None]:
    """Turns every error that the files of a folder can cause into one ModelError."""
    try:
        yield
    except FewstepError:
        raise
    except Exception as error:
        if not isinstance(source, str | Path):
            raise
        raise ModelError(
            f"cannot load {shorten(source)}: its files do not fit together"
            f" ({type(error).__name__}: {reason_of(error)})"
        ) from error


def _make_from_pipeline(pipe: Any) -> Network:
    """Makes the network of a pipeline, at the size that it draws by default."""
    if prompt_adapter(pipe) is not None:
        return network_of(pipe, default_size(pipe))
    if asks_for_text(pipe):
        raise make_adapter_error(pipe)
    return from_pipeline(pipe)


def _move_pipeline(pipe: Any, dtype: torch.dtype | None, device: torch.device | None) -> Any:
    asked = {"dtype": dtype, "device": device}
    given = {name: value for name, value in asked.items() if value is not None}
    return pipe.to(**given) if given else pipe


def _find_dtype(name: str | torch.dtype) -> torch.dtype:
    if name in DTYPES.values():
        return name  # type: ignore[return-value]
    if name not in DTYPES:
        raise UnknownNameError("dtype", str(name), DTYPES)
    return DTYPES[str(name)]


def find_device(name: str | torch.device) -> torch.device:
    """Returns the device of a name; raises ModelError if it cannot be used here."""
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).cpu()  # a device such as meta takes numbers and gives none
    except (RuntimeError, AssertionError, TypeError, ValueError, ImportError) as error:
        reason = reason_of(error)
        raise ModelError(f"device {shorten(name)} cannot be used: {reason}; try cpu") from error
    return device


def _load_folder(folder: Path, dtype: torch.dtype, device: torch.device) -> Network:
    if (folder / "model_index.json").is_file():
        return _make_from_pipeline(load_pipeline(folder, dtype, device))
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"{str(folder)!r} holds neither a pipeline (model_index.json) nor a checkpoint"
            " (config.json) of diffusers"
        )
    module = load_module(folder, dtype).to(device)
    if (folder / "card.json").is_file():
        return _make_from_card(module, folder)
    return _make_from_scheduler(module, folder)


def _make_from_card(module: Any, folder: Path) -> Network:
    facts = read_config(folder / "card.json")
    try:
        if facts.get("sha256", "") != hash_file(ordinary_file(folder / WEIGHTS)):
            raise ModelError(f"{folder / WEIGHTS} is not the file its card.json names (sha256)")
        process = facts["schedule"]
        return from_module(
            module,
            schedule=noise_schedule(process["family"], **process["params"]),
            prediction=facts["prediction"],
            shape=tuple(facts["shape"]),
            num_classes=facts["num_classes"],
            null_class=facts["null_class"],
            class_names=tuple(map(str, facts.get("class_names", ()))),
            shown_classes=tuple(facts.get("shown_classes", ())),
            cfg_scale=facts.get("cfg_scale", 1.0),
            name=facts["name"],
        )
    except (KeyError, TypeError, OSError) as error:
        raise ModelError(f"{folder / 'card.json'} does not fit its folder: {error!r}") from error


def _make_from_scheduler(module: Any, folder: Path) -> Network:
    """Makes a network of a bare checkpoint by the config of its scheduler."""
    for path in (folder / "scheduler_config.json", folder / "scheduler" / "scheduler_config.json"):
        if path.is_file():
            return from_checkpoint(module, read_config(path))
    raise ModelError(
        f"{str(folder)!r} does not say how its network was trained; put its scheduler_config.json"
        " or a card.json beside the weights, or use from_module(module, schedule=, prediction=)"
    )


def _download(name: str) -> Path:
    """Downloads a hub repository into the ordinary cache: weights as safetensors, and no code."""
    if name.endswith(".py"):
        raise _make_error(name, f"to run its code, name the network in it: {name}:ATTRIBUTE")
    if not is_hub_name(name):
        raise _make_error(name, "it is no folder and no hub id (owner/name)")
    try:
        return download(name, ["*.json", "*.safetensors", "*.txt", "*.model"])
    except SettingError as error:
        raise _make_error(name, str(error)) from error


def _make_error(name: str, reason: str) -> ModelError:
    return ModelError(f"{UnknownNameError('embedded network', name, embedded_names())}; {reason}")
