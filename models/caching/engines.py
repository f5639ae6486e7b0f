"""Chooses the kind of engine that carries a policy out on a network."""

from typing import Any

from torch import nn

from ..architectures import known_classes
from ..architectures.discover import may_have_blocks
from ..architectures.stack import Stack, block_structure, describe
from ..errors import ModelError
from ..ledger import CacheLedger
from .base import Policy
from .engine import Engine
from .module_engine import ModuleEngine
from .stack_engine import StackEngine
from .unet import describe_unet, is_unet
from .unet_engine import UNetEngine
from .unobserved import Unobserved


def make_engine(root: nn.Module, policy: Policy, ledger: CacheLedger) -> Engine:
    """Makes the engine for a policy on a network.

    Raises:
        ModelError: if the network is of a kind that the policy cannot skip.
    """
    fit_to = getattr(policy, "fit_to", None)
    settings: Any = policy if fit_to is None else fit_to(root)
    if is_unet(root):
        _check_unet(root, settings)
        return UNetEngine(root, settings, ledger, describe_unet(root))
    _check_stack(root, settings)
    if block_structure(root) is None:
        return Unobserved(root, settings, ledger)
    return make_stack_engine(describe(root), settings, ledger)


def make_stack_engine(stack: Stack, policy: Any, ledger: CacheLedger) -> Engine:
    """Makes the engine for a policy on a stack of blocks."""
    kind = ModuleEngine if getattr(policy, "level", "") == "module" else StackEngine
    return kind(stack.root, policy, ledger, stack)


def _check_unet(root: nn.Module, policy: Any) -> None:
    """Raises ModelError for a policy that no UNet can carry out."""
    name = type(root).__name__
    if policy.gate is not None or policy.keep.what == "residual":
        raise ModelError(
            f"{name} has no row of equal blocks, which {policy.info.name} needs; a UNet takes"
            " deepcache, fixed-mask and taylorseer:level=last-block"
        )
    if getattr(policy, "level", "") == "module":
        raise ModelError(
            f"the sub-modules of {name} are not forecast one by one; use"
            " taylorseer:level=last-block or deepcache"
        )


def _check_stack(root: nn.Module, policy: Any) -> None:
    """Raises ModelError for a network without blocks, or a policy for UNets alone."""
    name = type(root).__name__
    if block_structure(root) is None and not may_have_blocks(root):
        unets = ", ".join(known_classes(lambda card: card.unet))
        raise ModelError(
            f"{name} has nothing that a cache can skip: it has no list of blocks that run one after"
            f" the other, and is no UNet that is known ({unets}); run it without a cache, in fewer"
            " steps"
        )
    if hasattr(policy, "branch"):
        raise ModelError(
            f"{policy.info.name} splits a UNet, and {name} is none; use taylorseer or cg-taylor"
        )
