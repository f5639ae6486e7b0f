"""Times that a strategy found, tried with named solvers."""

from collections.abc import Iterator, Sequence

from ....models.schedule import Node, TimeGrid
from ..draft import project
from ..space import encode_solver
from .base import Proposal, Task

SOLVERS = ("unipc-3", "dpmpp-2m", "unipc-2")


def propose_on(task: Task, nodes: Sequence[Node], label: str) -> Iterator[Proposal]:
    """Named solvers on these nodes, as points of the search's space."""
    grid = TimeGrid(task.space.process, tuple(nodes))
    for solver in SOLVERS:
        yield propose_named(task, solver, grid, f"{solver} on {label}")


def propose_named(task: Task, solver: str, grid: TimeGrid, label: str) -> Proposal:
    """Returns a named solver on a grid; the label is what a person calls it."""
    schedule = project(task.space, encode_solver(solver, grid))
    if abs(schedule.t[0] / grid.nodes[0].t - 1.0) > 1e-9:
        label += f" from t={schedule.t[0]:g}"  # a table may start elsewhere than the process
    return Proposal(schedule.model_copy(update={"provenance": {"label": label}}))
