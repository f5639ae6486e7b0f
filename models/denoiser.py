"""A network behind one face: x_t and a node in, x0 (or eps, velocity, score) out."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor

from .errors import ModelError, NonFiniteError
from .ledger import Ledger
from .prediction import Linear, Prediction, combine, eps_from, velocity_from, x0_from
from .schedule import Node, NoiseSchedule

CPU = torch.device("cpu")
Forward = Callable[[Tensor, Node, Mapping[str, Any]], Tensor]


class Branch(StrEnum):
    """Which conditioning an evaluation carries."""

    COND = "cond"
    UNCOND = "uncond"


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
    decode:      sample (B, *) -> image (B, C, H, W) in [-1, 1]; None if samples are images.
    needs:       names of the conditions it cannot be called without.
    device:      where the network lives, and its samples with it.
    name:        what the user called it.
    """

    forward: Forward
    schedule: NoiseSchedule
    prediction: Prediction
    shape: tuple[int, ...]
    num_classes: int = 0
    null_class: int | None = None
    decode: Callable[[Tensor], Tensor] | None = None
    needs: tuple[str, ...] = ()
    device: torch.device = CPU
    name: str = ""

    @property
    def sigma_data(self) -> float:
        return getattr(self.schedule, "sigma_data", 0.5)


@dataclass
class Denoiser:
    """The network during one run. Here it is called, counted and checked, and nowhere else.

    conditions: the keyword tensors of each branch, with as many rows as the state.
    ledger:     counts one call, its images and its rows each time.

    The state keeps its dtype: `forward` casts to the network's own dtype and back.
    """

    network: Network
    conditions: Mapping[Branch, Mapping[str, Tensor]] = field(default_factory=dict)
    ledger: Ledger = field(default_factory=Ledger)
    _unchecked: list[tuple[Node, Tensor]] = field(default_factory=list)

    def x0(
        self, x_t: Tensor, node: Node, branches: Sequence[Branch] = (Branch.COND,)
    ) -> tuple[Tensor, ...]:
        """The predicted clean sample (B, *), one per branch."""
        weights = x0_from(self.network.prediction, node, self.network.sigma_data)
        return self._read(x_t, node, branches, weights)

    def eps(
        self, x_t: Tensor, node: Node, branches: Sequence[Branch] = (Branch.COND,)
    ) -> tuple[Tensor, ...]:
        """The predicted noise (B, *), one per branch."""
        weights = eps_from(self.network.prediction, node, self.network.sigma_data)
        return self._read(x_t, node, branches, weights)

    def velocity(
        self, x_t: Tensor, node: Node, branches: Sequence[Branch] = (Branch.COND,)
    ) -> tuple[Tensor, ...]:
        """dx/dt of the probability-flow ODE in the schedule's own time, one per branch."""
        slope = self.network.schedule.slope(node.t)
        weights = velocity_from(self.network.prediction, node, slope, self.network.sigma_data)
        return self._read(x_t, node, branches, weights)

    def score(
        self, x_t: Tensor, node: Node, branches: Sequence[Branch] = (Branch.COND,)
    ) -> tuple[Tensor, ...]:
        """The gradient of log p(x_t), -eps / sigma, one per branch."""
        if node.sigma == 0.0:
            raise ModelError(f"there is no score at t={node.t:g}, where sigma is 0")
        c, d = eps_from(self.network.prediction, node, self.network.sigma_data)
        return self._read(x_t, node, branches, (-c / node.sigma, -d / node.sigma))

    def check(self) -> None:
        """Raises NonFiniteError if any output so far held NaN or infinity.

        Every output leaves its sum on its device, in float64, where it cannot overflow. On a CPU it
        is read at once; elsewhere that would stall the device, so the loop asks once, at the end.
        """
        pending, self._unchecked = self._unchecked, []
        if not pending:
            return
        sums = torch.stack([total for _, total in pending]).tolist()
        for (node, _), total in zip(pending, sums, strict=True):
            if not math.isfinite(total):
                raise NonFiniteError(
                    f"the network {self.network.name!r} returned NaN or infinity at t={node.t:g}"
                    f" (network time {self.network.schedule.label(node):g}); try --dtype fp32, or"
                    " check that its schedule and prediction are the ones it was trained with"
                )

    def _read(
        self, x_t: Tensor, node: Node, branches: Sequence[Branch], weights: Linear
    ) -> tuple[Tensor, ...]:
        outs = self._call(x_t, node, branches).chunk(len(branches))
        return tuple(combine(weights, x_t, out) for out in outs)

    def _call(self, x_t: Tensor, node: Node, branches: Sequence[Branch]) -> Tensor:
        """All branches as one batch: one forward pass, len(branches) rows per image."""
        scale = self.network.prediction.input_scale(node, self.network.sigma_data)
        x_in = x_t if scale == 1.0 else x_t * scale
        if len(branches) > 1:
            x_in = torch.cat([x_in] * len(branches))
        out = self.network.forward(x_in, node, self._conditions(tuple(branches)))
        self.ledger.count(len(x_t), len(branches))
        wide = torch.float32 if out.device.type == "mps" else torch.float64
        self._unchecked.append((node, out.sum(dtype=wide)))
        if out.device.type == "cpu":
            self.check()
        return out

    def _conditions(self, branches: tuple[Branch, ...]) -> Mapping[str, Tensor]:
        if self.conditions and not self.conditions.keys() >= set(branches):
            raise ModelError(
                f"{self.network.name} was given no conditions for {', '.join(branches)}"
            )
        held = [self.conditions.get(branch, {}) for branch in branches]
        if len(held) == 1:
            return held[0]
        if any(each.keys() != held[0].keys() for each in held):
            raise ModelError(f"branches {', '.join(branches)} need the same conditions by name")
        return {name: torch.cat([each[name] for each in held]) for name in held[0]}
