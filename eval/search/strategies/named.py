"""What strategies that find times share: their times with named solvers."""

from collections.abc import Iterator, Sequence

from ....models.schedule import Node, TimeGrid
from .base import Proposal, Task

SOLVERS = ("unipc-3", "dpmpp-2m", "unipc-2")


def on_path(task: Task, nodes: Sequence[Node], label: str) -> Iterator[Proposal]:
    """Named solvers on these nodes, as points of the search's space."""
    grid = TimeGrid(task.space.process, tuple(nodes))
    for solver in SOLVERS:
        yield named(task, solver, grid, f"{solver} on {label}")


def named(task: Task, solver: str, grid: TimeGrid, label: str) -> Proposal:
    """A named solver on a grid; the label is what a person calls it."""
    found = task.space.named(solver, grid)
    if abs(found.t[0] / grid.nodes[0].t - 1.0) > 1e-9:
        label += f" from t={found.t[0]:g}"  # a table may start elsewhere than the process
    return Proposal(found.model_copy(update={"provenance": {"label": label}}))
