"""Guidance: which branches of the network are evaluated at a node, and how they become one x0."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from ...models.denoiser import Branch
from ...models.schedule import Node


class Guidance(Protocol):
    """A policy value; it holds settings and nothing of a run."""

    def branches(self, node: Node) -> tuple[Branch, ...]:
        """The branches to evaluate at this node."""
        ...

    def combine(self, outputs: Sequence[Tensor], node: Node) -> Tensor:
        """The one x0 (B, *) that the solver sees, from one x0 per branch."""
        ...


@dataclass(frozen=True)
class Unguided:
    """The conditional branch alone: one row per evaluation."""

    def branches(self, node: Node) -> tuple[Branch, ...]:
        return (Branch.COND,)

    def combine(self, outputs: Sequence[Tensor], node: Node) -> Tensor:
        return outputs[0]
