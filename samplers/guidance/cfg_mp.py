"""CFG-MP: before a step the state moves to where the branches agree better (arXiv:2601.21892)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from ...models.denoiser import Ask
from ...models.schedule import Node
from .base import BOTH, COND, UNCOND, Guide, Moment, Setup, register
from .settings import Scaled
from .signature import check_further
from .space import compute_flow_time, shape_per_row, widen_rows

RIDGE = 1e-4  # of Anderson's weight, as published


@register
@dataclass(frozen=True)
class CFGMP(Scaled):
    """CFG at a state z that is moved `iterations` times before a step, from z = x on.

    z <- z - (h / 2) v_u(z, t), then z <- z + (h / 2) v_c(z, t), with h from t to the next node, in
    the time and the velocity of rectified flow, which any other process is, scaled. The steps of
    ddim and euler go on from z; the solver is given the x0 that leads from x to where they go.
    The moves add up: with ever shorter steps it becomes CFG of the scale + iterations / 2.

    scale:      as in `CFG`.
    iterations: at least 0, which is CFG; 2 published for DiT, 3 for SD3.5.
    share:      of the steps, the noisiest, before which it moves; others are CFG's.
    anderson:   mixes each move with the one before it, per image ("CFG-MP+").
    beta:       of that, the part of a move that is made: 1 published for DiT, 0.7 for SD3.5.

    A step costs two rows, and two for each iteration.
    """

    name: ClassVar[str] = "cfg-mp"
    source: ClassVar[str] = "arXiv:2601.21892"

    iterations: Annotated[int, Field(ge=0)] = 2
    share: Annotated[float, Field(ge=0, le=1)] = 0.5
    anderson: bool = False
    beta: Annotated[float, Field(gt=0, le=1)] = 1.0

    def check(self, setup: Setup) -> None:
        if not self.off:
            check_further(self.name, setup)

    def guide(self, setup: Setup) -> Guide:
        return MovedGuide(self, setup)


class MovedGuide(Guide):
    """Asks for u, and by itself for the rest."""

    def __init__(self, policy: CFGMP, setup: Setup) -> None:
        self.policy, self.evaluate, self.grid = policy, setup.evaluate, setup.grid

    def ask(self, moment: Moment) -> tuple[Ask, ...]:
        return UNCOND if self._moves(moment) else BOTH

    def combine(self, outputs: Sequence[Tensor], x: Tensor, moment: Moment) -> Tensor:
        if not self._moves(moment):
            return torch.lerp(outputs[0], outputs[-1], self.policy.scale)
        assert self.evaluate is not None
        t, s = self.grid.nodes[moment.step : moment.step + 2]
        z = self.move(x, outputs[0], t, s)
        uncond, cond = self.evaluate(z, t, BOTH)
        held = s.sigma / t.sigma
        led = (z - x) * (held / (s.alpha - t.alpha * held))
        return torch.lerp(uncond, cond, self.policy.scale).add_(led)

    def move(self, x: Tensor, uncond: Tensor, t: Node, s: Node) -> Tensor:
        """Returns z (B, *) before the step from t to s; uncond is that of the state x."""
        assert self.evaluate is not None
        z, moves = x, Moves(self.policy)
        for n in range(self.policy.iterations):
            (u,) = self.evaluate(z, t, UNCOND) if n else (uncond,)
            back = follow(z, u, t, s, -0.5)
            (c,) = self.evaluate(back, t, COND)
            z = moves.mix(z, follow(back, c, t, s, 0.5))
        return z

    def _moves(self, moment: Moment) -> bool:
        noisy = moment.step < self.policy.share * self.grid.steps
        return noisy and self.policy.iterations > 0


class Moves:
    """Iterates of one step; each is mixed with the one before if asked for."""

    def __init__(self, policy: CFGMP) -> None:
        self.policy = policy
        self.last: tuple[Tensor, Tensor] | None = None

    def mix(self, z: Tensor, moved: Tensor) -> Tensor:
        """Returns the next iterate (B, *) after z, which the iteration itself has moved.

        f = moved - z; z + beta f - g (dz + beta df), g = <f, df> / (|df|^2 + ridge) within [-1, 1],
        as residuals that are nearly alike make it arbitrarily large.
        """
        if not self.policy.anderson:
            return moved
        f, beta, last = moved - z, self.policy.beta, self.last
        self.last = (z, f)
        following = z.add(f, alpha=beta)
        if last is None:
            return following
        change = f - last[1]
        wide, across = widen_rows(change), (widen_rows(f) * widen_rows(change)).sum(1)
        weight = (across / ((wide * wide).sum(1) + RIDGE)).clamp(-1.0, 1.0)
        return following - shape_per_row(weight, z) * (z - last[0]).add_(change, alpha=beta)


def follow(z: Tensor, x0: Tensor, t: Node, s: Node, part: float) -> Tensor:
    """Returns z (B, *) after a part of the step from t to s along the velocity of an x0."""
    time = compute_flow_time(t)
    rate = part * (compute_flow_time(s) - time) / time
    return (z * (1.0 + rate)).add_(x0, alpha=-rate * (t.alpha + t.sigma))
