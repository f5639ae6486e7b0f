"""Any `Schedule` as a table.

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

import torch
from torch import Tensor

from ..models.denoiser import Branch, Network
from ..models.errors import ScheduleError
from ..models.probe import are_alike, sketch
from ..models.schedule import Node, TimeGrid
from .schedule_data import ANSWER, Compiled, MeanImage, Schedule, StepSpec, evaluation_time
from .table import Combination, Evaluation, Table, TableSteps, plus
from .taylor import taylor

BOTH = (Branch.UNCOND, Branch.COND)


class Executor(TableSteps):
    """Runs a schedule: its canonical table where it has one, else its steps."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        super().__init__(table_of(schedule))

    def check_network(self, network: Network) -> None:
        """As the function below, for the schedule that is run."""
        check_network(self.schedule, network)


def table_of(schedule: Schedule) -> Table:
    """Returns what a schedule does, as a table over its grid."""
    grid = schedule.grid()
    evaluations = [_evaluation(schedule, grid, n) for n in range(len(schedule.steps))]
    if (canonical := schedule.compiled) is None:
        return Table(
            grid.nodes,
            _combinations(schedule, grid.nodes),
            evaluations,
            given=mean_of(schedule),
        )
    starts = [0] * canonical.steps
    return Table(grid.nodes, _canonical(canonical), evaluations, starts, mean_of(schedule))


def _evaluation(schedule: Schedule, grid: TimeGrid, n: int) -> Evaluation | None:
    if n == 0 and schedule.afs:
        return None
    node, table = grid.schedule.at(evaluation_time(schedule, n)), schedule.compiled
    guided = table is not None and table.U is not None
    return Evaluation(node, branches_at(table, n) if table and guided else ())


def branches_at(table: Compiled, n: int) -> tuple[Branch, ...]:
    """Returns the branches that step n of a guided table evaluates."""
    return BOTH if n in table.guided else (Branch.COND,)


def check_network(schedule: Schedule, network: Network) -> None:
    """Raises ScheduleError if a schedule was searched for a network that answers otherwise.

    That is one evaluation of one row, outside the run and its counts; schedules that do not say
    what their network answered, such as those of named solvers, are for any.
    """
    _check_mean(mean_of(schedule), network)
    if (told := schedule.provenance.get(ANSWER)) is None:
        return
    own = sketch(network)
    if own is not None and not are_alike(own, told):
        name = schedule.provenance.get("model", "?")
        raise ScheduleError(
            f"this schedule was searched for another network ({name}): {network.name} answers a"
            " fixed noise otherwise; run `fewstep search` for it, or add --force (in Python"
            " schedule.for_any()) to use the schedule all the same"
        )


def _check_mean(mean: Tensor | None, network: Network) -> None:
    """What stands for the first prediction must be a sample of the network, or broadcast to it."""
    if mean is None:
        return
    own, given = network.shape, tuple(mean.shape)
    same = all(g in (1, n) for g, n in zip(reversed(given), reversed(own), strict=False))
    if len(given) > len(own) or not same:
        raise ScheduleError(
            f"the mean in this schedule has shape {given}, but samples of {network.name} have"
            f" {own}; use a schedule made for this network"
        )


def mean_of(schedule: Schedule) -> Tensor | None:
    """The tensor taken for the first prediction, float32 in the shape of a sample."""
    if not isinstance(schedule.afs, MeanImage):
        return None
    return torch.tensor(schedule.afs.values(), dtype=torch.float32).reshape(schedule.afs.shape)


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


def _combinations(schedule: Schedule, nodes: Sequence[Node]) -> list[Combination]:
    """x_{n+1} for every step n, in terms of x_n, x0_n and earlier predictions."""
    combos: list[Combination] = []
    shift: Combination = {}  # corrected minus uncorrected state at node n
    for n, spec in enumerate(schedule.steps):
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
