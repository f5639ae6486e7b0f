"""Shortest paths through a fine time grid: exact dynamic programming over additive costs."""

from itertools import pairwise

import torch
from torch import Tensor

from ...models.errors import SettingError


def shortest(cost: Tensor, steps: int, gamma: float = 1.0) -> list[int]:
    """Returns the path of so many jumps from node 0 to the last one with the least discounted cost.

    V_1(i) = C(i, M), V_k(i) = min_{i<j<M} C(i, j) + gamma V_{k-1}(j)  (arXiv:2405.11326)

    cost:  (M + 1, M + 1), C(i, j) of the jump from node i to j > i; any sign; the rest is not read.
    gamma: above 1 later costs weigh more; 1 is the plain shortest path.

    Returns the steps + 1 indices, 0 first and M last.

    Raises:
        SettingError: if there are fewer than `steps` intervals.
    """
    last = len(cost) - 1
    if not 1 <= steps <= last:
        raise SettingError(f"{steps} steps do not fit into a grid of {last}; take a finer one")
    upper = torch.ones_like(cost, dtype=torch.bool).triu(1)
    jumps = torch.where(upper, cost.double(), torch.inf)
    value, choices = jumps[:, last].clone(), []
    for _ in range(steps - 1):
        value, chosen = (jumps + gamma * value[None, :]).min(dim=1)
        choices.append(chosen)
    path = [0]
    for chosen in reversed(choices):
        path.append(int(chosen[path[-1]]))
    return [*path, last]


def cost_of(cost: Tensor, path: list[int], gamma: float = 1.0) -> float:
    """Returns the discounted cost of a path: sum_k gamma^k C(path_k, path_{k+1})."""
    return sum(gamma**k * float(cost[i, j]) for k, (i, j) in enumerate(pairwise(path)))
