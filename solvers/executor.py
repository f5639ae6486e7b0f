"""The one executor: any `Schedule` as a solver whose every step is one linear combination.

Correctors leave no trace in that form: a corrected state is the uncorrected one plus a combination
of predictions, and its weights are merged into the next step.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..models.denoiser import Network
from ..models.errors import ScheduleError
from ..models.probe import alike, sketch
from ..models.schedule import Node
from .linear import Combination, LinearSteps, plus, rows_of
from .schedule_data import ANSWER, Compiled, MeanImage, Schedule, StepSpec, evaluation_time
from .taylor import taylor


class Executor(LinearSteps):
    """Runs a schedule: its canonical table where it has one, else its steps."""

    def __init__(self, schedule: Schedule) -> None:
        if schedule.compiled and schedule.compiled.U is not None:
            raise ScheduleError("this schedule is guided; `executor` makes what runs it")
        self.schedule, self.mean = schedule, mean_of(schedule)
        grid = schedule.grid()
        steps = range(len(schedule.steps))
        times = [evaluation_time(schedule, n) for n in steps]
        asked = [None if n == 0 and schedule.afs else grid.schedule.at(times[n]) for n in steps]
        table = schedule.compiled
        combos = _tabled(table) if table else _combinations(schedule, grid.nodes)
        first, *rows = rows_of(grid.nodes, combos, asked)
        rows = [replace(first, given=self.mean), *rows]
        super().__init__(rows, [0] * len(rows) if table else ())

    def check_network(self, network: Network) -> None:
        """As the function below, for the schedule that is run."""
        check_network(self.schedule, network)


def check_network(schedule: Schedule, network: Network) -> None:
    """Raises ScheduleError if a schedule was searched for a network that answers otherwise.

    That is one evaluation of one row, outside the run and its counts; schedules that do not say
    what their network answered, such as those of named solvers, are for any.
    """
    _check_mean(mean_of(schedule), network)
    if (told := schedule.provenance.get(ANSWER)) is None:
        return
    own = sketch(network)
    if own is not None and not alike(own, told):
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


def _tabled(table: Compiled) -> list[Combination]:
    """The rows of a table; they use the first state and no other."""
    return [
        {("x", 0): a, **{("x0", j): b for j, b in enumerate(row)}}
        for a, row in zip(table.A, table.B, strict=True)
    ]


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
