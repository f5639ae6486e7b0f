"""Guided schedules as points of a search: where the unconditional branch is evaluated, and weights.

The theory of a solver is written for one prediction per step; here that is a combination of the
columns c_j and u_j. Where both are evaluated it is classifier-free guidance, u + s (c - u); where
only c is, the difference c - u of the last guided step is held. A descent then adds free weights of
every column.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from ...models.denoiser import Branch
from ...models.errors import SettingError
from ...solvers import StepSchedule
from ...solvers.step_schedule import Compiled, branches_at, weights_of
from .parameters import Parameters
from .problem import Problem

NOISES = 48  # from which inner products of columns are taken
NEAR = 1e-5  # share of its own size that a column is kept apart from the others by


def guided_schedule(base: StepSchedule, scale: float, guided: Iterable[int]) -> StepSchedule:
    """The steps of a schedule with classifier-free guidance at some of them.

    Args:
        base: an unguided schedule.
        scale: of the guidance, 1 is off.
        guided: numbers of the steps that evaluate both branches; in the others the difference is
            held, and before the first of them there is none.
    """
    chosen = tuple(sorted(set(guided)))
    if any(not 0 <= j < len(base.steps) for j in chosen) or (base.afs and 0 in chosen):
        raise SettingError(f"steps {chosen} cannot be guided in a run of {len(base.steps)} steps")
    return GuidedParameters(base, held(len(base.steps), scale, chosen), chosen).schedule()


def held(steps: int, scale: float, guided: Sequence[int]) -> Tensor:
    """(N, W): the guided prediction of each step in the columns, the difference held between."""
    places, width = _places(steps, guided)
    rows = torch.zeros(steps, width, dtype=torch.float64)
    last: int | None = None
    for n in range(steps):
        rows[n, places[n]] = 1.0
        last = n if n in guided else last
        if last is not None:
            rows[n, places[last]] += scale - 1.0
            rows[n, places[last] - 1] -= scale - 1.0
    return rows


def _places(steps: int, guided: Sequence[int]) -> tuple[list[int], int]:
    """The column of each c_n, whose u_n is just before it, and the number of columns."""
    places, column = [], 0
    for n in range(steps):
        column += 2 if n in guided else 1
        places.append(column)
    return places, column + 1


def table_of(
    rows: Sequence[Sequence[float]], tau: Sequence[float], guided: Sequence[int] | None
) -> Compiled:
    """The table whose states are these rows: weights of the noise, then of each step's columns.

    Without guided steps, None, the guidance stays outside. A row may be longer than the columns
    there are when its step is made; the rest is not read.
    """
    both = guided or ()
    places, _ = _places(len(rows), both)
    each = range(1, len(rows) + 1)
    branched = tuple(
        tuple(rows[n - 1][c - 1] if j in both else 0.0 for j, c in enumerate(places[:n]))
        for n in each
    )
    return Compiled(
        A=tuple(row[0] for row in rows),
        B=tuple(tuple(rows[n - 1][c] for c in places[:n]) for n in each),
        U=None if guided is None else branched,
        tau=tuple(tau),
        guided=tuple(both),
    )


class GuidedParameters(Parameters):
    """The parameters of a guided schedule.

    predictions: (N, W), what the theory takes for the prediction of each step.
    guided:      the steps that evaluate both branches.
    factors:     (N, W, W), L of each step, where L L^T are the inner products of the columns. The
                 columns look much alike; L^T times their weights are weights of columns that are
                 orthogonal and of one size, so that a rate means the same for all of them.

    `free` are those weights; they reach the first state too, so `scale` stays.
    """

    def __init__(
        self,
        base: StepSchedule,
        predictions: Tensor,
        guided: tuple[int, ...],
        factors: Tensor | None = None,
    ) -> None:
        self.guided = guided
        width = predictions.shape[1]
        self.factors = torch.eye(width).double() if factors is None else factors
        super().__init__(base, predictions)
        self.mask[:, 0] = 1.0
        with torch.no_grad():
            self.free.copy_((self.factors.mT @ self.free[..., None])[..., 0])

    def weights(self) -> list[Tensor]:
        return [self.free]

    def added(self) -> Tensor:
        sides = self.free[..., None]
        found: Tensor = torch.linalg.solve_triangular(self.factors.mT, sides, upper=True)
        return found[..., 0] * self.mask

    def branches(self, n: int) -> tuple[Branch, ...] | None:
        return branches_at(self._frame(), n)

    def schedule(self, **provenance: object) -> StepSchedule:
        """A guided table, with the times and theory it stands on."""
        plain = super().schedule()
        with torch.no_grad():
            rows = self.table().tolist()
            tau = tuple(self.coordinate.time(float(u)) for u in self.asked())
        body = {
            "t": plain.t,
            "compiled": table_of(rows, tau, self.guided),
            "provenance": provenance,
        }
        return StepSchedule.model_validate({**self.base.model_dump(), **body})

    def _rows(self) -> Tensor:
        table = self.base.compiled
        if table is None or table.U is None:
            plain = super()._rows()
            return torch.cat([plain[:, :1], torch.zeros_like(self.predictions[:, 1:])], 1) + (
                plain[:, 1:] @ self.predictions
            )
        width = self.predictions.shape[1]
        rows = [weights_of(table, n) for n in range(self.steps)]
        padded = [[*row, *[0.0] * (width - len(row))] for row in rows]
        return torch.tensor(padded, dtype=torch.float64)

    def _frame(self) -> Compiled:
        n = self.steps
        zeros = tuple((0.0,) * k for k in range(1, n + 1))
        return Compiled(A=(0.0,) * n, B=zeros, U=zeros, tau=(0.0,) * n, guided=self.guided)


def parameters_of(start: StepSchedule, problem: Problem) -> Parameters:
    """The parameters of a schedule, guided or not."""
    table = start.compiled
    if table is None or table.U is None:
        return Parameters(start)
    rows = held(table.steps, problem.cfg_scale, table.guided)
    return GuidedParameters(start, rows, table.guided, factors(start, table, problem))


def factors(schedule: StepSchedule, table: Compiled, problem: Problem) -> Tensor:
    """(N, W, W): `GuidedParameters.factors` by a run of some training noises."""
    block = problem.block("train")
    block = block.first(min(NOISES, len(block)))
    process = schedule.process.schedule()
    x = block.noise * process.noise_scale(schedule.grid().nodes[0])
    columns, width = [x], table.steps + len(table.guided) + 1
    found = torch.eye(width).double().repeat(table.steps, 1, 1)
    for n in range(table.steps):
        columns += problem.answers(block, x, process.at(table.tau[n]), branches_at(table, n))
        found[n, : len(columns), : len(columns)] = _factor(columns)
        weights = weights_of(table, n)
        x = sum((w * c for w, c in zip(weights, columns, strict=True)), 0.0 * x)
    return found


def _factor(columns: Sequence[Tensor]) -> Tensor:
    flat = torch.stack([each.flatten() for each in columns]).double()
    products = flat @ flat.T / flat.shape[1]
    lower: Tensor = torch.linalg.cholesky(products + NEAR * torch.diag(products.diagonal()))
    return lower
