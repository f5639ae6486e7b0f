"""Tables refitted to the cache that they run with, row after row, in one run of some noises.

A table that was made for true predictions weighs forecasts as if they were true. Here step n, in a
run with the cache, is given the weights w with which its columns X, the state and the predictions
so far, come nearest to the state that it should reach,

    w = w_0 + (X^T X + rho diag(X^T X))^-1 X^T (target - X w_0),

where w_0 are the weights of the table; then the run goes on from there.
"""

from collections.abc import Generator
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor

from ...models.errors import SettingError
from ...models.schedule import Node, TimeGrid
from ...solvers import Schedule
from ...solvers.base import Query, Split
from ...solvers.table import BOTH, Combination, Table, Term, rewrite
from .fine_run import drive_teacher
from .problem import Block, Problem

RIDGES = (1e-4, 1e-2, 1.0)  # rho
REACH = 3  # steps whose predictions a row may weigh, beside those that it weighs already

Past = dict[Term, Tensor]  # predictions so far


def find_targets(problem: Problem, grid: TimeGrid, block: Block) -> Tensor:
    """Returns (N + 1, n, *): where the reference is at the nodes of a grid, for a block.

    It is a run with two steps for each, and at the end where the block says.
    """
    times = [time for a, b in pairwise(grid.nodes) for time in (a.t, 0.5 * (a.t + b.t))]
    fine = TimeGrid.of(grid.schedule, [*times, grid.nodes[-1].t])

    def predict(x: Tensor, node: Node) -> Tensor:
        return problem.answers(block, x, node, None)[0]

    states = drive_teacher(fine, block.noise, predict)[::2].clone()
    states[-1] = block.ends
    return states


def record_states(problem: Problem, schedule: Schedule, block: Block) -> Tensor:
    """Returns (N + 1, n, *): where a run of a schedule is at its nodes."""
    states = [block.noise * schedule.grid().schedule.noise_scale(schedule.grid().nodes[0])]
    problem.run(schedule, block, note=states.append)
    return torch.stack(states)


def refit(
    problem: Problem, schedule: Schedule, block: Block, targets: Tensor, ridge: float
) -> Schedule:
    """Returns a schedule of the same times and cache, with rows fitted in one run of a block.

    Args:
        targets: (N + 1, n, *) of the block, where the run should be at its nodes.
        ridge: rho; a large one leaves the rows as they are.

    Raises:
        SettingError: for a schedule that does not ask the network at every step.
    """
    table = schedule.table()
    if None in table.evaluations:
        raise SettingError("only tables that ask the network in every step are refitted")
    table = rewrite(table, range(len(table.steps)))
    fitter = RowFitter(table, targets, ridge)
    cache = schedule.cache_policy
    problem.drive(fitter, schedule.grid(), block, cache)
    fitted = replace(table, steps=fitter.steps)
    made = Schedule.of(fitted, schedule.grid(), schedule.provenance)
    return made.with_cache(schedule.cache)


class RowFitter:
    """A solver that finds the weights of each step while it makes it; `steps` are those so far."""

    def __init__(self, table: Table, targets: Tensor, ridge: float) -> None:
        self.table, self.targets, self.ridge = table, targets, ridge
        self.steps: list[Combination] = []

    def init(self) -> Past:
        self.steps = []
        return {}

    def step(
        self, x: Tensor, past: Past, t: Node, s: Node
    ) -> Generator[Query, Tensor, tuple[Tensor, Past]]:
        n = len(self.steps)
        asked = self.table.evaluations[n]
        assert asked is not None
        if asked.branches:
            answers = yield x, Split(asked.node, asked.branches)
            past = {**past, **({("u0", n): answers[0]} if asked.branches == BOTH else {})}
            past["x0", n] = answers[-1]
        else:
            past = {**past, ("x0", n): (yield x, asked.node)}
        terms = self._list_terms(n, past)
        columns = torch.stack([x if kind == "x" else past[kind, i] for kind, i in terms])
        target = self.targets[n + 1]
        weights = torch.tensor([self.table.steps[n].get(each, 0.0) for each in terms])
        if target.shape == x.shape:  # it is not in a dry run
            weights = weights.double()
            weights += _find_change(columns, target, weights, self.ridge)
        self.steps.append(dict(zip(terms, weights.tolist(), strict=True)))
        return torch.einsum("c,c...->...", weights.to(x), columns), past

    def _list_terms(self, n: int, past: Past) -> list[Term]:
        """Returns the state, the predictions that the row weighs, and some more."""
        weighed = [term for term, weight in self.table.steps[n].items() if weight]
        near = [each for each in reversed(past) if each[1] > n - REACH]
        return list(dict.fromkeys([("x", n), *weighed, *near]))


def _find_change(columns: Tensor, target: Tensor, weights: Tensor, ridge: float) -> Tensor:
    """Returns what is added to the weights (c,) of columns (c, n, *) to come near to a target."""
    flat = columns.flatten(1).double()
    missing = target.flatten().to(flat) - weights.to(flat) @ flat
    products = flat @ flat.T
    normal = products + ridge * torch.diag(products.diagonal())
    change: Tensor = torch.linalg.solve(normal, flat @ missing)
    return change.cpu()
