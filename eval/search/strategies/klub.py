"""KLUB: the times of an upper bound on the KL divergence (Align Your Steps, arXiv:2404.14507).

Holding x0 at the noisier end of each interval, the bound is additive over intervals,

    C(s, t) = int_t^s kappa^-p E |D(x_kappa) - D(x_s)|^2 dkappa,   kappa from t up to s > t,

with x_s = x_kappa + noise, so its minimum on a fine grid is an exact shortest path. p = 3 is the
bound for the reverse SDE; p = 1 serves few deterministic steps better.
"""

import math
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from ....models.schedule import Node
from ....samplers.noise import make_generator, spread_noise
from ....samplers.ramps import find_lam_ends
from ..paths import shortest
from ..trajectories import batch_of, keep_tensors, make_fine_grid
from .base import Proposal, Task
from .named import propose_on

EXPONENTS = (1.0, 2.0)


def propose(task: Task) -> Iterator[Proposal]:
    """Yields the shortest path for each exponent p."""
    (predictions,) = keep_tensors(task, "chain", partial(predict_chain, task))
    kappas = _kappas(task)
    distances = mean_distances(predictions.flatten(1), predictions.shape[1])
    nodes = make_fine_grid(task).nodes
    for p in task.settings.get("klub", EXPONENTS):
        cost = interval_costs(distances, kappas, p)
        if len(cost) < len(nodes):
            cost = _to_zero(cost)
        path = shortest(cost, task.nfe)
        yield from propose_on(task, [nodes[i] for i in path], f"klub p={p:g}")


def predict_chain(task: Task) -> tuple[Tensor]:
    """Returns predictions at samples that are noised step by step up the fine grid.

    They are (M, n, *) for a grid that ends at sigma = 0, else (M + 1, n, *). x at kappa_i is x at
    kappa_{i+1} plus fresh noise of variance kappa_i^2 - kappa_{i+1}^2, in variance-exploding
    coordinates; the samples are the teacher's ends.
    """
    block, generator = batch_of(task), make_generator(task.seed)
    y, kappa, predictions = block.ends, 0.0, []
    one = y.new_ones(len(y), *[1] * (y.ndim - 1))
    spread = spread_noise(one, task.space.process, [generator] * len(y))  # one for the whole chain
    for node in reversed(_noisy_nodes(task)):
        fresh = torch.randn(y.shape, generator=generator) * spread
        if node.alpha == 0.0:
            x = fresh * node.sigma
        else:
            y, kappa = y + max(node.kappa**2 - kappa**2, 0.0) ** 0.5 * fresh, node.kappa
            x = node.alpha * y
        predictions += task.problem.answers(block, x, node, None)
    return (torch.stack(predictions[::-1]),)


def _noisy_nodes(task: Task) -> list[Node]:
    """Returns the nodes of the fine grid at which the network can be asked."""
    return [node for node in make_fine_grid(task).nodes if node.sigma > 0.0]


def _kappas(task: Task) -> Tensor:
    """Of the nodes that have a prediction; the first is finite, as it is where grids start."""
    low, _ = find_lam_ends(task.space.process)
    kappas = [min(node.kappa, math.exp(-low)) for node in _noisy_nodes(task)]
    return torch.tensor(kappas, dtype=torch.float64)


def _to_zero(cost: Tensor) -> Tensor:
    """Adds a node sigma = 0 at the end; nothing is known below the last prediction."""
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
