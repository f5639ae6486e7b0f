"""KLUB: the times of an upper bound on the KL divergence (Align Your Steps, arXiv:2404.14507).

Holding x0 at the noisier end of each interval, the bound is additive over intervals,

    C(s, t) = int_t^s kappa^-p E |D(x_kappa) - D(x_s)|^2 dkappa,   kappa from t up to s > t,

with x_s = x_kappa + noise, so its minimum on a fine grid is an exact shortest path. p = 3 is the
bound for the reverse SDE; p = 1 serves few deterministic steps better.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from ....samplers.ramps import find_lam_ends
from ..paths import shortest
from ..trajectories import chain, fine_grid, noisy_nodes
from .base import Proposal, Task
from .named import on_path

EXPONENTS = (1.0, 2.0)


def propose(task: Task) -> Iterator[Proposal]:
    """The shortest path for each exponent p."""
    predictions, kappas = chain(task), _kappas(task)
    distances = mean_distances(predictions.flatten(1), predictions.shape[1])
    nodes = fine_grid(task).nodes
    for p in task.settings.get("klub", EXPONENTS):
        cost = interval_costs(distances, kappas, p)
        if len(cost) < len(nodes):
            cost = _to_zero(cost)
        path = shortest(cost, task.nfe)
        yield from on_path(task, [nodes[i] for i in path], f"klub p={p:g}")


def _kappas(task: Task) -> Tensor:
    """Of the nodes that have a prediction; the first is finite, as it is where grids start."""
    low, _ = find_lam_ends(task.space.process)
    kappas = [min(node.kappa, math.exp(-low)) for node in noisy_nodes(task)]
    return torch.tensor(kappas, dtype=torch.float64)


def _to_zero(cost: Tensor) -> Tensor:
    """A node sigma = 0 at the end; below the last prediction nothing is known, nothing added."""
    cost = torch.cat([cost, cost[:, -1:]], dim=1)
    return torch.cat([cost, cost[-1:]], dim=0)


def mean_distances(predictions: Tensor, samples: int) -> Tensor:
    """E |D_i - D_j|^2, (M, M) float64, from predictions (M, n d)."""
    flat = predictions.double()
    return torch.cdist(flat, flat, compute_mode="donot_use_mm_for_euclid_dist").square() / samples


def interval_costs(distances: Tensor, kappas: Tensor, p: float) -> Tensor:
    """C(i, j) of the module by the trapezoid rule over the nodes between, noisiest first."""
    weighted = kappas[None, :] ** -p * distances  # (from, at)
    slices = 0.5 * (weighted[:, :-1] + weighted[:, 1:]) * (kappas[:-1] - kappas[1:])
    summed = torch.nn.functional.pad(slices.cumsum(1), (1, 0))
    return summed - summed.diagonal()[:, None]
