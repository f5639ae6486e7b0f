"""Tables as rows of numbers, the form in which a search fits and moves them.

In the canonical form of a `Table` every state is a combination of columns: of the noise that a run
starts from, then of the predictions of each step, u0 where it asks both branches, x0, and functions
of x0 where the table weighs any. Row n weighs the columns that there are when step n is made.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from ...models.schedule import TimeGrid
from ...solvers import Schedule, StepSchedule
from ...solvers.artefact import Artefact
from ...solvers.table import BOTH, FIRST, Evaluation, Table, Term, rewrite


def make_canonical(schedule: Artefact) -> Table:
    """Returns the table that a schedule runs, with every state written in the columns."""
    table = schedule.table()
    return rewrite(table, [0] * len(table.steps))


def columns_of(
    evaluations: Iterable[Evaluation | None], functions: Sequence[Sequence[str]] = ()
) -> list[Term]:
    """Returns the term that each column stands for; functions of each step's x0 are columns too."""
    columns = [FIRST]
    for n, each in enumerate(evaluations):
        columns += [("u0", n)] if each is not None and each.branches == BOTH else []
        columns.append(("x0", n))
        columns += [(kind, n) for kind in functions[n]] if functions else []
    return columns


def rows_of(table: Table, functions: Sequence[Sequence[str]] | None = None) -> list[list[float]]:
    """Returns the rows of a table in its canonical form.

    functions: of each step's x0, that have columns; None are those that the table weighs.
    """
    columns = columns_of(table.evaluations, table.functions if functions is None else functions)
    return [
        [combo.get(term, 0.0) for term in columns if term[1] <= n]
        for n, combo in enumerate(table.steps)
    ]


def schedule_of(
    rows: Sequence[Sequence[float]],
    grid: TimeGrid,
    evaluations: Sequence[Evaluation | None],
    given: Tensor | None = None,
    provenance: Mapping[str, Any] | None = None,
    functions: Sequence[Sequence[str]] = (),
) -> Schedule:
    """Returns the schedule that has these rows.

    Args:
        rows: one per step, as `rows_of` gives them; zeros may follow.
        grid: the times of the states.
        evaluations: what each step asks.
        given: what x0 is where a step asks nothing; None is zero.
        provenance: where the schedule comes from.
        functions: of each step's x0, that have columns.
    """
    columns = columns_of(evaluations, functions)
    steps = [dict(zip(columns, row, strict=False)) for row in rows]
    return Schedule.of(Table(grid.nodes, steps, evaluations, given), grid, provenance or {})


def times_of(schedule: Artefact) -> list[float]:
    """Returns the time of each step's evaluation; that of its node where it asks nothing."""
    if isinstance(schedule, StepSchedule):
        return [schedule.time_of(n) for n in range(len(schedule.steps))]
    assert isinstance(schedule, Schedule)
    asked = zip(schedule.t, schedule.evaluations, strict=False)
    return [t if each is None else each.t for t, each in asked]
