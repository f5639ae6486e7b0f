"""Tables rewritten: every state in the first one, as a search moves it, or step by step.

A table weighs predictions, whatever the guidance makes of them: dynamic thresholding, which is part
of the guidance, changes what a prediction is and no weight, so tables run under it too.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..models.errors import ScheduleError
from .step_schedule import Compiled, StepSchedule
from .step_table import compile_steps
from .table import SLOPES, Combination, Table, own_weights, plus

FIRST = ("x", 0)


def rewrite(table: Table, starts: Sequence[int]) -> Table:
    """Returns the table whose step n carries on the state of node starts[n], and of no other.

    All zeros give the canonical form, in which every state is written in the first one and in the
    predictions; 0, 1, 2, ... go back to steps from each node to the next. The runs are the same up
    to rounding.

    Raises:
        ScheduleError: for a table that adds noise: a run keeps no noise of earlier steps.
    """
    states, steps = _expand(table), []
    for n, start in enumerate(starts):
        end, base = states[n + 1], states[start]
        carried = base.get(FIRST, 0.0)
        weight = end.get(FIRST, 0.0) / carried if carried else 0.0
        rest = plus(end, base, -weight)
        if carried:
            rest[FIRST] = 0.0
        steps.append(plus(rest, {("x", start): weight}))
    return replace(table, steps=steps)


def _expand(table: Table) -> list[Combination]:
    """Every state in the first one and the predictions x0 and u0."""
    states: list[Combination] = [{FIRST: 1.0}]
    for combo in table.steps:
        state: Combination = {}
        for term, weight in combo.items():
            if weight:
                state = plus(state, _in_first(table, term, states), weight)
        states.append(state)
    return states


def _in_first(table: Table, term: tuple[str, int], states: Sequence[Combination]) -> Combination:
    kind, n = term
    if kind == "z":
        raise ScheduleError("a solver that adds noise has no canonical table")
    if kind in SLOPES:
        a, b = own_weights(table.nodes[n], kind)
        return plus({("x0", n): b}, states[n], a)
    return states[n] if kind == "x" else {term: 1.0}


def compiled(schedule: StepSchedule) -> Compiled:
    """The canonical table that does what the schedule does; its own where it has one.

    What stands for the first prediction under `afs` has a column like any other.
    """
    if schedule.compiled:
        return schedule.compiled
    free = {"afs": None, "nfe": len(schedule.steps)}
    return tabulate(compile_steps(schedule.model_copy(update=free)))  # asks for every prediction


def tabulate(table: Table) -> Compiled:
    """Returns the weights of an unguided table that asks in every step, in its canonical form."""
    steps = rewrite(table, [0] * len(table.steps)).steps
    return Compiled(
        A=tuple(combo.get(FIRST, 0.0) for combo in steps),
        B=tuple(
            tuple(combo.get(("x0", j), 0.0) for j in range(n + 1)) for n, combo in enumerate(steps)
        ),
        tau=tuple(each.node.t for each in table.evaluations if each is not None),
    )


@dataclass(frozen=True)
class Violations:
    """How far a table is from one that is exact where the prediction is constant.

    With A_n the weight of x_0 in the state x_n and B_{n,j} those of the predictions,

    state:       max_n |A_n - sigma_n / sigma_0|.
    predictions: max_n |sum_j B_{n,j} - (alpha_n - alpha_0 sigma_n / sigma_0)|; those of the
                 unconditional branch count with the others.
    largest:     max |B_{n,j}|, which multiplies rounding errors of low precisions.
    """

    state: float
    predictions: float
    largest: float


def violations(table: Table) -> Violations:
    """The invariants of consistency of a table, in its canonical form."""
    first, state, predictions, largest = table.nodes[0], 0.0, 0.0, 0.0
    for node, combo in zip(
        table.nodes[1:], rewrite(table, [0] * len(table.steps)).steps, strict=True
    ):
        ratio = node.sigma / first.sigma
        state = max(state, abs(combo.pop(FIRST, 0.0) - ratio))
        wanted = node.alpha - first.alpha * ratio
        predictions = max(predictions, abs(sum(combo.values()) - wanted))
        largest = max(largest, *map(abs, combo.values()), 0.0)
    return Violations(state, predictions, largest)
