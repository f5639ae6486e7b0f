"""Guided schedules as starts of a search: where the unconditional branch is evaluated, and weights.

A solver is written for one prediction per step; here that is a combination of the columns c_j and
u_j. Where both are evaluated it is classifier-free guidance, u + s (c - u); where only c is, the
difference c - u of the last guided step is held.
"""

from collections.abc import Iterable, Sequence
from itertools import accumulate

import torch
from torch import Tensor

from ...models.errors import SettingError
from ...solvers import Schedule, StepSchedule
from ...solvers.table import BOTH
from .canonical import make_canonical, rows_of, schedule_of


def guide_schedule(base: StepSchedule, scale: float, guided: Iterable[int]) -> Schedule:
    """Returns the steps of a schedule with classifier-free guidance at some of them.

    Args:
        base: an unguided schedule.
        scale: of the guidance, 1 is off.
        guided: numbers of the steps that evaluate both branches; in the others the difference is
            held, and before the first of them there is none.

    Raises:
        SettingError: for steps that the schedule does not have, or that ask nothing.
    """
    chosen, table = sorted(set(guided)), make_canonical(base)
    evaluations = [
        each and each._replace(branches=BOTH if n in chosen else BOTH[1:])
        for n, each in enumerate(table.evaluations)
    ]
    if any(not 0 <= n < len(evaluations) or evaluations[n] is None for n in chosen):
        raise SettingError(f"steps {chosen} cannot be guided in a run of {len(evaluations)} steps")
    predictions = hold_difference(len(evaluations), scale, chosen)
    rows = []
    for first, *weights in rows_of(table):
        row = torch.tensor(weights, dtype=torch.float64) @ predictions[: len(weights)]
        row[0] += first
        rows.append(row.tolist())
    return schedule_of(rows, base.grid(), evaluations, table.given)


def hold_difference(steps: int, scale: float, guided: Sequence[int]) -> Tensor:
    """Returns (N, W): the guided prediction of each step in the columns of `canonical`."""
    places = list(accumulate(2 if n in guided else 1 for n in range(steps)))  # of c_n; u_n before
    rows = torch.zeros(steps, places[-1] + 1, dtype=torch.float64)
    last: int | None = None
    for n in range(steps):
        rows[n, places[n]] = 1.0
        last = places[n] if n in guided else last
        if last is not None:
            rows[n, last] += scale - 1.0
            rows[n, last - 1] -= scale - 1.0
    return rows
