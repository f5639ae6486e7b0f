"""The parts of a run of two networks: which steps each answers, how it is guided and cached."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any, TypedDict

from ..models.caching import Attachment, Policy, take_cache
from ..models.caching.full_calls import check_run
from ..models.errors import SettingError, UnknownNameError
from ..models.experts import Experts, check_boundary_sigma
from ..models.network import Network
from ..models.node import Node
from ..models.registry import parse_spec, strip_brackets
from ..solvers import Revisable, SolverSettings, dry_run
from ..solvers.artefact import Artefact
from ..solvers.switch import Switch, check_blocks, check_boundary
from .guidance import Guidance, take_guidance
from .job import JobPart
from .plan import DEFAULT_SOLVER, Plan, count_stage_calls
from .schedule_choice import read_scale

HISTORIES = ("keep", "reset", "rewrite")


class LowNoise(TypedDict, total=False):
    """The choices for the second network of a run, where they are others than for the first.

    As a text they are `key=value,...`, with values of several settings in brackets.

    boundary: the sigma below which it answers; None is the network's own.
    solver:   a solver or its text, which begins anew there; None is that of the first.
    history:  what the solver remembers there of the first network: "keep", "reset" (nothing, it
              begins anew) or "rewrite" (the predictions as the guidance here would have made them).
    guidance: a policy or its text; None is that of the first.
    cache:    a cache or its text; None is none.
    """

    boundary: float | None
    solver: SolverSettings | str | None
    history: str | None
    guidance: Guidance | str | None
    cache: Policy | str | None


@dataclass(frozen=True)
class SecondNetwork:
    """The choices for the second network of a run, checked; `experts` has the boundary."""

    experts: Experts
    solver: SolverSettings | str | None
    history: str
    guidance: Guidance | None
    cache: Policy | None

    @classmethod
    def of(cls, network: Network, given: LowNoise | str | None) -> "SecondNetwork | None":
        """Returns the choices for a network that is made of two; None for any other.

        Raises:
            FewstepError: for choices where there is no second network, or that cannot be.
        """
        chosen = _read_choices(given)
        if network.experts is None:
            if chosen:
                raise SettingError(
                    f"{network.name} is one network, and low_noise is for the second of two; drop"
                    " it"
                )
            return None
        experts, boundary = network.experts, chosen.get("boundary")
        if boundary is not None:
            if isinstance(boundary, bool) or not isinstance(boundary, float | int):
                raise SettingError(f"boundary={boundary!r} must be a sigma, such as 0.875")
            check_boundary_sigma(network.schedule, boundary)
            experts = replace(experts, boundary=boundary)
        solver, history = chosen.get("solver"), chosen.get("history")
        if history not in (None, *HISTORIES):
            raise UnknownNameError("history", str(history), HISTORIES)
        if solver is not None and history in ("keep", "rewrite"):
            raise SettingError(
                f"a solver of the second network begins anew, so history={history!r} has nothing"
                " to go on with; drop one of them"
            )
        guidance, cache = chosen.get("guidance"), chosen.get("cache")
        return cls(
            experts,
            solver,
            history or "keep",
            None if guidance is None else take_guidance(guidance),
            None if cache is None else take_cache(cache),
        )

    def choose_solver(self, choices: Mapping[str, Any], by_recipe: bool) -> dict[str, Any]:
        """Returns the choices of a run with the solvers of both networks as one.

        Raises:
            SettingError: beside a recipe or a schedule, which is the solver all the way.
        """
        if self.solver is None and self.history != "reset":
            return dict(choices)
        high = choices.get("solver", DEFAULT_SOLVER)
        if by_recipe or isinstance(high, Artefact):
            decided = "recipe" if by_recipe else "schedule"
            raise SettingError(
                f"a {decided} decides the solver all the way from noise to data; drop the solver"
                " and the history of low_noise"
            )
        low = high if self.solver is None else self.solver
        return {**choices, "solver": Switch(high, low, self.experts.boundary)}

    def split(self, plan: Plan, guidance: Guidance, cache: Policy | None) -> tuple[JobPart, ...]:
        """Returns the parts of a run whose first network is guided and cached so.

        Raises:
            SettingError: for a plan that does not cross the boundary between two of its steps.
        """
        if plan.cache is not None:
            raise SettingError("this schedule brings the cache of one network; take another one")
        first = _find_switch(self.experts, plan)
        after = guidance if self.guidance is None else self.guidance
        rewrites = self.history == "rewrite"
        if rewrites:
            _check_rewriting(plan, guidance, after)
        return (
            JobPart(self.experts.high, guidance, cache, 0, first, rewrites),
            JobPart(self.experts.low, after, self.cache, first, plan.grid.steps),
        )


def _read_choices(given: LowNoise | str | None) -> dict[str, Any]:
    """Returns the choices that were made, by name."""
    listed = parse_spec(f"low_noise:{given}")[1] if isinstance(given, str) else {**(given or {})}
    chosen: dict[str, Any] = {name: strip_brackets(value) for name, value in listed.items()}
    for name in chosen.keys() - LowNoise.__annotations__.keys():
        raise UnknownNameError("choice of low_noise", name, LowNoise.__annotations__)
    return chosen


def format_low_noise(given: LowNoise | str) -> str:
    """Returns choices as the text that says the same.

    Raises:
        SettingError: for a value of Python that has no text.
    """
    if isinstance(given, str):
        return given
    chosen = {name: value for name, value in given.items() if value is not None}
    for name, value in chosen.items():
        if not isinstance(value, str | Real):
            raise SettingError(f"its {name} of low_noise was no text; give it as one")
    texts = {
        key: f"[{value}]" if isinstance(value, str) else value for key, value in chosen.items()
    }
    return ",".join(f"{name}={texts[name]}" for name in texts)


def _find_switch(experts: Experts, plan: Plan) -> int:
    """Returns the first step of the second network."""
    if plan.adaptive:
        raise SettingError(
            "an adaptive solver chooses its own steps, and a run of two networks changes between"
            " two of them; take one with fixed steps, such as unipc-2"
        )
    nodes = plan.grid.nodes
    first = sum(experts.choose(node) is experts.high for node in nodes[:-1])
    check_boundary(plan.grid, experts.boundary, first)
    _check_calls(experts, plan, first)
    check_blocks(plan.solver, plan.grid, first, experts.boundary)
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


def _check_rewriting(plan: Plan, before: Guidance, after: Guidance) -> None:
    """Raises SettingError if predictions cannot be combined anew for the second network."""
    if not isinstance(plan.solver, Revisable):
        raise SettingError(
            "the memory of this solver cannot be rewritten; take history=reset, or unipc-2"
        )
    for policy in (before, after):
        policy.stateless()
        if policy.rewrites or read_scale(policy) == 0.0:
            raise SettingError(
                "history=rewrite is for guidance that evaluates the conditional branch and does not"
                " rewrite by itself; drop rewrite_history, or take another scale than 0"
            )


def choose_cache(
    given: Policy | str | None, plan: Plan, attached: Attachment | None
) -> Policy | None:
    """Returns the cache to put on the network: the given one, or that of a schedule.

    Raises:
        FewstepError: for both, or one that cannot be.
    """
    if given is not None and plan.cache is not None:
        raise SettingError("this schedule brings a cache; drop the other one")
    cache = plan.cache if given is None else take_cache(given)
    if plan.cache is not None and attached is not None and attached.policy == plan.cache:
        return None  # it is on the network already
    return cache


def list_parts(whole: JobPart, plan: Plan, second: SecondNetwork | None) -> tuple[JobPart, ...]:
    """Returns the parts of a run: itself, or two of a network that is made of two."""
    parts = (whole,) if second is None else second.split(plan, whole.guidance, whole.cache)
    for part in parts:
        _check_cache(part, plan)
    return parts


def _check_cache(part: JobPart, plan: Plan) -> None:
    """Raises SettingError if the cache of a part cannot be on its network in this run."""
    if part.cache is None:
        return
    if plan.adaptive:
        raise SettingError(
            "an adaptive solver chooses its steps from differences that a cache would falsify;"
            " drop the cache or take another solver"
        )
    check_run(part.cache, count_stage_calls(plan.solver, plan.grid, part.first, part.last)[0])
