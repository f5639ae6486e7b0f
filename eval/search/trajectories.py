"""Teacher trajectories: states and predictions of a batch on a fine grid, computed once.

They are kept in the search's folder, so that a search that goes on does not pay for them again.
"""

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from ...models.errors import SettingError
from ...models.files import write_bytes
from ...models.reading import read_tensors
from ...models.schedule import Node, TimeGrid
from ...samplers.grid import choose_default_grid
from ...samplers.noise import make_generator
from ...solvers import Executor, drive
from ...solvers.coordinates import Straight
from ...solvers.table import BOTH
from .problem import Block, Problem
from .space import encoded, grid_to
from .strategies.base import Task

FINE = 60  # intervals of the fine grid (arXiv:2405.11326)
NOISES = 64
SOLVER = "unipc-3"

Predict = Callable[[Tensor, Node], Tensor]


def fine_grid(task: Task) -> TimeGrid:
    """The default grid of the process with FINE intervals, to the base's end."""
    return grid_to(task.space, choose_default_grid(task.space.process), _fine(task))


def _fine(task: Task) -> int:
    return int(task.settings.get("fine", FINE))


def noisy_nodes(task: Task) -> list[Node]:
    """The nodes of the fine grid at which the network can be asked."""
    return [node for node in fine_grid(task).nodes if node.sigma > 0.0]


def batch_of(task: Task) -> Block:
    """The noises that trajectories are taken from: the first of the training block."""
    block = task.problem.block("train")
    return block.first(min(len(block), int(task.settings.get("noises", NOISES))))


def predictor(problem: Problem, block: Block) -> Predict:
    """The guided x0 (B, *) of a block's batch, counted in the problem's ledger."""

    def predict(x: Tensor, node: Node) -> Tensor:
        (found,) = problem.answers(block, x, node, None)
        return found

    return predict


def trajectories(task: Task) -> tuple[Tensor, Tensor]:
    """States (M + 1, n, *) and predictions (M, n, *) of the teacher on the fine grid, in float32.

    They are taken where a multistep method of order 3 evaluates the network.
    """
    states, predictions = kept(task, "trajectories", partial(_run, task))
    return states, predictions


def chain(task: Task) -> Tensor:
    """Predictions at samples that were noised step by step up the fine grid, where sigma > 0.

    (M, n, *) for a grid that ends at sigma = 0, else (M + 1, n, *).

    x at kappa_i is x at kappa_{i+1} plus fresh noise of variance kappa_i^2 - kappa_{i+1}^2, in
    variance-exploding coordinates; the samples are the teacher's ends.
    """
    (found,) = kept(task, "chain", partial(_noised, task))
    return found


def branched(task: Task) -> tuple[Tensor, Tensor]:
    """The teacher on the fine grid: its states, and how all it saw goes together.

    States are (M + 1, n, *) of the noises that candidates are scored on, in float32. The other is
    the Gram matrix (3 M + 1, 3 M + 1) in float64 of the M + 1 states, the M conditional and the M
    unconditional predictions: inner products over noises and dimensions. Where a schedule weighs
    what the guidance makes of them, that stands for both.
    """
    name = "branched" if task.size.unit == "rows" else "combined"
    states, gram = kept(task, f"{name}-{len(task.scored)}", partial(_branched, task))
    return states, gram


def _branched(task: Task) -> tuple[Tensor, Tensor]:
    problem, branches = task.problem, BOTH if task.size.unit == "rows" else None
    cond, uncond = [], []

    def predict(x: Tensor, node: Node) -> Tensor:
        found = problem.answers(task.scored, x, node, branches)
        u, c = found[0], found[-1]
        cond.append(c)
        uncond.append(u)
        return u + problem.cfg_scale * (c - u) if branches else c

    states = _driven(fine_grid(task), task.scored, predict)
    columns = torch.cat([states, torch.stack(cond), torch.stack(uncond)]).flatten(2)
    each = (columns[:, i].double() for i in range(columns.shape[1]))
    return states, sum((one @ one.T for one in each), torch.zeros(()))


def _driven(grid: TimeGrid, block: Block, predict: Predict) -> Tensor:
    """States (M + 1, n, *) of the fine solver under a prediction."""

    def answer(x: Tensor, node: Node | None) -> Tensor:
        assert node is not None  # the method is deterministic
        return predict(x, node)

    x = block.noise * grid.schedule.noise_scale(grid.nodes[0])
    solver = Executor(encoded(SOLVER, grid))
    state, states = solver.init(), [x]
    for t, s in pairwise(grid.nodes):
        x, state = drive(solver.step(x, state, t, s), answer)
        states.append(x)
    return torch.stack(states)


def _run(task: Task) -> tuple[Tensor, Tensor]:
    block = batch_of(task)
    predict, found = predictor(task.problem, block), []

    def kept_one(x: Tensor, node: Node) -> Tensor:
        found.append(predict(x, node))
        return found[-1]

    states = _driven(fine_grid(task), block, kept_one)
    return states, torch.stack(found)


def _noised(task: Task) -> tuple[Tensor]:
    block, nodes = batch_of(task), noisy_nodes(task)
    predict = predictor(task.problem, block)
    generator = make_generator(task.seed)
    y, kappa, out = block.ends, 0.0, []
    for node in reversed(nodes):
        fresh = torch.randn(y.shape, generator=generator)
        if node.alpha == 0.0:
            x = fresh * node.sigma
        else:
            y, kappa = y + max(node.kappa**2 - kappa**2, 0.0) ** 0.5 * fresh, node.kappa
            x = node.alpha * y
        out.append(predict(x, node))
    return (torch.stack(out[::-1]),)


def straightened(task: Task, states: Tensor) -> tuple[Tensor, Tensor]:
    """y = x / scale (M + 1, n, d) and tau (M + 1), in which a step of DDIM is one of Euler."""
    grid = fine_grid(task)
    line = Straight.of(grid)
    scales = torch.tensor([line.scale(node) for node in grid.nodes])
    taus = torch.tensor([line.tau(node) for node in grid.nodes], dtype=torch.float64)
    return states.flatten(2) / scales[:, None, None], taus


def kept(task: Task, name: str, make: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """Returns what `make` gives for this batch and grid, from the search's folder if it is there.

    The rows that it took are part of the next trial's cost. Where that trial was not written, since
    its process was killed, the one that reads the folder is charged, so that a budget ends where it
    would have ended.
    """
    end = f"{task.space.ends[0]:g}"
    count = len(batch_of(task))
    path = task.log.folder / f"{name}-{_fine(task)}-{count}-{end}.safetensors"
    stored = _read(path)
    if stored is not None:
        tensors, rows = stored
        if not any(trial.evals >= rows for trial in task.log.trials.values()):
            task.meter.charge(rows)
        return tensors
    before = task.problem.evaluations
    tensors = make()
    named = {str(i): tensor.contiguous() for i, tensor in enumerate(tensors)}
    write_bytes(path, save(named, {"rows": str(task.problem.evaluations - before)}))
    return tensors


def _read(path: Path) -> tuple[tuple[Tensor, ...], int] | None:
    """Returns the tensors of a file and the network rows that they took."""
    try:
        tensors, metadata = read_tensors(path)
    except SettingError:
        return None
    rows = metadata.get("rows", "0")
    return tuple(tensors[key] for key in sorted(tensors)), int(rows) if rows.isdecimal() else 0
