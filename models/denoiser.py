"""A network behind one face: x_t and a node in, x0 (or eps, velocity, score) out."""

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, NamedTuple, Never

import torch
from torch import Tensor, nn

from .arguments import as_integer, as_integers
from .caching import Attachment
from .errors import FewstepError, ModelError, NonFiniteError, SettingError
from .hold import hold
from .ledger import Ledger
from .memory import lacks_memory
from .prediction import (
    Linear,
    Prediction,
    combine,
    eps_from,
    usual_size,
    velocity_from,
    x0_from,
)
from .reading import reason_of
from .schedule import Node, NoiseSchedule
from .transfer import Reading

if TYPE_CHECKING:
    from .graphs import Graphs
    from .prompts import Prompts

CPU = torch.device("cpu")
FAILURES = (RuntimeError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError)
LARGEST_SAMPLE = 2**34  # numbers in one sample, 64 GiB
Forward = Callable[[Tensor, Node, Mapping[str, Any]], Tensor]
TOO_LARGE = 10.0  # times the size that an answer has for data of about one unit


class Branch(StrEnum):
    """Which conditioning an evaluation carries."""

    COND = "cond"
    UNCOND = "uncond"
    WEAK = "weak"  # the condition again, answered by a weaker network


@dataclass(frozen=True, slots=True)
class Ask:
    """One branch, wanted for all rows of a state or for some.

    rows: an index tensor (k,) on the state's device; None for all.
    """

    branch: Branch
    rows: Tensor | None = None


Asks = Sequence[Branch | Ask]  # a branch alone is wanted for all rows


class PendingNorm(NamedTuple):
    """The size of one output, which the host has yet to look at.

    norm: the root of the sum of its squares, on the output's own device.
    """

    node: Node
    values: int
    norm: Tensor


@dataclass(frozen=True, kw_only=True)
class Network:
    """A pretrained network and the facts that are needed to sample from it.

    forward:     (x_t (B, *), node, conditions) -> raw output (B, *), in the dtype of x_t. The
                 conditions are keyword tensors with B rows.
    schedule:    the noise schedule it was trained on.
    prediction:  what the raw output is.
    shape:       one sample without the batch axis, such as (1, 32, 32).
    num_classes: `class_labels` takes 0 .. num_classes - 1; 0 if there are no classes.
    null_class:  the label that stands for "no class"; None if there is none.
    class_names: what the classes are called, in the order of their labels; empty if nobody says.
    decode:      sample (B, *) -> image (B, C, H, W) in [-1, 1]; None if samples are images.
    encode:      the way back; None likewise, or if there is none.
    needs:       names of the conditions it cannot be called without.
    device:      where the network lives, and its samples with it.
    name:        what the user called it.
    module:      the network of torch behind `forward`, which a cache can be put on; None if it is a
                 plain function.
    hooks:       the module that its calls hook and restore, alone in it meanwhile (`hold`); None if
                 they change nothing.
    prompts:     what makes conditions of prompts; None if it is asked without.
    graphs:      what its calls are recorded in (`models.speed`); None if they are not.
    """

    forward: Forward
    schedule: NoiseSchedule
    prediction: Prediction
    shape: tuple[int, ...]
    num_classes: int = 0
    null_class: int | None = None
    class_names: tuple[str, ...] = ()
    decode: Callable[[Tensor], Tensor] | None = None
    encode: Callable[[Tensor], Tensor] | None = None
    needs: tuple[str, ...] = ()
    device: torch.device = CPU
    name: str = ""
    module: nn.Module | None = None
    hooks: nn.Module | None = None
    prompts: "Prompts | None" = None
    graphs: "Graphs | None" = None

    def __post_init__(self) -> None:
        shape = tuple(as_integers(self.shape, "shape"))
        if not shape or min(shape) < 1 or math.prod(shape) > LARGEST_SAMPLE:
            raise SettingError(
                f"shape must hold the sizes of one sample, such as (3, 32, 32), not {self.shape!r}"
            )
        if as_integer(self.num_classes, "num_classes") < 0:
            raise SettingError(f"num_classes must be 0 or more, not {self.num_classes}")
        if self.null_class is not None:
            as_integer(self.null_class, "null_class")
        object.__setattr__(self, "shape", shape)

    def __reduce__(self) -> Never:
        """Refuses to be pickled or copied: `forward` would go on calling the module of this one."""
        raise ModelError(
            f"{self.name or 'this network'} cannot be pickled or copied: what calls its module is"
            " code of this process; load it anew where it is wanted, as in"
            " Sampler.from_pretrained(name)"
        )

    @property
    def sigma_data(self) -> float:
        return getattr(self.schedule, "sigma_data", 0.5)


@dataclass
class Denoiser:
    """The network during one run. Here it is called, counted and checked, and nowhere else.

    conditions: the keyword tensors of each branch, with as many rows as the state.
    ledger:     counts one call, its images and its rows each time.
    stage:      which evaluation within a step of the solver comes next.
    cache:      the cache on the network, which is told what each call is.
    others:     who answers a branch that is not this network's; it counts in a ledger of its own,
                and its rows and calls in this one too.
    unchecked:  the outputs that `check` has yet to look at.
    sized:      whether it has looked at the first.

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
        """The predicted clean sample (B, *), one per branch; of an `Ask` for k rows, (k, *)."""
        weights = x0_from(self.network.prediction, node, self.network.sigma_data)
        if not self.others:
            return self._read(x_t, node, branches, weights)
        asks = list(map(_ask, branches))
        own = [ask for ask in asks if ask.branch not in self.others]
        found = iter(self._read(x_t, node, own, weights) if own else ())
        return tuple(
            self._other(x_t, node, ask) if ask.branch in self.others else next(found)
            for ask in asks
        )

    def eps(self, x_t: Tensor, node: Node, branches: Asks = (Branch.COND,)) -> tuple[Tensor, ...]:
        """The predicted noise (B, *), one per branch."""
        weights = eps_from(self.network.prediction, node, self.network.sigma_data)
        return self._read(x_t, node, branches, weights)

    def velocity(
        self, x_t: Tensor, node: Node, branches: Asks = (Branch.COND,)
    ) -> tuple[Tensor, ...]:
        """dx/dt of the probability-flow ODE in the schedule's own time, one per branch."""
        slope = self.network.schedule.slope(node.t)
        weights = velocity_from(self.network.prediction, node, slope, self.network.sigma_data)
        return self._read(x_t, node, branches, weights)

    def score(self, x_t: Tensor, node: Node, branches: Asks = (Branch.COND,)) -> tuple[Tensor, ...]:
        """The gradient of log p(x_t), -eps / sigma, one per branch."""
        if node.sigma == 0.0:
            raise ModelError(f"there is no score at t={node.t:g}, where sigma is 0")
        c, d = eps_from(self.network.prediction, node, self.network.sigma_data)
        return self._read(x_t, node, branches, (-c / node.sigma, -d / node.sigma))

    @property
    def forecast(self) -> bool:
        """Whether a cache forecast a part of the last answer."""
        if self.cache is None or not self.cache.ledger.calls:
            return False
        return self.cache.ledger.calls[-1].kind != "full"

    def check(self) -> None:
        """Raises NonFiniteError if any output so far held NaN or infinity.

        Warns if the first output is far larger than any that data of about one unit leads to, as it
        is where the network was told its time in other units than in training.

        Every output leaves its norm on its device, in float64, where it cannot overflow. On a CPU
        it is read at once; elsewhere that would stall the device, so the loop asks once, at the
        end.
        """
        self.check_later()()

    def check_later(self) -> Callable[[], None]:
        """`check` in two parts: the norms go to the host now, what is returned waits for them."""
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
                    f" {self._place(node)}; try --dtype fp32, or check that its schedule and"
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
                f"the first answer of {network.name!r}, at {self._place(first.node)}, is more than"
                f" {TOO_LARGE:g} times as large as it can be for data of about one unit; check the"
                f" units and the direction of the time that it is told, and that it predicts"
                f" {network.prediction}",
                stacklevel=2,
            )

    def _place(self, node: Node) -> str:
        """A time in words, with the network's own where the schedule says what that is."""
        try:
            return f"t={node.t:g} (network time {self.network.schedule.label(node):g})"
        except FewstepError:  # a function may well do without
            return f"t={node.t:g}"

    def _read(self, x_t: Tensor, node: Node, branches: Asks, weights: Linear) -> tuple[Tensor, ...]:
        asks = list(map(_ask, branches))
        parts = [x_t if ask.rows is None else x_t[ask.rows] for ask in asks]
        sizes = [len(part) for part in parts]
        out = self._call(parts, node, asks)
        self.ledger.count(len(x_t), sum(sizes))
        self._check_soon(node, out)
        outs = torch.split(out, sizes)
        return tuple(combine(weights, x, out) for x, out in zip(parts, outs, strict=True))

    def _call(self, parts: Sequence[Tensor], node: Node, asks: Sequence[Ask]) -> Tensor:
        """All rows of all branches as one batch: one forward pass."""
        scale = self.network.prediction.input_scale(node, self.network.sigma_data)
        x_in = torch.cat(list(parts)) if len(parts) > 1 else parts[0]
        x_in = x_in if scale == 1.0 else x_in * scale
        if self.cache is not None:
            _check_whole(asks)
            self.cache.announce([ask.branch for ask in asks], self.stage)
        conditions = self._conditions(asks)
        with hold(self.network.module), _naming_conditions(self.network.name, conditions):
            return self.network.forward(x_in, node, conditions)

    def _check_soon(self, node: Node, out: Tensor) -> None:
        """Notes an output for `check`; a run that is recorded leaves its norms for the end."""
        wide = torch.float32 if out.device.type == "mps" else torch.float64
        norm = torch.linalg.vector_norm(out, dtype=wide)
        self.unchecked.append(PendingNorm(node, out.numel(), norm))
        if out.device.type == "cpu" and Reading.allowed:
            self.check()

    def _other(self, x_t: Tensor, node: Node, ask: Ask) -> Tensor:
        """The x0 of another network under this one's condition."""
        (x0,) = self.others[ask.branch].x0(x_t, node, (Ask(Branch.COND, ask.rows),))
        self.ledger.count(0, len(x0))
        return x0

    def _conditions(self, asks: Sequence[Ask]) -> Mapping[str, Tensor]:
        named = ", ".join(dict.fromkeys(ask.branch for ask in asks))
        if self.conditions and not self.conditions.keys() >= {ask.branch for ask in asks}:
            raise ModelError(f"{self.network.name} was given no conditions for {named}")
        held = [_rows(self.conditions.get(ask.branch, {}), ask.rows) for ask in asks]
        if len(held) == 1:
            return held[0]
        if any(each.keys() != held[0].keys() for each in held):
            raise ModelError(f"branches {named} need the same conditions by name")
        return {name: torch.cat([each[name] for each in held]) for name in held[0]}


@contextmanager
def _naming_conditions(name: str, conditions: Mapping[str, Tensor]) -> Iterator[None]:
    """Raises SettingError where a network refuses its conditions, ModelError where it fails."""
    try:
        yield
    except FAILURES as error:
        own = {key: value for key, value in conditions.items() if key != "class_labels"}
        passes = isinstance(error, FewstepError) or lacks_memory(error)
        if passes or not Reading.allowed:
            raise
        if not own:
            raise ModelError(
                f"{name} fails when it is called ({type(error).__name__}: {reason_of(error)}); its"
                " code or its config does not fit what it is handed"
            ) from error
        shapes = ", ".join(f"{key} {tuple(value.shape)}" for key, value in own.items())
        raise SettingError(
            f"{name} cannot be called with the conditions {shapes}: {reason_of(error)};"
            " give those of the shapes that it was trained with"
        ) from error


def _ask(wanted: Branch | Ask) -> Ask:
    return wanted if isinstance(wanted, Ask) else Ask(wanted)


def _rows(conditions: Mapping[str, Tensor], rows: Tensor | None) -> Mapping[str, Tensor]:
    if rows is None:
        return conditions
    return {name: value[rows] for name, value in conditions.items()}


def _check_whole(asks: Sequence[Ask]) -> None:
    if any(ask.rows is not None for ask in asks):
        raise ModelError(
            "a cache on the network remembers whole batches, so no branch can be evaluated for some"
            " rows only; drop the cache or take the guidance for all rows at once"
        )
