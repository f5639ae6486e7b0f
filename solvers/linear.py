"""Steps that are linear combinations: worked out in float64 before a run, one row of numbers each.

A solver whose steps are linear in the states, the predictions and the noise is a table: with nodes
n = 0..N and the state x_n at which x0_n was predicted,

    x_{n+1} = a x_n + b x0_n + sum_j c_j kept_j + d z,

where kept_j are predictions (or states) of earlier nodes and z is standard normal noise. Nothing is
kept longer than a later step needs it.
"""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from ..models.prediction import combine
from ..models.schedule import Node
from ..models.transfer import Constant
from .base import Query, Revision

# What a state is written in: ("x", n), the state at node n; ("x0", n) and ("eps", n), the two
# predictions there; ("z", n), fresh noise of step n.
Term = tuple[str, int]
Combination = dict[Term, float]


@dataclass(frozen=True, slots=True)
class Row:
    """One step, ready to run: x_s = a x + b x0 + sum_j c_j kept_j + d z.

    query:    where x0 is asked for; None if it is not.
    given:    what x0 is taken to be where it is not asked for; None is zero.
    x, x0, z: a, b and d.
    kept:     c_j for each kept tensor, in the order they are kept.
    keep:     which of them to keep on.
    push:     (weight of x, weight of x0) of each tensor of this node that later steps use.
    """

    query: Node | None
    x: float
    x0: float
    z: float
    kept: tuple[float, ...]
    keep: tuple[int, ...]
    push: tuple[tuple[float, float], ...]
    given: Tensor | None = None


class Memory(NamedTuple):
    """The number of the next step and what it needs of earlier nodes, newest first."""

    n: int = 0
    kept: tuple[Tensor, ...] = ()


class Origin(NamedTuple):
    """A kept tensor as weights of the state and the prediction of step n."""

    n: int
    x: float
    x0: float


class LinearSteps:
    """Runs rows, whatever solver they come from. Holds one `Row` of numbers per step.

    starts: the node whose state each step begins at, where that is not its own.
    """

    def __init__(self, rows: Sequence[Row], starts: Sequence[int] = ()) -> None:
        self.rows = tuple(rows)
        self.starts = tuple(starts) or tuple(range(len(self.rows)))
        given = next((row.given for row in self.rows if row.given is not None), None)
        self._constant = Constant(torch.zeros(()) if given is None else given)

    def init(self) -> Memory:
        return Memory()

    def step(
        self, x: Tensor, state: Memory, t: Node, s: Node
    ) -> Generator[Query, Tensor, tuple[Tensor, Memory]]:
        """The row numbered `state.n`; the nodes are those it was made for."""
        row, kept = self.rows[state.n], state.kept
        x_s = x * row.x
        if row.given is not None:
            x0 = self._constant.on(x)
            x_s = x_s + row.x0 * x0
        elif row.query is None:
            x0 = x.new_zeros(()).expand_as(x)
        else:
            x0 = yield x, row.query
            x_s.add_(x0, alpha=row.x0)
        for weight, tensor in zip(row.kept, kept, strict=True):
            x_s.add_(tensor, alpha=weight)
        if row.z:
            x_s.add_((yield x, None), alpha=row.z)
        pushed = [combine(weights, x, x0) for weights in row.push]
        return x_s, Memory(state.n + 1, (*pushed, *[kept[i] for i in row.keep]))

    @cached_property
    def origins(self) -> tuple[tuple[Origin, ...], ...]:
        """Before each step, and after the last, where every kept tensor comes from."""
        found: list[tuple[Origin, ...]] = [()]
        for n, row in enumerate(self.rows):
            own = [Origin(n, *weights) for weights in row.push]
            found.append((*own, *[found[n][i] for i in row.keep]))
        return tuple(found)

    @property
    def reach(self) -> int:
        """As `Rewritable` has it."""
        ages = [n - each.n for n, held in enumerate(self.origins) for each in held if each.x0]
        return max(ages, default=0)

    def rewritten(self, state: Memory, changes: Sequence[Revision]) -> Memory:
        """As `Rewritable` has it: every kept tensor is linear in its own node's prediction.

        Where the next step does not begin at the last state but at an older one, as in tables and
        singlestep solvers, that one is moved to where the new predictions lead to the last state.
        """
        kept, origins = list(state.kept), self.origins[state.n]
        for i, origin in enumerate(origins):
            age = state.n - 1 - origin.n
            if origin.x0 and age < len(changes):
                kept[i] = _rewritten(kept[i], origin, changes[age])
        if (start := self.starts[state.n]) < state.n:
            moved = self._moved(state.n, start, changes)
            for i, origin in enumerate(origins):
                if origin.n == start and origin.x:
                    kept[i] = kept[i] + moved * origin.x
        return state._replace(kept=tuple(kept))

    def _moved(self, n: int, start: int, changes: Sequence[Revision]) -> Tensor | float:
        """By how much the state of node `start` moves, so that step n - 1 leads where it did."""
        row = self.rows[n - 1]
        parts = list(zip(self.origins[n - 1], row.kept, strict=True))
        parts += [(Origin(n - 1, 1.0, 0.0), row.x), (Origin(n - 1, 0.0, 1.0), row.x0)]
        own = sum(weight * part.x for part, weight in parts if part.n == start)
        moved: Tensor | float = 0.0
        for part, weight in parts:
            age = n - 1 - part.n
            if own and weight and part.x0 and age < len(changes):
                change = changes[age]
                moved = (change.old - change.new) * (weight * part.x0 / own) + moved
        return moved


def _rewritten(tensor: Tensor, origin: Origin, change: Revision) -> Tensor:
    if (origin.x, origin.x0) == (0.0, 1.0):
        return change.new
    return tensor.add(change.new - change.old, alpha=origin.x0)


def rows_of(
    nodes: Sequence[Node], combos: Sequence[Combination], asked: Sequence[Node | None]
) -> list[Row]:
    """Rows from each step's combination and the node at which it asks for x0."""
    combos = _expanded(nodes, combos)
    layouts = [_layout(combos, n) for n in range(len(combos) + 1)]
    return [
        _row(nodes[n], asked[n], combo, layouts[n], layouts[n + 1], n)
        for n, combo in enumerate(combos)
    ]


def plus(a: Mapping[Term, float], b: Mapping[Term, float], weight: float = 1.0) -> Combination:
    """a + weight b."""
    out = dict(a)
    for term, value in b.items():
        out[term] = out.get(term, 0.0) + weight * value
    return out


def _expanded(nodes: Sequence[Node], combos: Sequence[Combination]) -> list[Combination]:
    """Writes eps in terms of x and x0 where that is cheaper: in the step of its own node, where
    both are at hand; and in tables whose every eps serves one later step, as it takes two
    operations to make and its parts take none to keep.
    """
    late = [term for n, c in enumerate(combos) for term in c if term[0] == "eps" and term[1] < n]
    once = len(set(late)) == len(late)
    out = []
    for n, combo in enumerate(combos):
        for term, weight in list(combo.items()):
            if term[0] == "eps" and weight and (term[1] == n or once):
                a, b = _own(nodes[term[1]], "eps")
                written = {("x", term[1]): a, ("x0", term[1]): b}
                combo = plus({**combo, term: 0.0}, written, weight)
        out.append({term: weight for term, weight in combo.items() if weight != 0.0})
    return out


def _layout(combos: Sequence[Combination], n: int) -> list[Term]:
    """What steps from n on use of the nodes before n, newest first."""
    used = {term for combo in combos[n:] for term in combo if term[0] != "z" and term[1] < n}
    return sorted(used, key=lambda term: (-term[1], term[0]))


def _row(
    node: Node, asked: Node | None, combo: Combination, held: list[Term], left: list[Term], n: int
) -> Row:
    return Row(
        query=asked,
        x=combo.get(("x", n), 0.0),
        x0=combo.get(("x0", n), 0.0),
        z=combo.get(("z", n), 0.0),
        kept=tuple(combo.get(term, 0.0) for term in held),
        keep=tuple(held.index(term) for term in left if term[1] < n),
        push=tuple(_own(node, kind) for kind, j in left if j == n),
    )


def _own(node: Node, kind: str) -> tuple[float, float]:
    """A tensor of a node as weights of its state and its x0: eps = (x - alpha x0) / sigma."""
    if kind == "eps":
        return 1.0 / node.sigma, -node.alpha / node.sigma
    return (1.0, 0.0) if kind == "x" else (0.0, 1.0)
