"""A run of a fine solver under any prediction, with the states on its way."""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from ...models.schedule import Node, TimeGrid
from ...solvers import Executor, drive
from .space import encode_solver

SOLVER = "unipc-3"

Predict = Callable[[Tensor, Node], Tensor]


def drive_teacher(grid: TimeGrid, noise: Tensor, predict: Predict) -> Tensor:
    """Returns the states (M + 1, n, *) of the fine solver on a grid, from unit noise (n, *)."""

    def answer(x: Tensor, node: Node | None) -> Tensor:
        assert node is not None  # the method is deterministic
        return predict(x, node)

    x = noise * grid.schedule.noise_scale(grid.nodes[0])
    solver = Executor(encode_solver(SOLVER, grid))
    state, states = solver.init(), [x]
    for t, s in pairwise(grid.nodes):
        x, state = drive(solver.step(x, state, t, s), answer)
        states.append(x)
    return torch.stack(states)
