"""Finding a network: by embedded name, folder, hub id, or as a live diffusers pipeline."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import torch

from .adapters import from_checkpoint, from_module, from_pipeline
from .denoiser import Network
from .errors import FewstepError, ModelError, SettingError, UnknownNameError
from .memory import memory_advice
from .pipeline_network import (
    asks_for_text,
    default_size,
    network_of,
    no_adapter,
    prompt_adapter,
)
from .reading import ordinary_file, read_object, reason_of, shorten
from .schedule import noise_schedule
from .speed import Speed, faster, use_tf32

WEIGHTS = "diffusion_pytorch_model.safetensors"
LARGEST_SIDE = 4096  # of samples, which tables of positions may be built for before any weight
DEPTH = re.compile("layers|depth|num_blocks")  # names in a config that say how many modules to make
PARTS = ("transformer", "unet", "vae", "vqvae")  # of a pipeline, which draw and decode
TF32 = "tf32"
DTYPES = {
    "fp32": torch.float32,
    TF32: torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


def embedded_names() -> list[str]:
    """The networks that come with the package."""
    folder = files(f"{__package__}.embedded")
    return sorted(entry.name for entry in folder.iterdir() if (entry / "card.json").is_file())


def card(name: str) -> dict[str, Any]:
    """An embedded network's card: class, schedule, prediction, data, licence, sha256 and so on."""
    if name not in embedded_names():
        raise UnknownNameError("embedded network", name, embedded_names())
    text = (files(f"{__package__}.embedded") / name / "card.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


def load(
    source: Any,
    *,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    speed: Speed | None = None,
) -> Network:
    """A network ready to sample from.

    Args:
        source: an embedded name; a diffusers pipeline folder or checkpoint folder (the latter with
            a card.json or scheduler_config.json beside its weights); a hub id `owner/name`; a live
            diffusers pipeline; or a `Network`, which is returned as it is.
        dtype: "fp32", "bf16", "fp16" or torch's own, of the network's weights; states stay
            float32. "tf32" is fp32 whose matrix products may round to TF32 on a GPU. None is fp32,
            and for a live pipeline what it has.
        device: a torch device; None is cpu, and for a live pipeline where it is.
        speed: how it is run, such as `Speed(compile=True)`; None as it is.

    Raises:
        ModelError: if nothing is found there, or what is found cannot be sampled from.
        SettingError: if it cannot be run so; see `faster`.
        MemoryLackError: if its weights do not fit on the device.
    """
    doing, advice = f"loading {shorten(source)}", "take dtype bf16, or a device with more memory"
    with _foreign_files(source), memory_advice(doing, advice):
        network = _found(source, dtype, device)
    network = use_tf32(network) if dtype == TF32 else network
    return network if speed is None else faster(network, speed)


def _found(
    source: Any, dtype: str | torch.dtype | None, device: str | torch.device | None
) -> Network:
    if isinstance(source, Network):
        return source
    kind, where = _dtype(dtype or "fp32"), find_device(device or "cpu")
    if not isinstance(source, str | Path):
        return _of_pipeline(_moved(source, kind if dtype else None, where if device else None))
    if str(source) in embedded_names():
        with as_file(files(f"{__package__}.embedded") / str(source)) as folder:
            return _from_folder(folder, kind, where)
    folder = Path(source) if _is_folder(source) else _from_hub(str(source))
    return replace(_from_folder(folder, kind, where), name=str(source))


def _is_folder(source: str | Path) -> bool:
    try:
        return bool(str(source)) and Path(source).is_dir()
    except (OSError, ValueError):  # too long for a file system, or no name at all
        return False


@contextmanager
def _foreign_files(source: Any) -> Iterator[None]:
    """Turns all that the files of a folder can make Python raise into one ModelError."""
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


def _of_pipeline(pipe: Any) -> Network:
    """The network of a pipeline, at the size that it draws by default."""
    if prompt_adapter(pipe) is not None:
        return network_of(pipe, default_size(pipe))
    if asks_for_text(pipe):
        raise no_adapter(pipe)
    return from_pipeline(pipe)


def _moved(pipe: Any, dtype: torch.dtype | None, device: torch.device | None) -> Any:
    asked = {"dtype": dtype, "device": device}
    given = {name: value for name, value in asked.items() if value is not None}
    return pipe.to(**given) if given else pipe


def _dtype(name: str | torch.dtype) -> torch.dtype:
    if name in DTYPES.values():
        return name  # type: ignore[return-value]
    if name not in DTYPES:
        raise UnknownNameError("dtype", str(name), DTYPES)
    return DTYPES[str(name)]


def find_device(name: str | torch.device) -> torch.device:
    """The device of a name; raises ModelError if it cannot be used here."""
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).cpu()  # a device such as meta takes numbers and gives none
    except (RuntimeError, AssertionError, TypeError, ValueError, ImportError) as error:
        reason = reason_of(error)
        raise ModelError(f"device {shorten(name)} cannot be used: {reason}; try cpu") from error
    return device


def _from_folder(folder: Path, dtype: torch.dtype, device: torch.device) -> Network:
    if (folder / "model_index.json").is_file():
        return _of_pipeline(_pipeline(folder, dtype, device))
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"{str(folder)!r} holds neither a pipeline (model_index.json) nor a checkpoint"
            " (config.json) of diffusers"
        )
    module = _module(folder, dtype).to(device)
    if (folder / "card.json").is_file():
        return _with_card(module, folder)
    return _with_scheduler(module, folder)


def _with_card(module: Any, folder: Path) -> Network:
    facts = _json(folder / "card.json")
    try:
        if facts.get("sha256", "") != _sha256(ordinary_file(folder / WEIGHTS)):
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
            name=facts["name"],
        )
    except (KeyError, TypeError, OSError) as error:
        raise ModelError(f"{folder / 'card.json'} does not fit its folder: {error!r}") from error


def _with_scheduler(module: Any, folder: Path) -> Network:
    """A bare checkpoint: its scheduler's config says the schedule and the prediction."""
    for path in (folder / "scheduler_config.json", folder / "scheduler" / "scheduler_config.json"):
        if path.is_file():
            return from_checkpoint(module, _json(path))
    raise ModelError(
        f"{str(folder)!r} does not say how its network was trained; put its scheduler_config.json"
        " or a card.json beside the weights, or use from_module(module, schedule=, prediction=)"
    )


def _module(folder: Path, dtype: torch.dtype) -> Any:
    import diffusers

    config = _json(folder / "config.json")
    _check_extent(config, folder)
    name = str(config.get("_class_name", ""))
    cls = getattr(diffusers, name, None)
    if not (isinstance(cls, type) and issubclass(cls, diffusers.ModelMixin)):
        raise ModelError(f"{folder / 'config.json'} names no model class of diffusers: {name!r}")
    model: Any = cls
    module, info = _loading(folder, model.from_pretrained, dtype, output_loading_info=True)
    if info["missing_keys"]:
        raise ModelError(f"cannot load {str(folder)!r}: it lacks {min(info['missing_keys'])}")
    if extra := info["unexpected_keys"]:
        raise ModelError(
            f"cannot load {str(folder)!r}: its config.json has no place for {len(extra)} of the"
            f" stored tensors, such as {min(extra)}; the two belong to different networks"
        )
    return module


def _check_extent(config: Mapping[str, Any], folder: Path) -> None:
    """Raises ModelError for a config of so many layers or pixels that making them never ends."""
    weights = folder / WEIGHTS
    tensors = _count_tensors(weights) if weights.exists() else None
    for name, value in config.items():
        numbers = [each for each in _flat(value) if isinstance(each, int)]
        if tensors is not None and DEPTH.search(name) and max(numbers, default=0) > tensors:
            raise ModelError(
                f"{folder / 'config.json'} says {name}={max(numbers)}, but the weights beside it"
                f" have {tensors} tensors in all"
            )
        if name == "sample_size" and not all(0 < each <= LARGEST_SIDE for each in numbers):
            raise ModelError(
                f"{folder / 'config.json'} says sample_size={value}; sides lie between 1 and"
                f" {LARGEST_SIDE} pixels"
            )


def _count_tensors(weights: Path) -> int:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(ordinary_file(weights), framework="pt") as file:
            return len(file.keys())
    except (SafetensorError, SettingError, OSError) as error:
        raise ModelError(
            f"cannot load {shorten(weights.parent)}: its weights cannot be read: {reason_of(error)}"
        ) from error


def _flat(value: Any) -> list[Any]:
    """The values in nested lists."""
    if isinstance(value, list):
        return [each for part in value for each in _flat(part)]
    return [value]


def _pipeline(folder: Path, dtype: torch.dtype, device: torch.device) -> Any:
    from diffusers import DiffusionPipeline

    _json(folder / "model_index.json")
    parts = {  # the pipeline would drop tensors that its configs have no place for
        name: _module(folder / name, dtype)
        for name in PARTS
        if (folder / name / "config.json").is_file()
    }
    pipe = _loading(folder, DiffusionPipeline.from_pretrained, dtype, **parts)
    try:
        return pipe.to(device)
    except NotImplementedError as error:  # diffusers leaves what it did not find without data
        raise ModelError(f"cannot load {str(folder)!r}: its weights lack tensors") from error


def _loading(folder: Path, from_pretrained: Any, dtype: torch.dtype, **options: Any) -> Any:
    try:
        with _no_bars():
            return from_pretrained(str(folder), dtype=dtype, use_safetensors=True, **options)
    except (OSError, ValueError, RuntimeError, AttributeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(f"cannot load {str(folder)!r}: {reason}") from error


@contextmanager
def _no_bars() -> Iterator[None]:
    """Without the progress bars of diffusers, and of transformers where it is in use."""
    from diffusers.utils import is_transformers_available, logging

    talking: list[Any] = [logging]
    if is_transformers_available():
        from transformers.utils import logging as texts

        talking.append(texts)
    shown = [each for each in talking if each.is_progress_bar_enabled()]
    for each in shown:
        each.disable_progress_bar()
    try:
        yield
    finally:
        for each in shown:
            each.enable_progress_bar()


def _from_hub(name: str) -> Path:
    """Downloads a hub repository into the ordinary cache: weights as safetensors, and no code."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    repo, _, revision = name.partition("@")
    if repo.count("/") != 1 or name.startswith((".", "/", "~")):
        raise _nowhere(name, "it is no folder and no hub id (owner/name)")
    patterns = ["*.json", "*.safetensors", "*.txt", "*.model"]
    try:
        return Path(snapshot_download(repo, revision=revision or None, allow_patterns=patterns))
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise _nowhere(name, f"the hub says: {reason}") from error


def _nowhere(name: str, reason: str) -> ModelError:
    return ModelError(f"{UnknownNameError('embedded network', name, embedded_names())}; {reason}")


def _json(path: Path) -> Mapping[str, Any]:
    try:
        return read_object(path)
    except SettingError as error:
        raise ModelError(str(error)) from error


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
