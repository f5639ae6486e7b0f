"""The conditions of a network beside x and time: labels and tensors, per branch and image."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..models.arguments import Integers, as_integers
from ..models.denoiser import Branch, Denoiser, Network
from ..models.errors import ModelError, SettingError
from ..models.schedule import TimeGrid
from .guidance import Guidance
from .labels import check_label

Conditions = Mapping[str, Tensor]
Branches = Mapping[Branch, Conditions]


def make_branches(
    network: Network,
    n: int,
    class_labels: Integers | None,
    conditions: Conditions | None,
    negative: Conditions | None,
) -> Branches:
    """Returns the conditions of n images for each branch that the network has.

    A network has an unconditional branch if it has a null class or if negative conditions are
    given; what those do not name is shared with the conditional branch.

    Raises:
        SettingError: for labels that do not exist, or conditions without one row per image.
        ModelError: if a condition that the network cannot be called without is missing.
    """
    cond = {**_expand("conditions", conditions, n), **_read_labels(network, n, class_labels)}
    missing = [name for name in network.needs if name not in cond]
    if missing:
        raise ModelError(
            f"{network.name} needs {', '.join(missing)}; pass conditions={{name: tensor}} with one"
            " row per image"
        )
    found = {Branch.COND: cond}
    has_null = bool(network.num_classes) and network.null_class is not None
    if negative is not None or has_null:
        null = _read_labels(network, n, None) if has_null else {}
        found[Branch.UNCOND] = {**cond, **_expand("negative", negative, n), **null}
    return {branch: _to_device(network.device, each) for branch, each in found.items()}


def check_branches(
    network: Network, branches: Branches, guidance: Guidance, grid: TimeGrid
) -> None:
    """Raises SettingError if the guidance asks for a branch that is not to be had here."""
    if guidance.needs(grid) - branches.keys():
        raise SettingError(
            f"{network.name} has no unconditional branch (no null class and no negative"
            " conditions), so it cannot be guided so; use a guidance scale of 1, or pag, which"
            " needs no such branch"
        )


def take_rows(branches: Branches, rows: slice) -> Branches:
    """Returns the conditions of some of the images."""
    return {
        branch: {name: value[rows] for name, value in each.items()}
        for branch, each in branches.items()
    }


def make_denoisers(
    networks: Mapping[Branch, Network], branches: Branches
) -> dict[Branch, Denoiser]:
    """Returns denoisers of further networks, by the branch that they answer."""
    cond = {Branch.COND: branches[Branch.COND]}
    return {branch: Denoiser(network, cond) for branch, network in networks.items()}


def _read_labels(network: Network, n: int, class_labels: Integers | None) -> dict[str, Tensor]:
    if not network.num_classes:
        if class_labels is not None:
            raise SettingError(f"{network.name} has no classes; drop class_labels")
        return {}
    if class_labels is None and network.null_class is not None:
        return {"class_labels": torch.full((n,), network.null_class)}
    if class_labels is None:
        raise SettingError(
            f"{network.name} has {network.num_classes} classes and no null class; give"
            f" class_labels from 0 to {network.num_classes - 1}"
        )
    labels = as_integers(class_labels, "class_labels", repeat=n)
    if len(labels) != n:
        raise SettingError(f"{len(labels)} class labels for {n} seeds; give one for each")
    for label in labels:
        check_label(label, network)
    return {"class_labels": torch.tensor(labels, dtype=torch.long)}


def _expand(argument: str, given: Conditions | None, n: int) -> dict[str, Tensor]:
    """Returns conditions with n rows; a single row serves all images."""
    if not isinstance(given, Mapping | None):
        raise SettingError(f"{argument} must be tensors by name, not {given!r}")
    tensors = {name: _to_tensor(argument, name, value) for name, value in (given or {}).items()}
    for name, value in tensors.items():
        if value.ndim == 0 or len(value) not in (1, n):
            rows = len(value) if value.ndim else "no"
            raise SettingError(
                f"{argument}[{name!r}] of shape {tuple(value.shape)} has {rows} rows for {n}"
                " images; give one for each, or one for all"
            )
    return {name: value.expand(n, *value.shape[1:]) for name, value in tensors.items()}


def _to_tensor(argument: str, name: str, value: Any) -> Tensor:
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        raise SettingError(f"{argument}[{name!r}] must be a tensor, not {value!r}") from None


def _to_device(device: torch.device, conditions: Conditions) -> dict[str, Tensor]:
    return {name: value.to(device) for name, value in conditions.items()}
