"""Runs tables, and keeps no tensor longer than a later step needs it."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from torch import Tensor

from ..models.devices import Constant
from ..models.prediction import combine
from ..models.schedule import Node
from .base import Query, Revision, Split
from .table import (
    Combination,
    Evaluation,
    Table,
    Term,
    check_weights,
    find_layouts,
    own_weights,
    write_slopes_out,
)


@dataclass(frozen=True, slots=True)
class TableRow:
    """One step, ready to run: x_s = a x + b x0 + u u0 + sum_j c_j kept_j + d z.

    query:    what is asked; None if nothing is.
    x, x0, u0, z: a, b, u and d.
    kept:     c_j for each kept tensor, in the order they are kept.
    keep:     which of them to keep on.
    push:     the tensors of this node that later steps use.
    """

    query: Node | Split | None
    x: float
    x0: float
    u0: float
    z: float
    kept: tuple[float, ...]
    keep: tuple[int, ...]
    push: tuple["KeptTerm", ...]


class TableMemory(NamedTuple):
    """The number of the next step and what it needs of earlier nodes, newest first."""

    n: int = 0
    kept: tuple[Tensor, ...] = ()


class KeptTerm(NamedTuple):
    """A kept tensor as weights of the state and the predictions of step n."""

    n: int
    x: float
    x0: float
    u0: float = 0.0


class TableSteps:
    """Runs a table, whatever solver it comes from. Holds one `TableRow` of numbers per step."""

    def __init__(self, table: Table) -> None:
        self.guided = table.guided
        self.rows = tuple(_rows(table))
        _check_rows(self.rows)
        self.starts = table.starts
        self._given = None if table.given is None else Constant(table.given)

    def init(self) -> TableMemory:
        return TableMemory()

    def step(
        self, x: Tensor, state: TableMemory, t: Node, s: Node
    ) -> Generator[Query, Tensor, tuple[Tensor, TableMemory]]:
        """The row numbered `state.n`; the nodes are those it was made for."""
        row, kept = self.rows[state.n], state.kept
        x_s = x * row.x
        if row.query is None:
            x0 = u0 = self._stand_in(x)
            x_s = x_s + row.x0 * x0
        elif isinstance(row.query, Split):
            answers = yield x, row.query
            u0, x0 = answers[0], answers[-1]
            x_s.add_(x0, alpha=row.x0)
            if row.u0:
                x_s.add_(u0, alpha=row.u0)
        else:
            x0 = u0 = yield x, row.query
            x_s.add_(x0, alpha=row.x0)
        for weight, tensor in zip(row.kept, kept, strict=True):
            x_s.add_(tensor, alpha=weight)
        if row.z:
            x_s.add_((yield x, None), alpha=row.z)
        pushed = [u0 if each.u0 else combine((each.x, each.x0), x, x0) for each in row.push]
        return x_s, TableMemory(state.n + 1, (*pushed, *[kept[i] for i in row.keep]))

    def _stand_in(self, x: Tensor) -> Tensor:
        """What x0 is taken to be where the network is not asked."""
        return x.new_zeros(()).expand_as(x) if self._given is None else self._given.on(x)

    @cached_property
    def origins(self) -> tuple[tuple[KeptTerm, ...], ...]:
        """Before each step, and after the last, where every kept tensor comes from."""
        found: list[tuple[KeptTerm, ...]] = [()]
        for n, row in enumerate(self.rows):
            found.append((*row.push, *[found[n][i] for i in row.keep]))
        return tuple(found)

    @property
    def reach(self) -> int:
        """As `Rewritable` has it."""
        ages = [n - each.n for n, held in enumerate(self.origins) for each in held if each.x0]
        return max(ages, default=0)

    def rewritten(self, state: TableMemory, changes: Sequence[Revision]) -> TableMemory:
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
        parts += [(KeptTerm(n - 1, 1.0, 0.0), row.x), (KeptTerm(n - 1, 0.0, 1.0), row.x0)]
        own = sum(weight * part.x for part, weight in parts if part.n == start)
        moved: Tensor | float = 0.0
        for part, weight in parts:
            age = n - 1 - part.n
            if own and weight and part.x0 and age < len(changes):
                change = changes[age]
                moved = (change.old - change.new) * (weight * part.x0 / own) + moved
        return moved


def brings_guidance(solver: object) -> bool:
    """Returns whether a solver combines the branches of the network itself."""
    return isinstance(solver, TableSteps) and solver.guided


def _rewritten(tensor: Tensor, origin: KeptTerm, change: Revision) -> Tensor:
    if (origin.x, origin.x0) == (0.0, 1.0):
        return change.new
    return tensor.add(change.new - change.old, alpha=origin.x0)


def _check_rows(rows: Sequence[TableRow]) -> None:
    """Raises ScheduleError for a weight that is beyond float32, in which states are kept."""
    for n, row in enumerate(rows):
        pushed = [weight for origin in row.push for weight in origin[1:]]
        check_weights(n, (row.x, row.x0, row.u0, row.z, *row.kept, *pushed))


def _rows(table: Table) -> list[TableRow]:
    """Returns the rows of a table, eps written out and every term kept as long as it is used."""
    combos = write_slopes_out(table.nodes, table.steps)
    layouts = find_layouts(combos)
    return [_row(table, n, combo, layouts[n], layouts[n + 1]) for n, combo in enumerate(combos)]


def _row(table: Table, n: int, combo: Combination, held: list[Term], left: list[Term]) -> TableRow:
    places = {term: i for i, term in enumerate(held)}
    return TableRow(
        query=_query(table.evaluations[n]),
        x=combo.get(("x", n), 0.0),
        x0=combo.get(("x0", n), 0.0),
        u0=combo.get(("u0", n), 0.0),
        z=combo.get(("z", n), 0.0),
        kept=tuple(combo.get(term, 0.0) for term in held),
        keep=tuple(places[term] for term in left if term[1] < n),
        push=tuple(_origin(table.nodes[n], kind, n) for kind, j in left if j == n),
    )


def _query(evaluation: Evaluation | None) -> Node | Split | None:
    if evaluation is None or not evaluation.branches:
        return evaluation and evaluation.node
    return Split(evaluation.node, evaluation.branches)


def _origin(node: Node, kind: str, n: int) -> KeptTerm:
    return KeptTerm(n, 0.0, 0.0, 1.0) if kind == "u0" else KeptTerm(n, *own_weights(node, kind))
