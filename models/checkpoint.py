"""Reads what a folder of diffusers holds: one model, or a whole pipeline."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from .errors import ModelError, SettingError, reason_of, shorten
from .extras import check_installed
from .reading import ordinary_file, read_object

WEIGHTS = "diffusion_pytorch_model.safetensors"
LARGEST_SIDE = 4096  # of samples, which tables of positions may be built for before any weight
DEPTH = re.compile("layers|depth|num_blocks")  # names in a config that say how many modules to make
PARTS = ("transformer", "unet", "vae", "vqvae")  # of a pipeline, which draw and decode


def load_module(folder: Path, dtype: torch.dtype) -> Any:
    import diffusers

    config = read_config(folder / "config.json")
    _check_extent(config, folder)
    name = str(config.get("_class_name", ""))
    cls = getattr(diffusers, name, None)
    if not (isinstance(cls, type) and issubclass(cls, diffusers.ModelMixin)):
        raise ModelError(f"{folder / 'config.json'} names no model class of diffusers: {name!r}")
    model: Any = cls
    module, info = _call_loader(folder, model.from_pretrained, dtype, output_loading_info=True)
    if info["missing_keys"]:
        raise ModelError(f"cannot load {str(folder)!r}: it lacks {min(info['missing_keys'])}")
    if extra := info["unexpected_keys"]:
        raise ModelError(
            f"cannot load {str(folder)!r}: its config.json has no place for {len(extra)} of the"
            f" stored tensors, such as {min(extra)}; the two belong to different networks"
        )
    return module


def load_pipeline(folder: Path, dtype: torch.dtype, device: torch.device) -> Any:
    index = read_config(folder / "model_index.json")
    if any(isinstance(part, list) and "transformers" in part for part in index.values()):
        check_installed("transformers")
    from diffusers import DiffusionPipeline

    parts = {  # the pipeline would drop tensors that its configs have no place for
        name: load_module(folder / name, dtype)
        for name in PARTS
        if (folder / name / "config.json").is_file()
    }
    pipe = _call_loader(folder, DiffusionPipeline.from_pretrained, dtype, **parts)
    try:
        return pipe.to(device)
    except NotImplementedError as error:  # diffusers leaves what it did not find without data
        raise ModelError(f"cannot load {str(folder)!r}: its weights lack tensors") from error


def read_config(path: Path) -> Mapping[str, Any]:
    try:
        return read_object(path)
    except SettingError as error:
        raise ModelError(str(error)) from error


def _call_loader(folder: Path, from_pretrained: Any, dtype: torch.dtype, **options: Any) -> Any:
    try:
        with _hide_bars():
            return from_pretrained(str(folder), dtype=dtype, use_safetensors=True, **options)
    except (OSError, ValueError, RuntimeError, AttributeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(f"cannot load {str(folder)!r}: {reason}") from error


@contextmanager
def _hide_bars() -> Iterator[None]:
    """Hides the progress bars of diffusers, and of transformers where it is in use."""
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


def _check_extent(config: Mapping[str, Any], folder: Path) -> None:
    """Raises ModelError for a config of so many layers or pixels that making them never ends."""
    weights = folder / WEIGHTS
    tensors = _count_tensors(weights) if weights.exists() else None
    for name, value in config.items():
        numbers = [each for each in _flatten(value) if isinstance(each, int)]
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


def _flatten(value: Any) -> list[Any]:
    """Returns the values in nested lists."""
    if isinstance(value, list):
        return [each for part in value for each in _flatten(part)]
    return [value]
