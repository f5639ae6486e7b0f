"""DPM-Solver and DPM-Solver++ singlestep of orders 2 and 3, on the nodes of the grid itself.

The N steps of a grid are grouped in blocks of up to p. Every step costs one call and goes from the
first node s of its block, not from the last node: the k-th one is of order k. With m0 the
prediction at s, h = lam_t - lam_s to the step's end t, m1 and m2 those at inner nodes
lam_s + r1 h and lam_s + r2 h, and E = e^{-h} - 1, in data prediction

    order 1:  x_t = (sigma_t / sigma_s) x_s - alpha_t E m0
    order 2:  ... - alpha_t E (m1 - m0) / (2 r1)                     (dpmsolver)
              ... + alpha_t (E / h + 1) (m1 - m0) / r1               (taylor)
    order 3:  ... + alpha_t (E / h + 1) (m2 - m0) / r2               (dpmsolver)
              ... + alpha_t (E / h + 1) D1 - alpha_t ((E / h + 1) / h - 1/2) D2   (taylor)

where D1, D2 are the derivatives at s of the parabola through m0, m1, m2. The second step of a block
of three is always the taylor one. Noise prediction exchanges alpha and sigma, and h and -h.
"""

from collections.abc import Iterator, Sequence
from typing import ClassVar, Literal

from pydantic.dataclasses import dataclass

from ..models.schedule import Node, TimeGrid
from .base import SolverInfo, register
from .exponential import Relax, StepSpec, combine_step
from .linear import LinearSolver
from .table import Combination, add_terms


@dataclass(frozen=True)
class Singlestep(LinearSolver):
    """Settings of all of them.

    kind: "dpmsolver" (the papers') or "taylor" (diffusers calls it "heun").
    """

    p: ClassVar[int]
    pred: ClassVar[Literal["data", "noise"]]
    kind: Literal["dpmsolver", "taylor"] = "dpmsolver"

    def combinations(self, grid: TimeGrid) -> list[Combination]:
        return [
            self._combine(grid.nodes, range(start, end), n)
            for start, end in _list_blocks(grid, self.p)
            for n in range(start, end)
        ]

    def _combine(self, nodes: Sequence[Node], block: range, n: int) -> Combination:
        """Returns the step from the first node of its block to node n + 1."""
        published = self.kind == "dpmsolver"
        inner = range(n, block.start, -1)[: 1 if published else None]
        midpoint = published and len(block) == 2 and n > block.start
        relax: Relax = "bh2" if midpoint else "none"
        spec = StepSpec(pred=self.pred, order=len(inner) + 1, relax=relax)
        combo = combine_step(nodes, block.start, n + 1, spec, inner)
        return _write_first_eps_out(combo, nodes[block.start], block.start)


def _write_first_eps_out(combo: Combination, node: Node, start: int) -> Combination:
    """Writes eps of the block's first node in its state, which is at hand: less is rounded away."""
    weight = combo.pop(("eps", start), 0.0) / node.sigma
    return add_terms(combo, {("x", start): 1.0, ("x0", start): -node.alpha}, weight)


def _list_blocks(grid: TimeGrid, p: int) -> Iterator[tuple[int, int]]:
    """Yields (first node, last node) of each block.

    A step from alpha = 0 or to sigma = 0 is a block of its own: it has no lam at one end.
    """
    head = int(grid.nodes[0].alpha == 0.0)
    tail = int(grid.nodes[-1].sigma == 0.0 and grid.steps > head)
    start = 0
    for size in [1] * head + _split_steps(grid.steps - head - tail, p) + [1] * tail:
        yield start, start + size
        start += size


def _split_steps(n: int, p: int) -> list[int]:
    """Returns the papers' block sizes for n evaluations: of order p, and lower at the end."""
    if p == 3 and n >= 3 and n % 3 == 0:
        return [3] * (n // 3 - 1) + [2, 1]
    return [p] * (n // p) + ([n % p] if n % p else [])


@register
@dataclass(frozen=True)
class DPMpp2S(Singlestep):
    """Order 2 in data prediction."""

    info: ClassVar[SolverInfo] = SolverInfo(
        name="dpmpp-2s", order=2, source="arXiv:2211.01095 alg. 1"
    )
    p: ClassVar[int] = 2
    pred: ClassVar[Literal["data", "noise"]] = "data"


@register
@dataclass(frozen=True)
class DPMpp3S(Singlestep):
    """Order 3 in data prediction."""

    info: ClassVar[SolverInfo] = SolverInfo(
        name="dpmpp-3s", order=3, source="arXiv:2206.00927 alg. 2, with x0 for eps"
    )
    p: ClassVar[int] = 3
    pred: ClassVar[Literal["data", "noise"]] = "data"


@register
@dataclass(frozen=True)
class DPM2S(Singlestep):
    """Order 2 in noise prediction."""

    info: ClassVar[SolverInfo] = SolverInfo(
        name="dpm-2s", order=2, source="arXiv:2206.00927 alg. 1"
    )
    p: ClassVar[int] = 2
    pred: ClassVar[Literal["data", "noise"]] = "noise"


@register
@dataclass(frozen=True)
class DPM3S(Singlestep):
    """Order 3 in noise prediction."""

    info: ClassVar[SolverInfo] = SolverInfo(
        name="dpm-3s", order=3, source="arXiv:2206.00927 alg. 2"
    )
    p: ClassVar[int] = 3
    pred: ClassVar[Literal["data", "noise"]] = "noise"
