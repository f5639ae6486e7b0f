"""OSS: dynamic programming that carries the student's own states (arXiv:2503.21774).

For every node j it keeps the best state that k Euler steps can reach there:

    z_k(j) = z + (tau_j - tau_i) v(z),  z = z_{k-1}(i),  i < j with the least mean |z_k(j) - y_j|^2

with v the slope of the network at the student's state. So it sees errors add up, which costs of
single jumps do not; it is greedy, because only the best state of each node is kept.
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from ....solvers.coordinates import Straight
from ..trajectories import batch_of, fine_grid, kept, predictor, straightened, trajectories
from .base import Proposal, Task
from .named import on_path


def propose(task: Task) -> Iterator[Proposal]:
    """The times by which Euler steps from the noise end nearest to the teacher."""
    nodes = fine_grid(task).nodes
    (path,) = kept(task, f"oss-{task.nfe}", partial(_path, task))
    yield from on_path(task, [nodes[i] for i in path.tolist()], "oss")


def _path(task: Task) -> tuple[Tensor]:
    states, _ = trajectories(task)
    y, taus = straightened(task, states)
    nodes, predict = fine_grid(task).nodes, predictor(task.problem, batch_of(task))
    line, shape = Straight.of(fine_grid(task)), states[0].shape

    def slope(z: Tensor, i: int) -> Tensor:
        """dy/dtau at the student's state z (n, d)."""
        x = (z * line.scale(nodes[i])).reshape(shape)
        return (z - predict(x, nodes[i]).flatten(1)) / float(taus[i])

    return (torch.tensor(greedy_path(y, taus, slope, task.nfe)),)


def greedy_path(
    y: Tensor, taus: Tensor, slope: Callable[[Tensor, int], Tensor], steps: int
) -> list[int]:
    """Indices 0 .. M of the path; y (M + 1, n, d) is the teacher, slope(z, i) is dy/dtau at z."""
    last = len(taus) - 1
    states: dict[int, Tensor] = {0: y[0]}
    origins: list[list[int]] = []
    for k in range(steps):
        ends = range(k + 1, last - (steps - 1 - k) + 1) if k < steps - 1 else [last]
        errors = dict.fromkeys(ends, torch.inf)
        best: dict[int, Tensor] = {}
        origin = [0] * (last + 1)
        for i, z in states.items():
            v = slope(z, i)
            for j in (j for j in ends if j > i):
                reached = z + float(taus[j] - taus[i]) * v
                error = float((reached - y[j]).square().mean())
                if error < errors[j]:
                    errors[j], best[j], origin[j] = error, reached, i
        states, origins = best, [*origins, origin]
    path = [last]
    for origin in reversed(origins):
        path.append(origin[path[-1]])
    return path[::-1]
