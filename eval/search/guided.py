"""Guided schedules as points of a search: where the unconditional branch is evaluated, and weights.

The theory of a solver is written for one prediction per step; here that is a combination of the
columns c_j and u_j. Where both are evaluated it is classifier-free guidance, u + s (c - u); where
only c is, the difference c - u of the last guided step is held.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from ...models.errors import SettingError
from ...solvers import StepSchedule
from ...solvers.step_schedule import Compiled, compiled


def guided_schedule(base: StepSchedule, scale: float, guided: Iterable[int]) -> StepSchedule:
    """Returns the steps of a schedule with classifier-free guidance at some of them.

    Args:
        base: an unguided schedule.
        scale: of the guidance, 1 is off.
        guided: numbers of the steps that evaluate both branches; in the others the difference is
            held, and before the first of them there is none.
    """
    chosen = tuple(sorted(set(guided)))
    steps, table = len(base.steps), compiled(base)
    if any(not 0 <= j < steps for j in chosen) or (base.afs and 0 in chosen):
        raise SettingError(f"steps {chosen} cannot be guided in a run of {steps} steps")
    predictions = held(steps, scale, chosen)
    rows = []
    for a, weights in zip(table.A, table.B, strict=True):
        row = torch.tensor(weights, dtype=torch.float64) @ predictions[: len(weights)]
        row[0] += a
        rows.append(row.tolist())
    made = table_of(rows, table.tau, chosen)
    return base.model_copy(update={"compiled": made, "provenance": {}})


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
