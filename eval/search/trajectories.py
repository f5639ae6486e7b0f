"""Trajectories of the teacher on a fine grid, computed once for all strategies.

They are kept in the search's folder, so that a search that goes on does not pay for them again.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from ...models.errors import SettingError
from ...models.files import write_bytes
from ...models.reading import read_tensors
from ...models.schedule import Node, TimeGrid
from ...samplers.grid import choose_default_grid
from ...solvers.table import BOTH
from .fine_run import drive_teacher
from .problem import Block
from .space import make_grid
from .strategies.base import Task

FINE = 60  # intervals of the fine grid (arXiv:2405.11326)
NOISES = 64


def make_fine_grid(task: Task) -> TimeGrid:
    """Returns the default grid of the process with FINE intervals, to the base's end."""
    return make_grid(task.space, choose_default_grid(task.space.process), _fine(task))


def _fine(task: Task) -> int:
    return int(task.settings.get("fine", FINE))


def batch_of(task: Task) -> Block:
    """Returns the first noises of the training block."""
    block = task.problem.block("train")
    return block.first(min(len(block), int(task.settings.get("noises", NOISES))))


def record_branches(task: Task) -> tuple[Tensor, Tensor]:
    """Returns the states of the teacher on the fine grid, and how all it saw goes together.

    States are (M + 1, n, *) of the noises that candidates are scored on, in float32. The other is
    the Gram matrix (3 M + 1, 3 M + 1) in float64 of the M + 1 states, the M conditional and the M
    unconditional predictions: inner products over noises and dimensions. Where a schedule weighs
    what the guidance makes of them, that stands for both.
    """
    name = "branched" if task.size.unit == "rows" else "combined"
    states, gram = keep_tensors(task, f"{name}-{len(task.scored)}", partial(_record_branches, task))
    return states, gram


def _record_branches(task: Task) -> tuple[Tensor, Tensor]:
    problem, branches = task.problem, BOTH if task.size.unit == "rows" else None
    cond, uncond = [], []

    def predict(x: Tensor, node: Node) -> Tensor:
        answers = problem.answers(task.scored, x, node, branches)
        u, c = answers[0], answers[-1]
        cond.append(c)
        uncond.append(u)
        return u + problem.cfg_scale * (c - u) if branches else c

    states = drive_teacher(make_fine_grid(task), task.scored.noise, predict)
    columns = torch.cat([states, torch.stack(cond), torch.stack(uncond)]).flatten(2)
    each = (columns[:, i].double() for i in range(columns.shape[1]))
    return states, sum((one @ one.T for one in each), torch.zeros(()))


def keep_tensors(
    task: Task, name: str, make: Callable[[], tuple[Tensor, ...]]
) -> tuple[Tensor, ...]:
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
