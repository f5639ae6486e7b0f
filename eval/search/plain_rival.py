"""The rival of a table that was refitted to its cache: one without a cache, refitted alike."""

from dataclasses import replace
from pathlib import Path

from ...models.ledger import Ledger
from ...samplers.grid import choose_default_grid
from ...samplers.plan import DEFAULT_SOLVER
from ...solvers import Schedule
from ..cache_worth import PlainRun
from .objective import rmse
from .problem import Problem
from .refit import RIDGES, find_targets, refit
from .space import Space


def fit_plain_run(problem: Problem, solver: str, nfe: int, folder: Path) -> PlainRun:
    """Returns the best plain table of so many evaluations, on validation noises.

    It is refitted, as tables with a cache are, from the solver and from the default one, and
    written into the folder, for that it can be drawn with.
    """
    path = folder / f"plain-{nfe}.json"
    if not path.exists():
        apart = replace(problem, ledger=Ledger())
        tried = [
            made
            for name in dict.fromkeys((solver, DEFAULT_SOLVER))
            for made in _list_refitted(apart, name, nfe)
        ]
        block = apart.block("validation")
        best = min(tried, key=lambda each: rmse(apart.ends(each, block), block))
        best.write(path)
    name = f"a table without a cache, {nfe} evaluations, refitted alike"
    return PlainRun(name, f"--schedule {path}", {"solver": Schedule.load(path)})


def _list_refitted(problem: Problem, solver: str, nfe: int) -> list[Schedule]:
    process = problem.network.schedule
    space = Space(process=process, solver=solver, grid=choose_default_grid(process, nfe))
    plain, block = Schedule.of_steps(space.base(nfe)), problem.block("train")
    targets = find_targets(problem, plain.grid(), block)
    return [refit(problem, plain, block, targets, ridge) for ridge in RIDGES]
