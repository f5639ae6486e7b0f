"""The answers of a solver to fixed predictions, which tell solvers apart without a network."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ...models.errors import SettingError
from ...models.schedule import TimeGrid
from ...solvers import Solver, drive, solver
from ...solvers.table_steps import brings_guidance
from .base import Setup


def compute_signature(solver: Solver[Any], grid: TimeGrid) -> tuple[float, ...]:
    """Returns four numbers that tell solvers apart: the sum of the states that one asks about.

    It is given fixed answers. The last state alone would not do: at sigma = 0 it is one of them.
    """
    states: list[Tensor] = []

    def answer(x: Tensor, node: Any) -> Tensor:
        states.append(x)
        return torch.sin(len(states) * (1.0 + torch.arange(4.0, dtype=x.dtype))).reshape(x.shape)

    x, state = torch.linspace(-1.0, 1.0, 4, dtype=torch.float64).reshape(1, 1, 2, 2), solver.init()
    for t, s in pairwise(grid.nodes):
        x, state = drive(solver.step(x, state, t, s), answer)
    return tuple(torch.stack([*states, x]).sum(0).flatten().tolist())


def are_near(mine: Sequence[float], theirs: Sequence[float]) -> bool:
    """Returns whether two signatures are of one solver."""
    return all(
        math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-9) for a, b in zip(mine, theirs, strict=True)
    )


def check_ddim(name: str, reason: str, setup: Setup) -> None:
    """Raises SettingError if the steps of a run are others than those of ddim.

    reason: why they have to be, as the error says it.
    """
    grid, fixed = setup.whole, setup.one_call and not setup.reach
    if brings_guidance(setup.solver):
        return  # such a solver takes no guidance at all, as the loop says
    ddim = solver("ddim").on(grid)
    if not fixed or not are_near(*(compute_signature(each, grid) for each in (setup.solver, ddim))):
        raise SettingError(f"{name} {reason}; take --solver ddim or euler")


def check_further(name: str, setup: Setup) -> None:
    """Raises SettingError if a policy cannot ask the network again, at another state, in a step."""
    check_ddim(name, "asks again within a step, which only steps of order 1 take as meant", setup)
    if setup.cached:
        raise SettingError(
            f"a cache on the network would remember what {name} asks at other states among the"
            f" answers at that of the run; drop the cache, or {name}"
        )
