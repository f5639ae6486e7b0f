"""Guidance: which branches of the network are evaluated at a node, and how they become one x0.

A policy is a frozen value of settings and holds nothing of a run. `begin` makes the `Guide` of one
batch, which remembers what it has to. A guide is asked what it wants (`ask`), the network answers
in one forward pass, and `combine` makes the x0 that the solver sees. x0 is what crosses between
network and guidance: u + w (c - u) is the same rule in x0, eps and v, because each is affine in the
others with the same coefficients for both branches.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, InstanceOf
from torch import Tensor

from ...models.denoiser import Ask, Branch, Denoiser, Network
from ...models.errors import SettingError, UnknownNameError
from ...models.registry import SettingsRegistry, format_spec, is_needed, parse_spec, settings_of
from ...models.schedule import Node, TimeGrid
from ...solvers import Revisable, Solver, list_queries

COND = (Ask(Branch.COND),)
UNCOND = (Ask(Branch.UNCOND),)
Evaluate = Callable[[Tensor, Node, Sequence[Ask]], tuple[Tensor, ...]]
BOTH = (Ask(Branch.UNCOND), Ask(Branch.COND))


@dataclass(frozen=True, slots=True)
class Moment:
    """Where in a run an evaluation is.

    node:     where x0 is asked for.
    step:     the number of the step, from 0; stage: which evaluation within it.
    forecast: a cache forecast a part of the answer.
    """

    node: Node
    step: int = 0
    stage: int = 0
    forecast: bool = False


@dataclass(frozen=True)
class Setup:
    """The run that a guide is for.

    images:   of one batch.
    adaptive: the solver chooses its own steps.
    cached:   a cache is on the network.
    first:    the number of the batch's first image in the run; total: the images of the whole run,
              None for those of the batch.
    evaluate: calls the network beside what a guide asks for, at any state and node; it is counted.
              None before a run has begun. draw: the run's noise, standard normal; None as above.
    earlier:  the nodes of steps before this grid, which the solver takes with another network.
    """

    network: Network
    solver: Solver[Any]
    grid: TimeGrid
    images: int
    adaptive: bool = False
    cached: bool = False
    first: int = 0
    total: int | None = None
    evaluate: Evaluate | None = None
    draw: Callable[[], Tensor] | None = None
    earlier: tuple[Node, ...] = ()

    @property
    def reach(self) -> int:
        """The number of earlier predictions in the solver's memory."""
        return self.solver.reach if isinstance(self.solver, Revisable) else 0

    @property
    def one_call(self) -> bool:
        """True if every step is one evaluation, at its own node."""
        nodes = list(self.whole.nodes[:-1])
        return not self.adaptive and list_queries(self.solver, self.whole) == nodes

    @property
    def whole(self) -> TimeGrid:
        """The grid of the solver, with the steps that were before."""
        grid = self.grid
        return TimeGrid(grid.schedule, (*self.earlier, *grid.nodes), grid.denoise)


class Guide(ABC):
    """The guidance of one batch of a run; it may remember earlier answers.

    The conditional branch, for all rows, comes last in what it asks, if it is asked at all.
    """

    @abstractmethod
    def ask(self, moment: Moment) -> tuple[Ask, ...]:
        """Returns the branches to evaluate at this moment."""

    @abstractmethod
    def combine(self, outputs: Sequence[Tensor], x: Tensor, moment: Moment) -> Tensor:
        """Returns the x0 (B, *) that the solver sees, from one x0 per ask, at the state x."""

    @property
    def guided(self) -> bool | tuple[bool, ...]:
        """True if the last answer was guided, or a flag for each of its rows."""
        return True

    def conditional(self, outputs: Sequence[Tensor], x: Tensor, moment: Moment) -> Tensor:
        """Returns what `combine` would have given without guidance."""
        return outputs[-1]


class Guidance:
    """A policy value.

    name:   what users type; source: where the rule is from.
    solver: the one that goes with it where none is chosen; empty for the default.
    """

    name: ClassVar[str] = ""
    source: ClassVar[str] = ""
    solver: ClassVar[str] = ""

    @property
    def off(self) -> bool:
        """True if these settings are no guidance."""
        return False

    @property
    def saves(self) -> bool:
        """True if it is there to leave evaluations out, where a run lets it."""
        return False

    @property
    def gradient(self) -> bool:
        """True if its guide differentiates the network by the state.

        The run then records no operation but those of the network, and the state that `combine` is
        given requires a gradient: `torch.autograd.grad` goes back through all outputs to it, and is
        counted in `Ledger.backwards`. What `combine` returns is cut off from the graph.
        """
        return False

    @property
    def rewrites(self) -> bool:
        """True if the solver's memory follows where the guidance stops or starts."""
        return False

    def needs(self, grid: TimeGrid) -> set[Branch]:
        """Returns the branches that may be asked for on this grid."""
        guide = self.stateless()
        return {ask.branch for node in grid.nodes for ask in guide.ask(Moment(node))}

    def check(self, setup: Setup) -> None:
        """Raises SettingError, before the network is called, if this run cannot be guided so."""

    def networks(self, main: Network) -> Mapping[Branch, Network]:
        """Returns further networks, by the branch that they answer."""
        return {}

    def begin(self, setup: Setup) -> Guide:
        """Returns the guide of one batch."""
        return self.stateless()

    def stateless(self) -> Guide:
        """Returns the guide of a policy that needs nothing of a run but the node.

        Raises:
            SettingError: for all others, which have to be shown a run from its start.
        """
        raise SettingError(
            f"{self.name} guidance depends on the course of a run and cannot be used here; take cfg"
        )


class Conditional(Guide):
    """The conditional branch alone."""

    def ask(self, moment: Moment) -> tuple[Ask, ...]:
        return COND

    def combine(self, outputs: Sequence[Tensor], x: Tensor, moment: Moment) -> Tensor:
        return outputs[0]


def iterate_nested(policy: Guidance) -> Iterator[Guidance]:
    """Yields a policy and those inside it, outermost first."""
    inner: Guidance | None = policy
    while inner is not None:
        yield inner
        inner = getattr(inner, "inner", None)


def list_second_networks(policy: Guidance) -> list[str]:
    """Returns the names of further networks that a policy asks."""
    others = (getattr(each, "network", None) for each in iterate_nested(policy))
    return [name for name in others if isinstance(name, str)]


@dataclass(frozen=True)
class Unguided(Guidance):
    """The conditional branch alone: one row per evaluation."""

    name: ClassVar[str] = "none"

    @property
    def off(self) -> bool:
        return True

    def stateless(self) -> Guide:
        return Conditional()


def guide_x0(denoiser: Denoiser, policy: Guidance, x: Tensor, node: Node) -> Tensor:
    """Returns the x0 (B, *) that a policy which needs nothing of a run makes at a state x (B, *).

    Raises:
        SettingError: for a policy that has to be shown a run from its start.
    """
    guide, moment = policy.stateless(), Moment(node)
    return guide.combine(denoiser.x0(x, node, guide.ask(moment)), x, moment)


GUIDANCES: SettingsRegistry[Guidance] = SettingsRegistry("guidance", Guidance)

register, names, policy_class = GUIDANCES.register, GUIDANCES.names, GUIDANCES.get
guidance = GUIDANCES.make


def take_guidance(given: Guidance | str | None) -> Guidance:
    """Returns a policy given as such or as `parse_guidance` takes it; None is no guidance.

    Raises:
        FewstepError: as `parse_guidance`, and for anything else.
    """
    if isinstance(given, str):
        return parse_guidance(given)
    if given is None:
        return Unguided()
    if not isinstance(given, Guidance):
        raise SettingError(
            f"guidance={given!r} is not a guidance policy; give a text, as in 'cfg:scale=2', or a"
            " policy of fewstep.samplers.guidance, such as CFG(2.0)"
        )
    return given


Inner = Annotated[InstanceOf[Guidance], BeforeValidator(take_guidance)]


def parse_guidance(spec: str, scale: float | None = None) -> Guidance:
    """Returns the guidance of `name:key=value,...`, narrowed by what follows a plus.

    `cfg:scale=3+interval:low=0.3,high=5` is `Interval(CFG(3.0), 0.3, 5.0)`.

    scale: taken where the first policy is given none, and otherwise the same; a wrapper that comes
        first wraps `CFG` of this scale, or without one what it wraps by default.

    Raises:
        FewstepError: for names, settings and combinations that cannot be.
    """
    outer = "|".join(_list_wrappers())
    first, *wrappers = re.split(rf"\+(?=[a-z-]+:|(?:{outer})(?:\+|$))", spec)
    name = parse_spec(first)[0]
    if name in _list_wrappers() and scale is not None:
        first, wrappers, scale = f"cfg:scale={scale!r}", [first, *wrappers], None
    elif name in _list_wrappers(needy=True):
        raise SettingError(f"{spec!r} wraps another guidance; write cfg:scale=2+{spec}")
    name, settings = parse_spec(first)
    if scale is not None and settings.setdefault("scale", scale) != scale:
        raise SettingError(
            f"the guidance {first} and the guidance scale {scale:g} do not agree; drop one of them"
        )
    policy = guidance(name, **settings)
    for each in wrappers:
        name, settings = parse_spec(each)
        if name not in _list_wrappers():
            raise UnknownNameError("guidance that goes around another", name, _list_wrappers())
        policy = guidance(name, inner=policy, **settings)
    return policy


def format_guidance(policy: Guidance) -> str:
    """Returns the text that `parse_guidance` reads as this policy; a scale of 1 is no guidance."""
    if isinstance(policy, Unguided):
        return "cfg:scale=1"
    inside_out = reversed(list(iterate_nested(policy)))
    return "+".join(format_spec(each, omit=("inner",)) for each in inside_out)


def _list_wrappers(*, needy: bool = False) -> list[str]:
    """Returns the names of guidance that has another one inside; of those that must be given it."""
    every = [(name, each) for name in names() for each in settings_of(policy_class(name))]
    inner = [(name, each) for name, each in every if each.name == "inner"]
    return [name for name, each in inner if not needy or is_needed(each)]
