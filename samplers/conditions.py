"""The conditions of a network beside x and time: labels and tensors, per branch and image."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from ..models.arguments import Integers, as_integers, parse_ranges
from ..models.denoiser import Branch, Denoiser, Network
from ..models.errors import ModelError, SettingError, shorten
from ..models.schedule import TimeGrid
from .guidance import Guidance

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
    given; what those do not name is shared with the conditional branch. Where no conditions are
    given, those of the network are taken in turn.

    Raises:
        SettingError: for labels that do not exist, or conditions without one row per image.
        ModelError: if a condition that the network cannot be called without is missing.
    """
    given = fill_conditions(network, range(n), conditions, negative)
    conditions, negative = given["conditions"], given["negative"]
    cond = {**_expand("conditions", conditions, n), **_read_labels(network, n, class_labels)}
    missing = [name for name in network.needs if name not in cond]
    if missing:
        raise ModelError(
            f"{network.name} needs {', '.join(missing)}; pass conditions={{name: tensor}} with one"
            " row per image, to the call or once to from_module"
        )
    branches = {Branch.COND: cond}
    has_null = bool(network.num_classes) and network.null_class is not None
    if negative is not None or has_null:
        null = _read_labels(network, n, None) if has_null else {}
        branches[Branch.UNCOND] = {**cond, **_expand("negative", negative, n), **null}
    return {branch: _to_device(network.device, each) for branch, each in branches.items()}


def fill_conditions(
    network: Network,
    seeds: Sequence[int],
    conditions: Conditions | None = None,
    negative: Conditions | None = None,
) -> dict[str, Conditions | None]:
    """Returns conditions and negative ones as `Sampler` takes them; the network's where None."""
    return {
        "conditions": pick_rows(network.conditions, seeds) if conditions is None else conditions,
        "negative": pick_rows(network.negative, seeds) if negative is None else negative,
    }


def pick_rows(conditions: Conditions | None, seeds: Sequence[int]) -> Conditions | None:
    """Returns row s mod k of k for each seed s."""
    if conditions is None:
        return None
    return {
        name: value[torch.tensor([seed % len(value) for seed in seeds])]
        for name, value in conditions.items()
    }


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


NULL = "null"  # the name of no class at all


def parse_classes(text: str, network: Network) -> list[int] | None:
    """Returns the labels of `0-3,shirt`; None, which is no class, for `null` alone.

    Raises:
        SettingError: for what is neither a number nor the name of a class, and for labels and a
            null class that the network does not have.
    """
    if not network.num_classes:
        raise SettingError(f"{network.name} has no classes; leave them out")
    if text.strip() == NULL:
        if network.null_class is None:
            raise SettingError(
                f"{network.name} has no null class; give one of 0 to {_find_last(network)}"
            )
        return None
    names = {name: label for label, name in enumerate(network.class_names)}
    labels: list[int] = []
    for part in (part.strip() for part in text.split(",")):
        labels += [names[part]] if part in names else _parse_numbers(part, network)
    return labels


def _parse_numbers(part: str, network: Network) -> list[int]:
    try:
        labels = parse_ranges(part)
    except SettingError:
        if not network.class_names or part.replace("-", "").isdecimal():
            raise
        known = ", ".join(network.class_names)
        raise SettingError(
            f"no class {shorten(part)} in {network.name}; known: 0 to {_find_last(network)}, or"
            f" {known}, or {NULL} for none"
        ) from None
    for label in labels:
        check_label(label, network)
    return labels


def check_label(label: int, network: Network) -> None:
    """Raises SettingError for a label beyond the classes, that of the null class among them."""
    if not 0 <= label < network.num_classes:
        none = "" if network.null_class is None else "; no class is class_labels=None, or null"
        raise SettingError(
            f"class {label} does not exist; {network.name} has classes 0 to"
            f" {_find_last(network)}{none}"
        )


def _find_last(network: Network) -> int:
    return network.num_classes - 1


Wanted = Integers | str | Sequence[str] | Conditions | None
Negative = str | Sequence[str] | Conditions | None
TOLD = "guidance"  # the condition by which networks distilled for guidance are told its scale


def make_user_branches(
    network: Network,
    n: int,
    condition: Wanted,
    negative: Negative = None,
    *,
    labels: Integers | None = None,
) -> Branches:
    """Returns the conditions of n images, by branch.

    Args:
        condition: a class or one for each image, a prompt or one for each, or named tensors; None
            is the null class or the empty prompt, where there is one.
        negative: of the unconditional branch: prompts beside prompts, tensors beside tensors. None
            beside prompts is what `Prompts.conditions` says.
        labels: classes beside named tensors.

    Beside prompts a network distilled for guidance is told 1; `tell_scale` tells it another scale.

    Raises:
        SettingError: for a class where the network takes prompts and the other way round.
    """
    if isinstance(condition, Mapping):
        return make_branches(network, n, labels, condition, _check_tensors(network, negative))
    if network.prompts is not None:
        return _encode_prompts(network, n, condition, negative)
    if _read_texts(condition) is not None:
        raise SettingError(f"{network.name} takes no prompt; {_suggest(network)}")
    classes = cast(Integers | None, condition)
    return make_branches(network, n, classes, None, _check_tensors(network, negative))


def _encode_prompts(network: Network, n: int, condition: object, negative: Negative) -> Branches:
    """Returns the conditions of one prompt or n."""
    assert network.prompts is not None
    texts = _read_texts(condition)
    if condition is not None and texts is None:
        raise SettingError(
            f"{network.name} takes prompts and no classes; say what is to be seen, as in"
            ' "a photo of a cat"'
        )
    if isinstance(negative, Mapping):
        raise SettingError("negative holds tensors beside a prompt; give a prompt there too")
    for each in (texts, negative):
        if not isinstance(each, str | None) and len(each) not in (1, n):
            raise SettingError(f"{len(each)} prompts for {n} images; give one, or one for each")
    positive, other = network.prompts.conditions("" if texts is None else texts, negative)
    return tell_scale(network, make_branches(network, n, None, positive, other), 1.0)[0]


def tell_scale(network: Network, branches: Branches, scale: float) -> tuple[Branches, float]:
    """Returns conditions and a scale for two branches that together guide by a scale.

    A network distilled for guidance is told the scale where no negative is given, and 1 beside a
    negative; the others are told nothing.
    """
    if TOLD not in branches[Branch.COND]:
        return branches, scale
    number, rest = (1.0, scale) if Branch.UNCOND in branches else (scale, 1.0)
    unit = 1.0 if network.prompts is None else network.prompts.unit
    return {
        branch: {**each, TOLD: torch.full_like(each[TOLD], number * unit)}
        for branch, each in branches.items()
    }, rest


def _read_texts(condition: object) -> str | Sequence[str] | None:
    """Returns the prompt or prompts; None if it is none."""
    if isinstance(condition, str):
        return condition
    if not isinstance(condition, Sequence) or not condition:
        return None
    return condition if all(isinstance(each, str) for each in condition) else None


def _check_tensors(network: Network, negative: Negative) -> Mapping[str, Tensor] | None:
    if negative is None or isinstance(negative, Mapping):
        return negative
    if network.prompts is None:
        raise SettingError(f"{network.name} takes no prompt, and so no negative one; drop it")
    raise SettingError("negative is a prompt beside tensors; give named tensors there too")


def _suggest(network: Network) -> str:
    if network.num_classes:
        return f"give a class from 0 to {network.num_classes - 1}"
    if network.needs:
        return f"give named tensors: {', '.join(network.needs)}"
    return "it draws without any condition"
