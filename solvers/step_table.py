"""Step specifications compiled to a `Table`, and a table's canonical form.

A guided schedule has columns of its own for the conditional and the unconditional prediction,

    z_n = A_n z_0 + sum_{j<n} B_{n,j} c_j + sum_{j<n} U_{n,j} u_j,

where u_j is evaluated at some of the steps only, at one more network row each. Classifier-free
guidance at every step, at some, with the difference held or extrapolated, and weights that no such
rule gives are all points of this form. The guidance is then part of the schedule.

Correctors leave no trace in that form: a corrected state is the uncorrected one plus a combination
of predictions, and its weights are merged into the next step.
"""

from collections.abc import Sequence
from itertools import chain

from ..models.denoiser import Branch
from ..models.schedule import Node, TimeGrid
from .step_schedule import Compiled, StepSchedule, StepSpec, evaluation_time
from .table import BOTH, Combination, Evaluation, Table, plus
from .taylor import taylor


def compile_steps(schedule: StepSchedule) -> Table:
    """Returns what a schedule does, as a table over its grid: its canonical one if it has one."""
    grid, table = schedule.grid(), schedule.compiled
    steps = _canonical(table) if table else _combinations(schedule.steps, grid.nodes)
    evaluations = [_evaluation(schedule, grid, n) for n in range(len(steps))]
    return Table(grid.nodes, steps, evaluations, schedule.given)


def _evaluation(schedule: StepSchedule, grid: TimeGrid, n: int) -> Evaluation | None:
    if n == 0 and schedule.afs:
        return None
    node, table = grid.schedule.at(evaluation_time(schedule, n)), schedule.compiled
    return Evaluation(node, branches_at(table, n) if table and schedule.guided else ())


def branches_at(table: Compiled, n: int) -> tuple[Branch, ...]:
    """Returns the branches that step n of a guided table evaluates."""
    return BOTH if n in table.guided else (Branch.COND,)


def _canonical(table: Compiled) -> list[Combination]:
    """The rows of a canonical table; they use the first state and no other."""
    columns = table.U or [()] * table.steps
    return [
        {("x", 0): a, **_columns("u0", more), **_columns("x0", row)}
        for a, row, more in zip(table.A, table.B, columns, strict=True)
    ]


def _columns(kind: str, weights: Sequence[float]) -> Combination:
    return {(kind, j): weight for j, weight in enumerate(weights)}


def weights_of(table: Compiled, n: int) -> list[float]:
    """Returns row n of a canonical table: z_0, then of each step u0 where it is asked, and x0."""
    row = [table.A[n]]
    for j in range(n + 1):
        row += [table.U[n][j]] if table.U and j in table.guided else []
        row.append(table.B[n][j])
    return row


def _combinations(specs: Sequence[StepSpec], nodes: Sequence[Node]) -> list[Combination]:
    """x_{n+1} for every step n, in terms of x_n, x0_n and earlier predictions."""
    combos: list[Combination] = []
    shift: Combination = {}  # corrected minus uncorrected state at node n
    for n, spec in enumerate(specs):
        predicted = taylor(nodes, n, n + 1, spec, history=range(n - 1, -1, -1))
        weight = predicted.pop(("x", n)) + spec.dA
        combo = plus(predicted, plus({("x", n): 1.0}, shift), weight)
        combos.append(plus(combo, _free(spec, n)))
        shift = _correction(nodes, n, spec, predicted) if spec.corr.on else {}
    return combos


def _correction(
    nodes: Sequence[Node], n: int, spec: StepSpec, predicted: Combination
) -> Combination:
    """Step n redone at one order more with the evaluation at its end, minus step n itself."""
    relax = spec.corr.relax if spec.order == 1 else "none"
    higher = spec.model_copy(
        update={"order": spec.order + 1, "est": (), "kmul": None, "relax": relax}
    )
    corrected = taylor(nodes, n, n + 1, higher, history=chain([n + 1], range(n - 1, -1, -1)))
    corrected.pop(("x", n))
    return plus(corrected, predicted, -1.0)


def _free(spec: StepSpec, n: int) -> Combination:
    """The additive coefficients of the predictions, newest first."""
    return {("x0", n - back): weight for back, weight in enumerate(spec.dB or ())}
