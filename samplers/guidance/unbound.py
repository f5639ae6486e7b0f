"""Policies that are followed where another program drives the solver and calls the network."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ...models.errors import SettingError
from ...models.network import Network
from ...models.prediction import Prediction
from ...models.schedule import Node, TimeGrid
from ...solvers import solver
from .auto import AutoGuidance
from .base import (
    Guidance,
    Guide,
    Setup,
    iterate_nested,
    names,
    policy_class,
    take_guidance,
)
from .cfg_mp import CFGMP
from .cfg_pp import CFGPlusPlus
from .inverse import Measured
from .linear_ag import LinearAG
from .nested import takes_gradient
from .pag import PerturbedAttention
from .rect_cfg_pp import RectifiedCFGPlusPlus
from .reg import REG

BOUND = (  # to a solver, a 2nd network or gradients
    CFGMP,
    CFGPlusPlus,
    LinearAG,
    AutoGuidance,
    PerturbedAttention,
    RectifiedCFGPlusPlus,
    REG,
)


def list_unbound() -> list[str]:
    """Returns the names of such policies, sorted."""
    return [name for name in names() if not issubclass(policy_class(name), BOUND)]


def take_unbound(given: Guidance | str, driver: str, instead: str) -> Guidance:
    """Returns a policy given as such or as a text.

    driver, instead: what drives the solver, and what to do for other policies, as errors say it.

    Raises:
        FewstepError: for texts that name none, and for what cannot be done without driving the
            solver or another network.
    """
    policy = take_guidance(given)
    if policy.rewrites:
        raise SettingError(
            f"rewrite_history reaches into the solver, which is the {driver}'s here; drop it, or"
            f" {instead}"
        )
    if takes_gradient(policy):
        raise SettingError(
            f"{policy.name} guidance differentiates the network, which a {driver} calls without"
            f" gradients; {instead}"
        )
    for each in iterate_nested(policy):
        if isinstance(each, Measured):
            raise SettingError(f"a measurement is of samples, which a {driver} keeps; {instead}")
        if isinstance(each, BOUND):
            raise SettingError(
                f"{each.name} guidance needs a solver or a second network of ours, which a {driver}"
                f" does not have; {instead}, or take adaptive or interval"
            )
    return policy


def check_whole_batches(policy: Guidance, who: str) -> None:
    """Raises SettingError if a policy evaluates some images of a batch alone."""
    if any(getattr(each, "batch", "") == "per-sample" for each in iterate_nested(policy)):
        raise SettingError(f"{who} whole batches; take adaptive:batch=all")


def begin_unbound(
    policy: Guidance, grid: TimeGrid, images: int, prediction: Prediction, name: str
) -> Guide:
    """Returns the guide of a run whose network and solver are not ours.

    Raises:
        SettingError: if the policy cannot guide this run.
    """
    network = Network(
        forward=_refuse_call,
        schedule=grid.schedule,
        prediction=prediction,
        shape=(1,),  # not known before the first call, and not asked for
        decode=lambda x: x,  # they are latents
        name=name,
    )
    setup = Setup(network, solver("ddim").on(grid), grid, images)
    policy.check(setup)
    return policy.begin(setup)


def _refuse_call(x: Tensor, node: Node, conditions: Mapping[str, Any]) -> Tensor:
    raise SettingError("here the network is called by the program that drives the solver")
