"""Schedules whose every row is fitted to the teacher by least squares, step after step.

Step n is given the weights with which the noise and the columns so far come nearest to the
teacher's state at its end; then the network is asked there. So one run of the fitted noises finds
all weights of a placement, without gradients, and the last row is the best for its columns.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ...models.schedule import TimeGrid
from ...solvers import Schedule
from ...solvers.table import Evaluation
from .canonical import schedule_of
from .placement import Placement, solve_ridge
from .problem import Block, Problem

SLICE = 1 << 20  # numbers of a column that are in float64 at once


def fit_schedule(
    problem: Problem, block: Block, states: Tensor, grid: TimeGrid, placed: Placement
) -> Schedule:
    """Returns the schedule of a placement with fitted rows; it costs one run of the block.

    Args:
        block: the noises that are fitted.
        states: (M + 1, n, *) of the teacher at the nodes of the grid, for these noises.
        grid: of M steps, of which the placement names nodes.
    """
    nodes = [grid.nodes[i] for i in placed.nodes]
    x, rows = states[0], []
    columns = [x]
    for step, after in enumerate((*placed.nodes[1:], None)):
        columns += problem.answers(block, x, nodes[step], placed.branches(placed.nodes[step]))
        weights = fit_weights(columns, block.ends if after is None else states[after])
        x = sum((w * c for w, c in zip(weights.tolist(), columns, strict=True)), 0.0 * x)
        rows.append(weights.tolist())
    evaluations = [
        Evaluation(node, placed.branches(i) or ())
        for node, i in zip(nodes, placed.nodes, strict=True)
    ]
    facts = {"label": f"fitted, {placed}"}
    whole = TimeGrid(grid.schedule, (*nodes, grid.nodes[-1]))
    return schedule_of(rows, whole, evaluations, provenance=facts)


def fit_weights(columns: Sequence[Tensor], target: Tensor) -> Tensor:
    """Returns (W,) float64: least-squares weights of columns (n, *) for a target (n, *)."""
    products = multiply_columns([*columns, target])
    return solve_ridge(products[:-1, :-1], products[:-1, -1])


def multiply_columns(columns: Sequence[Tensor]) -> Tensor:
    """Returns (W, W) float64: the inner products of columns (n, *)."""
    flat = torch.stack([each.flatten() for each in columns])
    products = torch.zeros(len(flat), len(flat), dtype=torch.float64)
    for part in torch.split(flat, SLICE, 1):
        products += part.double() @ part.double().T
    return products
