"""A network behind one interface: x_t and a node in, x0 (or eps, velocity, score) out."""

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .caching import Attachment
from .devices import Reading, lacks_memory
from .errors import FewstepError, ModelError, NonFiniteError, SettingError, reason_of
from .ledger import Ledger
from .modules import hold
from .network import Network
from .node import check_normal
from .prediction import Linear, combine, eps_from, usual_size, velocity_from, x0_from
from .schedule import Node

__all__ = ["Ask", "Asks", "Branch", "Denoiser", "Network", "PendingNorm"]

FAILURES = (RuntimeError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError)
TOO_LARGE = 10.0  # times the size that an answer has for data of about one unit


class Branch(StrEnum):
    """The condition that an evaluation carries."""

    COND = "cond"
    UNCOND = "uncond"
    WEAK = "weak"  # the condition again, answered by a weaker network


@dataclass(frozen=True, slots=True)
class Ask:
    """A branch to be evaluated, for all rows of a state or for some.

    rows: an index tensor (k,) on the state's device; None for all.
    """

    branch: Branch
    rows: Tensor | None = None


Asks = Sequence[Branch | Ask]  # a branch alone is evaluated for all rows


class PendingNorm(NamedTuple):
    """The norm of one output, which the host has not read yet.

    norm: the root of the sum of its squares, on the output's own device.
    """

    node: Node
    values: int
    norm: Tensor


@dataclass
class Denoiser:
    """The network during one run: it is called, counted and checked here and nowhere else.

    conditions: the keyword tensors of each branch, with as many rows as the state.
    ledger:     counts one call, its images and its rows each time.
    stage:      which evaluation within a step of the solver comes next.
    cache:      the cache on the network; each call is announced to it.
    others:     the denoisers of branches that other networks answer; each has a ledger of its own,
                and its rows and calls count in this one too.
    unchecked:  the outputs that `check` has not looked at yet.
    sized:      whether the first output was checked for its size.

    The state keeps its dtype: `forward` casts to the network's own dtype and back.
    """

    network: Network
    conditions: Mapping[Branch, Mapping[str, Tensor]] = field(default_factory=dict)
    ledger: Ledger = field(default_factory=Ledger)
    stage: int = 0
    cache: Attachment | None = None
    others: "Mapping[Branch, Denoiser]" = field(default_factory=dict)
    unchecked: list[PendingNorm] = field(default_factory=list)
    sized: bool = False

    def x0(self, x_t: Tensor, node: Node, branches: Asks = (Branch.COND,)) -> tuple[Tensor, ...]:
        """Returns the predicted clean sample (B, *) of each branch; (k, *) for k rows."""
        weights = x0_from(self.network.prediction, node, self.network.sigma_data)
        asks = list(map(_ask, branches))
        mine = [ask for ask in asks if ask.branch not in self.others]
        answers = iter(_weigh(self._call(x_t, node, mine), weights) if mine else ())
        return tuple(
            self._ask_other(x_t, node, ask) if ask.branch in self.others else next(answers)
            for ask in asks
        )

    def eps(self, x_t: Tensor, node: Node, branches: Asks = (Branch.COND,)) -> tuple[Tensor, ...]:
        """Returns the predicted noise (B, *), one per branch."""
        weights = eps_from(self.network.prediction, node, self.network.sigma_data)
        return _weigh(self._call(x_t, node, branches), weights)

    def velocity(
        self, x_t: Tensor, node: Node, branches: Asks = (Branch.COND,)
    ) -> tuple[Tensor, ...]:
        """Returns dx/dt of the probability-flow ODE in the schedule's own time, one per branch."""
        slope = self.network.schedule.slope(node.t)
        weights = velocity_from(self.network.prediction, node, slope, self.network.sigma_data)
        return _weigh(self._call(x_t, node, branches), weights)

    def score(self, x_t: Tensor, node: Node, branches: Asks = (Branch.COND,)) -> tuple[Tensor, ...]:
        """Returns the gradient of log p(x_t), -eps / sigma, one per branch."""
        if node.sigma == 0.0:
            raise ModelError(f"there is no score at t={node.t:g}, where sigma is 0")
        check_normal(self.network.schedule, "-eps / sigma is the score of normal noise")
        c, d = eps_from(self.network.prediction, node, self.network.sigma_data)
        return _weigh(self._call(x_t, node, branches), (-c / node.sigma, -d / node.sigma))

    @property
    def forecast(self) -> bool:
        """True if a cache forecast a part of the last answer."""
        if self.cache is None or not self.cache.ledger.calls:
            return False
        return self.cache.ledger.calls[-1].kind != "full"

    def check(self) -> None:
        """Raises NonFiniteError if any output so far held NaN or infinity.

        Warns if the first output is far larger than data of about one unit can cause, for instance
        because the network gets its time in other units than in training.

        Every output leaves its norm on its device, in float64, where it cannot overflow. On a CPU
        it is read at once; elsewhere that would stall the device, so the loop reads it once, at
        the end.
        """
        self.check_later()()

    def check_later(self) -> Callable[[], None]:
        """Sends the norms to the host now and returns the check, which waits for them."""
        others = [other.check_later() for other in self.others.values()]
        pending, self.unchecked = self.unchecked, []
        norms = Reading(torch.stack([each.norm for each in pending])) if pending else None

        def check() -> None:
            for other in others:
                other()
            if norms is not None:
                self._judge(pending, norms.numbers())

        return check

    def _judge(self, outputs: Sequence[PendingNorm], norms: Sequence[float]) -> None:
        for (node, *_), norm in zip(outputs, norms, strict=True):
            if not math.isfinite(norm):
                raise NonFiniteError(
                    f"the network {self.network.name!r} returned NaN or infinity at"
                    f" {self._name_time(node)}; try --dtype fp32, or check that its schedule and"
                    " prediction are the ones it was trained with"
                )
        if not self.sized:
            self.sized = True
            self._judge_size(outputs[0], norms[0])

    def _judge_size(self, first: PendingNorm, norm: float) -> None:
        network = self.network
        usual = usual_size(network.prediction, first.node, max(1.0, network.sigma_data))
        if norm > TOO_LARGE * usual * math.sqrt(first.values):
            warnings.warn(
                f"the first answer of {network.name!r}, at {self._name_time(first.node)}, is more"
                f" than {TOO_LARGE:g} times as large as it can be for data of about one unit; check"
                f" the units and the direction of the time that it is told, and that it predicts"
                f" {network.prediction}",
                stacklevel=2,
            )

    def _name_time(self, node: Node) -> str:
        """Returns a time in words, with the network's own where the schedule has it."""
        try:
            return f"t={node.t:g} (network time {self.network.schedule.label(node):g})"
        except FewstepError:  # a function may do without one
            return f"t={node.t:g}"

    def _call(self, x_t: Tensor, node: Node, branches: Asks) -> list[tuple[Tensor, Tensor]]:
        """Returns the rows and the output of each branch, all from one forward pass."""
        asks = list(map(_ask, branches))
        parts = [x_t if ask.rows is None else x_t[ask.rows] for ask in asks]
        sizes = [len(part) for part in parts]
        scale = self.network.prediction.input_scale(node, self.network.sigma_data)
        x_in = torch.cat(parts) if len(parts) > 1 else parts[0]
        x_in = x_in if scale == 1.0 else x_in * scale
        if self.cache is not None:
            _check_all_rows(asks)
            self.cache.announce([ask.branch for ask in asks], self.stage, node.kappa)
        conditions = self._join_conditions(asks)
        with hold(self.network.module), _explain_failures(self.network.name, x_in, conditions):
            out = self.network.forward(x_in, node, conditions)
        self.ledger.count(len(x_t), sum(sizes))
        self._watch_gradient(out)
        self._check_soon(node, out)
        return list(zip(parts, torch.split(out, sizes), strict=True))

    def _check_soon(self, node: Node, out: Tensor) -> None:
        """Stores the norm of an output for `check`; a recorded run checks its norms at the end."""
        wide = torch.float32 if out.device.type == "mps" else torch.float64
        fixed = out.detach() if out.requires_grad else out
        norm = torch.linalg.vector_norm(fixed, dtype=wide)
        self.unchecked.append(PendingNorm(node, out.numel(), norm))
        if out.device.type == "cpu" and Reading.allowed:
            self.check()

    def _ask_other(self, x_t: Tensor, node: Node, ask: Ask) -> Tensor:
        """Returns the x0 of another network under this one's condition."""
        (x0,) = self.others[ask.branch].x0(x_t, node, (Ask(Branch.COND, ask.rows),))
        self.ledger.count(0, len(x0))
        self._watch_gradient(x0)
        return x0

    def _watch_gradient(self, out: Tensor) -> None:
        """Counts the rows of an output (B, *) each time that a gradient goes back through it."""
        if out.requires_grad:
            tensor: Any = out  # torch types no hook
            tensor.register_hook(lambda _: self.ledger.count_backward(len(out)))

    def _join_conditions(self, asks: Sequence[Ask]) -> Mapping[str, Tensor]:
        named = ", ".join(dict.fromkeys(ask.branch for ask in asks))
        if self.conditions and not self.conditions.keys() >= {ask.branch for ask in asks}:
            raise ModelError(f"{self.network.name} was given no conditions for {named}")
        conditions = [_select_rows(self.conditions.get(ask.branch, {}), ask.rows) for ask in asks]
        if len(conditions) == 1:
            return conditions[0]
        if any(each.keys() != conditions[0].keys() for each in conditions):
            raise ModelError(f"branches {named} need the same conditions by name")
        return {name: torch.cat([each[name] for each in conditions]) for name in conditions[0]}


@contextmanager
def _explain_failures(name: str, x: Tensor, conditions: Mapping[str, Tensor]) -> Iterator[None]:
    """Raises SettingError where a network refuses its conditions, ModelError where it fails."""
    try:
        yield
    except FAILURES as error:
        shown = {key: value for key, value in conditions.items() if key != "class_labels"}
        passes = isinstance(error, FewstepError) or lacks_memory(error)
        if passes or not Reading.allowed:
            raise
        if not shown:
            raise ModelError(
                f"{name} fails when it is called ({type(error).__name__}: {reason_of(error)}); its"
                f" code or its config does not fit a state of shape {tuple(x.shape)} with times of"
                f" shape ({len(x)},)"
            ) from error
        shapes = ", ".join(f"{key} {tuple(value.shape)}" for key, value in shown.items())
        raise SettingError(
            f"{name} cannot be called with the conditions {shapes}: {reason_of(error)};"
            " give those of the shapes that it was trained with"
        ) from error


def _weigh(answers: Iterable[tuple[Tensor, Tensor]], weights: Linear) -> tuple[Tensor, ...]:
    return tuple(combine(weights, x, out) for x, out in answers)


def _ask(branch: Branch | Ask) -> Ask:
    return branch if isinstance(branch, Ask) else Ask(branch)


def _select_rows(conditions: Mapping[str, Tensor], rows: Tensor | None) -> Mapping[str, Tensor]:
    if rows is None:
        return conditions
    return {name: value[rows] for name, value in conditions.items()}


def _check_all_rows(asks: Sequence[Ask]) -> None:
    if any(ask.rows is not None for ask in asks):
        raise ModelError(
            "a cache on the network remembers whole batches, so no branch can be evaluated for some"
            " rows only; drop the cache or take the guidance for all rows at once"
        )
