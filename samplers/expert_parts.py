"""The parts of a run of two networks: which steps each answers, how it is guided and cached."""

from typing import TypedDict

from ..models.caching import Policy, take_cache
from ..models.errors import SettingError, UnknownNameError
from ..models.experts import Experts
from ..models.network import Network
from ..models.node import Node
from ..solvers import dry_run
from ..solvers.table_steps import TableSteps
from .guidance import Guidance, take_guidance
from .job import JobPart
from .plan import Plan


class LowNoise(TypedDict, total=False):
    """The choices for the second network of a run, where they are others than for the first.

    guidance: a policy or its text; None is that of the first.
    cache:    a cache or its text; None is none.
    """

    guidance: Guidance | str | None
    cache: Policy | str | None


def split_run(
    network: Network,
    plan: Plan,
    guidance: Guidance,
    cache: Policy | None,
    low_noise: LowNoise | None,
) -> tuple[JobPart, ...]:
    """Returns the parts of a run: one, or two of a network that is made of two.

    The solver's memory crosses the boundary; what guidance and caches remember does not.

    Raises:
        SettingError: for choices for a second network where there is none, and for a plan that does
            not cross the boundary between two of its steps.
    """
    chosen = dict(low_noise or {})
    for name in chosen.keys() - LowNoise.__annotations__.keys():
        raise UnknownNameError("choice of low_noise", name, LowNoise.__annotations__)
    if network.experts is None:
        if chosen:
            raise SettingError(
                f"{network.name} is one network, and low_noise is for the second of two; drop it"
            )
        return (JobPart(network, guidance, cache),)
    first = _find_switch(network.experts, plan)
    second = chosen.get("guidance")
    after = guidance if second is None else take_guidance(second)  # type: ignore[arg-type]
    other = chosen.get("cache")
    low_cache = None if other is None else take_cache(other)  # type: ignore[arg-type]
    return (
        JobPart(network.experts.high, guidance, cache, 0, first),
        JobPart(network.experts.low, after, low_cache, first, plan.grid.steps),
    )


def _find_switch(experts: Experts, plan: Plan) -> int:
    """Returns the first step of the second network."""
    if plan.adaptive:
        raise SettingError(
            "an adaptive solver chooses its own steps, and a run of two networks changes between"
            " two of them; take one with fixed steps, such as unipc-2"
        )
    nodes = plan.grid.nodes
    first = sum(experts.choose(node) is experts.high for node in nodes[:-1])
    if first in (0, plan.grid.steps):
        sigmas = sorted((node.sigma for node in nodes), key=lambda s: abs(s - experts.boundary))
        raise SettingError(
            f"the boundary of both networks, sigma={experts.boundary:g}, lies outside of the steps"
            f" of this run; its nearest nodes are at {sigmas[0]:.4g} and {sigmas[1]:.4g}: take more"
            " steps, or another grid"
        )
    _check_calls(experts, plan, first)
    starts = plan.solver.starts if isinstance(plan.solver, TableSteps) else ()
    if any(start < first <= n for n, start in enumerate(starts)):
        raise SettingError(
            f"the boundary, sigma={experts.boundary:g}, lies within a block of this solver, whose"
            f" steps {first} and {first + 1} begin at sigma {nodes[first - 1].sigma:.4g} and"
            f" {nodes[first].sigma:.4g}; take a multistep solver, such as unipc-2"
        )
    return first


def _check_calls(experts: Experts, plan: Plan, first: int) -> None:
    """Raises SettingError for a step of the first network that asks below the boundary."""
    for step in dry_run(plan.solver, plan.grid.nodes)[:first]:
        for node in step:
            if isinstance(node, Node) and experts.choose(node) is experts.low:
                raise SettingError(
                    f"a step of this solver begins above the boundary, sigma={experts.boundary:g},"
                    f" and asks at sigma {node.sigma:.4g} below it; take a solver with one"
                    " evaluation a step, such as unipc-2"
                )
