"""Tells networks apart by their answers and their weights, whatever their dtype and device."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .denoiser import Branch, Denoiser
from .hashing import hash_modules
from .modules import unwrap_compiled
from .network import Network
from .schedule import Node, NoiseSchedule

ALIKE = 0.05  # relative distance of two answers of the same network, in bf16 at the worst
NUMBERS = 16  # of a sketch
PRECISIONS = (torch.bfloat16, torch.float16)  # that weights are rounded to
DIGITS = 16  # of a hash of them


def middle_node(schedule: NoiseSchedule) -> Node:
    """Returns the node with lam = 0: as much noise as data."""
    return schedule.at_lam(0.0)


def answer(network: Network, x: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
    """Returns x0 of x (B, *) at the middle node, float32 on the CPU, by one uncounted call."""
    where = {name: value.to(network.device) for name, value in conditions.items()}
    denoiser = Denoiser(network, {Branch.COND: where})
    with torch.inference_mode():
        (x0,) = denoiser.x0(x.to(network.device), middle_node(network.schedule))
    denoiser.check()
    return x0.float().cpu()


def sketch(network: Network) -> tuple[float, ...] | None:
    """Describes the answer to one fixed noise, of class 0 if there are classes, in a few numbers.

    They are sums of the answer under random signs, divided by the square root of its size. None for
    a network that needs conditions unknown here, such as the embedding of a prompt.
    """
    given = {name: value[:1] for name, value in (network.conditions or {}).items()}
    if set(network.needs) - {"class_labels"} - given.keys():
        return None
    dice = torch.Generator().manual_seed(0)
    x = torch.randn(1, *network.shape, generator=dice)
    labels = {"class_labels": torch.zeros(1, dtype=torch.long)} if network.num_classes else {}
    x0 = answer(network, x, {**given, **labels}).flatten()
    signs = torch.randint(0, 2, (NUMBERS, len(x0)), generator=dice) * 2.0 - 1.0
    return tuple(round(value, 6) for value in (signs @ x0 / len(x0) ** 0.5).tolist())


def are_alike(mine: Sequence[float] | Tensor, theirs: Sequence[float] | Tensor) -> bool:
    """Tells whether two answers, or two sketches, can be those of one network."""
    a, b = torch.as_tensor(mine), torch.as_tensor(theirs)
    return a.shape == b.shape and float((a - b).norm()) < ALIKE * float(b.norm())


def hash_loaded(network: Network) -> tuple[str, ...] | None:
    """Returns hashes of the weights as they are loaded, rounded to bfloat16 and to float16.

    Two copies of one network in different precisions share one of them; a small change of one
    layer, as by a fused LoRA, which a sketch cannot tell from rounding, leaves none. None for a
    plain function, and for weights that are elsewhere until they are used.
    """
    if network.module is None:
        return None
    module = unwrap_compiled(network.module)
    if any(value.is_meta for value in module.state_dict().values()):
        return None
    return tuple(hash_modules([module], dtype)[:DIGITS] for dtype in PRECISIONS)


def share_weights(mine: Sequence[str] | None, theirs: Sequence[str] | None) -> bool:
    """Tells whether two results of `hash_loaded` can be of one network."""
    return mine is None or theirs is None or not set(mine).isdisjoint(theirs)
