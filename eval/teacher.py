"""Reference samples: the limit of a run, computed once and kept on disk."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from .. import __version__
from ..models.arguments import Integers
from ..models.denoiser import Network
from ..models.errors import SettingError
from ..models.files import write_bytes
from ..models.reading import read_tensors
from ..models.schedule import process_of
from ..samplers.noise import check_seeds
from ..samplers.sampler import Sampler
from ..solvers import SolverSettings, take_solver


def teacher(
    network: Network,
    seeds: Integers,
    *,
    solver: str | SolverSettings = "ode-dopri5",
    cache: Path | str | None = None,
    **call: Any,
) -> Tensor:
    """Returns samples (B, *) of the seeds, float32 on the CPU, as `Sampler` returns them.

    solver: as `make_plan` takes it; an adaptive one watches its own error.
    cache:  an existing folder to keep them in, each run as <sha256>.safetensors; None keeps none.
            The name stands for everything here, the version of fewstep, and two answers of the
            network to the first seed, which tell its weights and dtype. A file that does not hold
            what it should is replaced.
    call:   further arguments of `Sampler`: class_labels, conditions, guidance, batch, final, nfe
            and so on. Tensors count by their values.
    """
    call["solver"], seeds = take_solver(solver), check_seeds(seeds)
    if cache is None:
        return Sampler(network)(seeds, **call).samples
    key = _make_key(network, seeds, call)
    path = Path(cache) / f"{hashlib.sha256(key.encode()).hexdigest()}.safetensors"
    samples = _read(path, key)
    if samples is None:
        samples = Sampler(network)(seeds, **call).samples.contiguous()
        body = save({"samples": samples}, {"key": key, "sha256": compute_digest(samples)})
        write_bytes(path, body)
    return samples


def _make_key(network: Network, seeds: list[int], call: dict[str, Any]) -> str:
    """Returns everything that decides the samples, as JSON."""
    parts = {
        "version": __version__,
        "network": [network.name, str(network.device), network.prediction, network.shape],
        "process": process_of(network.schedule),
        "seeds": seeds,
        "call": json.loads(json.dumps(call, default=_simplify)),
    }
    labels = parts["call"].get("class_labels")
    given: dict[str, Any] = {"class_labels": labels[:1] if isinstance(labels, list) else labels}
    for name in ("conditions", "negative"):
        if call.get(name) is not None:
            given[name] = {key: value[:1] for key, value in call[name].items()}
    answers = Sampler(network)(seeds[:1], **given, solver="ddim", nfe=2).samples
    return json.dumps({**parts, "answers": compute_digest(answers)}, sort_keys=True)


def _simplify(value: Any) -> Any:
    """Returns settings as their names and fields, ranges as lists.

    A field that came later and is at its default is left out: what was kept before is still found.
    """
    if is_dataclass(value) and not isinstance(value, type):
        later = {
            field.name
            for field in fields(value)
            if field.metadata.get("later") and getattr(value, field.name) == field.default
        }
        body = {name: each for name, each in asdict(value).items() if name not in later}
        return [type(value).__name__, body]
    if isinstance(value, Tensor):
        return [str(value.dtype), list(value.shape), compute_digest(value)]
    if isinstance(value, Sequence):
        return list(value)
    raise SettingError(f"a cache cannot be named after a {type(value).__name__}; use cache=None")


def _read(path: Path, key: str) -> Tensor | None:
    """Returns the samples in a file, if it is whole and of this key."""
    try:
        tensors, facts = read_tensors(path)
        samples = tensors["samples"]
    except (SettingError, KeyError):
        return None
    return samples if facts == {"key": key, "sha256": compute_digest(samples)} else None


def compute_digest(values: Tensor) -> str:
    """Returns the sha256 of a tensor's bytes."""
    body = values.detach().cpu().contiguous().flatten().view(torch.uint8)
    return hashlib.sha256(body.numpy().tobytes()).hexdigest()
