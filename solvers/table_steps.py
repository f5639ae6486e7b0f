"""Runs tables, and keeps no tensor longer than a later step needs it."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from torch import Tensor

from ..models.devices import Constant
from ..models.prediction import combine
from ..models.schedule import Node
from .base import Clock, Query, Revision, Span, Split
from .prediction_functions import PredictionFunction, read_function
from .table import (
    TERMS,
    Combination,
    Evaluation,
    Table,
    Term,
    check_weights,
    find_layouts,
    split_term,
    write_slopes_out,
)


@dataclass(frozen=True, slots=True)
class TableRow:
    """One step, ready to run: x_s = a x + b x0 + u u0 + sum_i e_i f_i(x0) + sum_j c_j past_j + d z.

    query: what is asked; None if nothing is.
    x, x0, u0, z: a, b, u and d.
    functions: f_i and e_i; 0 for those that later steps alone weigh.
    past:  c_j for each tensor in memory, in their order there.
    keep:  which of them stay in memory.
    push:  the tensors of this node that later steps use.
    """

    query: Node | Split | None
    x: float
    x0: float
    u0: float
    z: float
    past: tuple[float, ...]
    keep: tuple[int, ...]
    push: tuple["PastTerm", ...]
    functions: tuple[tuple[PredictionFunction, float], ...] = ()


class TableMemory(NamedTuple):
    """The number of the next step and what it needs of earlier nodes, newest first."""

    n: int = 0
    past: tuple[Tensor, ...] = ()


class PastTerm(NamedTuple):
    """A tensor in memory as weights of the state and the predictions of step n.

    function: of x0, in whose place its value stands.
    """

    n: int
    x: float
    x0: float
    u0: float = 0.0
    function: PredictionFunction | None = None

    def see(self, x0: Tensor) -> Tensor:
        """Returns a prediction as the tensor has it."""
        return x0 if self.function is None else self.function(x0)


class TableSteps:
    """Runs a table, whatever solver it comes from. Holds one `TableRow` of numbers per step.

    clock: of the noise of the table, if it follows one.
    """

    def __init__(self, table: Table, clock: Clock | None = None) -> None:
        self.guided = table.guided
        self.marks = None if clock is None else tuple(map(clock, table.nodes))
        self.rows = tuple(_make_rows(table))
        _check_rows(self.rows)
        self.starts = table.starts
        self._given = None if table.given is None else Constant(table.given)

    def init(self) -> TableMemory:
        return TableMemory()

    def step(
        self, x: Tensor, state: TableMemory, t: Node, s: Node
    ) -> Generator[Query, Tensor, tuple[Tensor, TableMemory]]:
        """Takes the row numbered `state.n`; the nodes are those it was made for."""
        row = self.rows[state.n]
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
        values = {function: function(x0) for function, _ in row.functions}
        for function, weight in row.functions:
            if weight:
                x_s.add_(values[function], alpha=weight)
        for weight, tensor in zip(row.past, state.past, strict=True):
            x_s.add_(tensor, alpha=weight)
        if row.z:
            x_s.add_((yield x, None), alpha=row.z)
        pushed = [
            values[each.function] if each.function else _combine(each, x, x0, u0)
            for each in row.push
        ]
        return x_s, TableMemory(state.n + 1, (*pushed, *[state.past[i] for i in row.keep]))

    def list_spans(self, n: int, t: Node, s: Node) -> Sequence[Span] | None:
        """As `Clocked` has it."""
        return None if self.marks is None else [(self.marks[n], self.marks[n + 1])]

    def _stand_in(self, x: Tensor) -> Tensor:
        """Returns what x0 is taken to be where the network is not asked."""
        return x.new_zeros(()).expand_as(x) if self._given is None else self._given.on(x)

    @cached_property
    def origins(self) -> tuple[tuple[PastTerm, ...], ...]:
        """The terms in memory before each step, and after the last."""
        memories: list[tuple[PastTerm, ...]] = [()]
        for n, row in enumerate(self.rows):
            memories.append((*row.push, *[memories[n][i] for i in row.keep]))
        return tuple(memories)

    @property
    def reach(self) -> int:
        """As `Revisable` has it."""
        ages = [n - each.n for n, memory in enumerate(self.origins) for each in memory if each.x0]
        return max(ages, default=0)

    def revise(self, state: TableMemory, changes: Sequence[Revision]) -> TableMemory:
        """As `Revisable` has it: every tensor in memory is linear in its own node's prediction.

        Where the next step does not begin at the last state but at an older one, as in tables and
        singlestep solvers, that one is moved to where the new predictions lead to the last state.
        """
        past, origins = list(state.past), self.origins[state.n]
        for i, origin in enumerate(origins):
            age = state.n - 1 - origin.n
            if origin.x0 and age < len(changes):
                past[i] = _replace_prediction(past[i], origin, changes[age])
        if (start := self.starts[state.n]) < state.n:
            shift = self._find_shift(state.n, start, changes)
            for i, origin in enumerate(origins):
                if origin.n == start and origin.x:
                    past[i] = past[i] + shift * origin.x
        return state._replace(past=tuple(past))

    def _find_shift(self, n: int, start: int, changes: Sequence[Revision]) -> Tensor | float:
        """Returns what to add to the state of node `start` for step n - 1 to lead where it did."""
        row = self.rows[n - 1]
        parts = list(zip(self.origins[n - 1], row.past, strict=True))
        parts += [(PastTerm(n - 1, 1.0, 0.0), row.x), (PastTerm(n - 1, 0.0, 1.0), row.x0)]
        parts += [(_note_function(f, n - 1), weight) for f, weight in row.functions]
        of_start = sum(weight * part.x for part, weight in parts if part.n == start)
        shift: Tensor | float = 0.0
        for part, weight in parts:
            age = n - 1 - part.n
            if of_start and weight and part.x0 and age < len(changes):
                change = changes[age]
                moved = part.see(change.old) - part.see(change.new)
                shift = moved * (weight * part.x0 / of_start) + shift
        return shift


def list_starts(solver: object) -> tuple[int, ...]:
    """Returns the node whose state each step of a solver carries on; none if it is its own."""
    return getattr(solver, "starts", ())


def count_operations(solver: object, n: int) -> int:
    """Returns the operations on a whole state that functions of predictions take in step n."""
    table = getattr(solver, "table_steps", solver)  # of one with a correction
    if not isinstance(table, TableSteps):
        return 0
    return sum(function.operations for function, _ in table.rows[n].functions)


def brings_guidance(solver: object) -> bool:
    """Returns whether a solver combines the branches of the network itself."""
    return isinstance(solver, TableSteps) and solver.guided


def _replace_prediction(tensor: Tensor, origin: PastTerm, change: Revision) -> Tensor:
    if (origin.x, origin.x0) == (0.0, 1.0):
        return origin.see(change.new)
    return tensor.add(change.new - change.old, alpha=origin.x0)


def _check_rows(rows: Sequence[TableRow]) -> None:
    """Raises ScheduleError for a weight that is beyond float32, in which states are held."""
    for n, row in enumerate(rows):
        further = [weight for origin in row.push for weight in origin[1:4]]
        further += [weight for _, weight in row.functions]
        check_weights(n, (row.x, row.x0, row.u0, row.z, *row.past, *further))


def _make_rows(table: Table) -> list[TableRow]:
    """Returns the rows of a table, in which every term stays as long as later steps use it."""
    combos = write_slopes_out(table.nodes, table.steps)
    layouts = find_layouts(combos)
    return [_make_row(table, n, combo, layouts[n : n + 2]) for n, combo in enumerate(combos)]


def _make_row(table: Table, n: int, combo: Combination, layouts: Sequence[list[Term]]) -> TableRow:
    before, after = layouts
    weighed = {kind for kind, j in (*combo, *after) if j == n}
    functions = sorted(weighed.difference(TERMS))
    places = {term: i for i, term in enumerate(before)}
    return TableRow(
        query=_make_query(table.evaluations[n]),
        x=combo.get(("x", n), 0.0),
        x0=combo.get(("x0", n), 0.0),
        u0=combo.get(("u0", n), 0.0),
        z=combo.get(("z", n), 0.0),
        past=tuple(combo.get(term, 0.0) for term in before),
        keep=tuple(places[term] for term in after if term[1] < n),
        push=tuple(_split(table.nodes[n], kind, n) for kind, j in after if j == n),
        functions=tuple((read_function(kind), combo.get((kind, n), 0.0)) for kind in functions),
    )


def _make_query(evaluation: Evaluation | None) -> Node | Split | None:
    if evaluation is None or not evaluation.branches:
        return evaluation and evaluation.node
    return Split(evaluation.node, evaluation.branches)


def _split(node: Node, kind: str, n: int) -> PastTerm:
    if kind not in TERMS:
        return _note_function(read_function(kind), n)
    return PastTerm(n, 0.0, 0.0, 1.0) if kind == "u0" else PastTerm(n, *split_term(node, kind))


def _note_function(function: PredictionFunction, n: int) -> PastTerm:
    return PastTerm(n, 0.0, 1.0, function=function)


def _combine(term: PastTerm, x: Tensor, x0: Tensor, u0: Tensor) -> Tensor:
    return u0 if term.u0 else combine((term.x, term.x0), x, x0)
