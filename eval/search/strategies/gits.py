"""GITS: the times where Euler steps leave the teacher's trajectory least (arXiv:2405.11326).

The cost of one jump from node i to j is measured from the teacher's own point, in the straight
coordinate of the process:

    y_{i->j} = y_i + (tau_j - tau_i) (y_i - x0_i) / tau_i
    l2:   C(i, j) = mean |y_{i->j} - y_j|
    dev:  C(i, j) = mean [dev(y_{i->j}) - dev(y_j)],

where dev is the distance from the chord between the ends of the trajectory. The sign of dev stays:
to overshoot inwards is to gain. The times are then used with any solver.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from ..paths import shortest
from ..trajectories import fine_grid, straightened, trajectories
from .base import Proposal, Task
from .named import on_path

RULES = (("dev", 1.15), ("dev", 1.0), ("l2", 1.0), ("l2", 1.15))


def propose(task: Task) -> Iterator[Proposal]:
    """Shortest paths by both metrics, with and without a weight on later errors."""
    states, x0 = trajectories(task)
    y, taus = straightened(task, states)
    nodes = fine_grid(task).nodes
    for metric, gamma in task.settings.get("gits", RULES):
        path = shortest(jump_costs(y, x0.flatten(2), taus, metric), task.nfe, gamma)
        label = f"gits {metric} {gamma:g}"
        yield from on_path(task, [nodes[i] for i in path], label)


def jump_costs(y: Tensor, x0: Tensor, taus: Tensor, metric: str) -> Tensor:
    """C(i, j), (M + 1, M + 1) float64; y (M + 1, n, d), x0 (M, n, d), taus (M + 1).

    metric: "dev" or "l2".
    """
    last = len(taus) - 1
    cost = torch.full((last + 1, last + 1), torch.inf, dtype=torch.float64)
    chord = y[-1] - y[0]
    chord = chord / chord.norm(dim=-1, keepdim=True)
    for i in range(last):
        slope = (y[i] - x0[i]) / float(taus[i])
        jumps = (taus[i + 1 :] - taus[i]).to(y)[:, None, None]
        reached, target = y[i] + jumps * slope, y[i + 1 :]
        if metric == "l2":
            off = (reached - target).norm(dim=-1)
        else:
            off = _deviation(reached, y[-1], chord) - _deviation(target, y[-1], chord)
        cost[i, i + 1 :] = off.mean(-1).double()
    return cost


def _deviation(z: Tensor, end: Tensor, chord: Tensor) -> Tensor:
    """Distance (k, n) of z (k, n, d) from the line through `end` (n, d) along `chord`."""
    left = end - z
    across: Tensor = left - (left * chord).sum(-1, keepdim=True) * chord
    distance: Tensor = across.norm(dim=-1)
    return distance
