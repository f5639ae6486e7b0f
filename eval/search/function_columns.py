"""Functions of predictions as further columns of a table; see `solvers.prediction_functions`.

A table that weighs functions of its predictions begins as a linear one: all its rows stay, but the
last, which is fitted by least squares to the ends of some noises with the functions of every
prediction as columns beside the noise and the predictions. So it is no worse on those noises, and
Gauss-Newton goes on from there with all weights and times.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ...solvers import Schedule
from ...solvers.artefact import Artefact
from ...solvers.prediction_functions import read_function
from ...solvers.table import Table
from .canonical import columns_of, make_canonical, rows_of, schedule_of
from .fitting import fit_weights, multiply_columns
from .placement import solve_ridge
from .problem import Block, Problem


def add_functions(
    problem: Problem, schedule: Artefact, functions: Sequence[str], block: Block
) -> Schedule:
    """Returns a schedule with functions of each prediction added, and its last row fitted.

    It costs one run of the block.
    """
    table, grid = make_canonical(schedule), schedule.grid()
    added = _join(table, functions)
    rows = rows_of(table, added)
    columns = list_columns(problem, table, rows, added, block)
    rows[-1] = fit_weights(columns, block.ends).tolist()
    return schedule_of(rows, grid, table.evaluations, table.given, functions=added)


def rank_functions(
    problem: Problem, schedule: Artefact, candidates: Sequence[str], most: int, block: Block
) -> list[str]:
    """Returns the functions that a fitted last row gains most by, each beside those before it.

    It costs one run of the block.
    """
    table = make_canonical(schedule)
    added = _join(table, candidates)
    columns = list_columns(problem, table, rows_of(table, added), added, block)
    products = multiply_columns([*columns, block.ends])
    kinds = [kind for kind, _ in columns_of(table.evaluations, added)]

    def measure(functions: Sequence[str]) -> float:
        barred = set(candidates).difference(functions)
        chosen = [i for i, kind in enumerate(kinds) if kind not in barred]
        against = products[chosen, -1]
        weights = solve_ridge(products[chosen][:, chosen], against)
        return float(products[-1, -1] - against @ weights)

    ranked: list[str] = []
    for _ in range(min(most, len(candidates))):
        left = [each for each in candidates if each not in ranked]
        ranked.append(min(left, key=lambda each: measure([*ranked, each])))
    return ranked


def _join(table: Table, functions: Sequence[str]) -> list[tuple[str, ...]]:
    """Returns the functions of each step's prediction that a table weighs, with more of them."""
    return [
        () if asked is None else tuple(sorted({*functions, *before}))
        for asked, before in zip(table.evaluations, table.functions, strict=True)
    ]


def list_columns(
    problem: Problem,
    table: Table,
    rows: Sequence[Sequence[float]],
    functions: Sequence[Sequence[str]],
    block: Block,
) -> list[Tensor]:
    """Returns the columns (n, *) at the last step of a run of a block."""
    start = block.noise * problem.network.schedule.noise_scale(table.nodes[0])
    columns, x = [start], start
    for asked, row, further in zip(table.evaluations, rows, functions, strict=True):
        if asked is None:
            zero = torch.zeros_like(x)
            columns.append(zero if table.given is None else table.given.expand_as(x))
        else:
            columns += problem.answers(block, x, asked.node, asked.branches or None)
            x0 = columns[-1]
            columns += [read_function(each)(x0) for each in further]
        x = torch.einsum("c,c...->...", torch.tensor(row).to(x), torch.stack(columns))
    return columns
