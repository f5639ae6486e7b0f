"""The one executor: any `Schedule` as a solver whose every step is one linear combination.

Correctors leave no trace in that form: a corrected state is the uncorrected one plus a combination
of predictions, and its weights are merged into the next step.
"""

from collections.abc import Sequence

from ..models.schedule import Node
from .linear import Combination, LinearSteps, plus, rows_of
from .schedule_data import Schedule, StepSpec, evaluation_time
from .taylor import taylor


class Executor(LinearSteps):
    """Runs a schedule."""

    def __init__(self, schedule: Schedule) -> None:
        grid = schedule.grid()
        steps = range(len(schedule.steps))
        times = [evaluation_time(schedule, n) for n in steps]
        asked = [None if n == 0 and schedule.afs else grid.schedule.at(times[n]) for n in steps]
        super().__init__(rows_of(grid.nodes, _combinations(schedule, grid.nodes), asked))


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
    corrected = taylor(nodes, n, n + 1, higher, history=(n + 1, *range(n - 1, -1, -1)))
    corrected.pop(("x", n))
    return plus(corrected, predicted, -1.0)


def _free(spec: StepSpec, n: int) -> Combination:
    """The additive coefficients of the predictions, newest first."""
    return {("x0", n - back): weight for back, weight in enumerate(spec.dB or ())}
