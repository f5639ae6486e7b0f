"""Conditions from user input: a class, a prompt, or named tensors."""

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor

from ..models.arguments import Integers
from ..models.denoiser import Branch, Network
from ..models.errors import SettingError
from .conditions import Branches, Conditions, make_branches

Wanted = Integers | str | Sequence[str] | Conditions | None
Negative = str | Sequence[str] | Conditions | None
TOLD = "guidance"  # the condition by which networks distilled for guidance are told its scale


def make_user_branches(
    network: Network,
    n: int,
    wanted: Wanted,
    negative: Negative = None,
    *,
    labels: Integers | None = None,
) -> Branches:
    """Returns the conditions of n images, by branch.

    Args:
        wanted: a class or one for each image, a prompt or one for each, or named tensors; None is
            the null class or the empty prompt, where there is one.
        negative: of the unconditional branch: prompts beside prompts, tensors beside tensors. None
            beside prompts is what `Prompts.conditions` says.
        labels: classes beside named tensors.

    Beside prompts a network distilled for guidance is told 1; `tell_scale` tells it another scale.

    Raises:
        SettingError: for a class where the network takes prompts and the other way round.
    """
    if isinstance(wanted, Mapping):
        return make_branches(network, n, labels, wanted, _check_tensors(network, negative))
    if network.prompts is not None:
        return _encode_prompts(network, n, wanted, negative)
    if _read_texts(wanted) is not None:
        raise SettingError(f"{network.name} takes no prompt; {_suggest(network)}")
    classes = cast(Integers | None, wanted)
    return make_branches(network, n, classes, None, _check_tensors(network, negative))


def _encode_prompts(network: Network, n: int, wanted: object, negative: Negative) -> Branches:
    """Returns the conditions of one prompt or n."""
    assert network.prompts is not None
    texts = _read_texts(wanted)
    if wanted is not None and texts is None:
        raise SettingError(
            f"{network.name} takes prompts and no classes; say what is to be seen, as in"
            ' "a photo of a cat"'
        )
    if isinstance(negative, Mapping):
        raise SettingError("negative holds tensors beside a prompt; give a prompt there too")
    for each in (texts, negative):
        if not isinstance(each, str | None) and len(each) not in (1, n):
            raise SettingError(f"{len(each)} prompts for {n} images; give one, or one for each")
    found, other = network.prompts.conditions("" if texts is None else texts, negative)
    return tell_scale(network, make_branches(network, n, None, found, other), 1.0)[0]


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


def _read_texts(wanted: object) -> str | Sequence[str] | None:
    """Returns the prompt or prompts; None if it is none."""
    if isinstance(wanted, str):
        return wanted
    if not isinstance(wanted, Sequence) or not wanted:
        return None
    return wanted if all(isinstance(each, str) for each in wanted) else None


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
