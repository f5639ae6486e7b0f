"""Runs that begin after their first evaluation, as image to image does."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor

from ...models.errors import SettingError
from ...models.prediction import combine
from ...models.schedule import Node, TimeGrid
from ...solvers import Solver, SolverSettings
from ...solvers.base import Step
from ..plan import Plan
from .stepper import PlannedCall, Stepper, list_calls


class Resumed:
    """A solver that is joined within a step.

    The calls that are left of that step take x by DDIM from node to node and on to the next step,
    which is the identity where the nodes are the same; from there it is the solver as ever.
    """

    def __init__(self, solver: Solver[Any] | None, calls: int) -> None:
        self.solver, self.calls = solver, calls

    def init(self) -> tuple[int, Any]:
        return 0, self.solver.init() if self.solver else None

    def step(self, x: Tensor, state: tuple[int, Any], t: Node, s: Node) -> Step[tuple[int, Any]]:
        n, inner = state
        if n < self.calls:
            x0 = yield x, t
            ratio = s.sigma / t.sigma if t.lam < s.lam else 1.0
            return combine((ratio, s.alpha - t.alpha * ratio), x, x0), (n + 1, inner)
        assert self.solver is not None
        x, inner = yield from self.solver.step(x, inner, t, s)
        return x, (n, inner)


def make_late_stepper(plan: Plan, settings: SolverSettings, rest: Sequence[PlannedCall]) -> Stepper:
    """Returns what runs the rest of a plan, with no memory of what came before it.

    Raises:
        SettingError: if the solver, begun anew there, does not ask what is left of the plan.
    """
    calls = next((n for n, question in enumerate(rest) if question.stage == 0), len(rest))
    joined = [question.node for question in rest[:calls]]
    nodes = plan.grid.nodes[rest[0].step + (calls > 0) :]
    falls = all(s.lam >= t.lam for t, s in pairwise([*joined, nodes[0]]))
    solver: Solver[Any] | None = None
    asked = list[Node]()
    if len(nodes) > 1:
        grid = TimeGrid(plan.grid.schedule, nodes, plan.grid.denoise)
        anew = Plan(settings.on(grid), grid)
        solver, asked = anew.solver, [question.node for question in list_calls(anew)]
    if not falls or asked != [question.node for question in rest[calls:]]:
        raise make_refusal(settings, rest[0])
    runs = solver if solver and not calls else Resumed(solver, calls)
    return Stepper(runs, (*joined, *nodes))


def make_refusal(settings: SolverSettings, first: PlannedCall) -> SettingError:
    """Returns the error of a run that cannot begin at this evaluation."""
    return SettingError(
        f"{settings.info.name} cannot start at call {first.stage + 1} of step {first.step + 1}:"
        " pipelines count on as many calls in every step; change strength, or take a solver with"
        " one evaluation per step, such as unipc-2"
    )
