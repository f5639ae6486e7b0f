"""Search under guidance with a budget in network rows: which steps evaluate both branches, and how.

A run of N steps of which K evaluate the unconditional branch too costs N + K rows. Candidates are
named solvers on named grids with a few placements of the K steps; the best on validation noises are
then descended from, so that every weight is free.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ...models.errors import SettingError
from ...models.schedule import TimeGrid
from ...samplers.grid import time_grid
from ...samplers.plan import named_solver, parse_spec
from ...solvers import Schedule
from ...solvers.multistep import Encoder
from .descent import Descent, Found, descend
from .guided import guided_schedule
from .objective import objective, rmse
from .problem import Problem

SOLVERS = ("dpmpp-2m", "unipc-3")
GRIDS = {
    "flow": ("beta", "beta:alpha=0.8,beta=0.8"),
    "edm": ("karras", "logsnr"),
}
OTHERS = ("logsnr", "uniform")
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Placed:
    """A candidate: what it is called and its schedule."""

    label: str
    schedule: Schedule


def placements(rows: int) -> Iterator[tuple[int, tuple[int, ...]]]:
    """(N, the K guided steps) with N + K = rows, from full guidance to a third of the steps.

    The K are spread evenly, or all but the last few of them come first: guidance matters most
    where an image is laid out.
    """
    if rows < 2:
        raise SettingError(f"a guided run needs at least 2 network rows, not {rows}")
    for steps in range(-(-rows // 2), 3 * rows // 4 + 1):
        count = rows - steps
        even = {round(i * (steps - 1) / max(count - 1, 1)) for i in range(count)}
        half = (count + 1) // 2
        rest = count - half
        early = {
            *range(half),
            *(half + (i + 1) * (steps - half) // (rest + 1) for i in range(rest)),
        }
        found = {tuple(sorted(each)) for each in (even, early, set(range(count)))}
        yield from ((steps, each) for each in sorted(found) if len(each) == count)


def candidates(problem: Problem, rows: int) -> Iterator[Placed]:
    """Every placement with every solver and grid."""
    schedule = problem.network.schedule
    for steps, guided in placements(rows):
        for grid in GRIDS.get(schedule.family, OTHERS):
            name, settings = parse_spec(grid)
            nodes = time_grid(name, schedule, steps, **settings)
            for solver in SOLVERS:
                base = _encoded(solver, nodes)
                label = f"{solver} on {grid}, both branches at {','.join(map(str, guided))}"
                yield Placed(label, guided_schedule(base, problem.cfg_scale, guided))


def search_guided(
    problem: Problem,
    rows: int,
    descent: Descent,
    checkpoint: Path | None = None,
    tell: Tell = lambda line: None,
) -> Found:
    """The best schedule of so many network rows: scan the placements, then descend from the best.

    Args:
        problem: with a guidance; its teacher is guided at every evaluation.
        rows: network rows per image.
        descent: of the best candidate; its `rows` are also the validation noises of the scan.
        checkpoint: of the descent; see `descend`.
        tell: is told each candidate's RMSE.
    """
    if problem.cfg_scale == 1.0:
        raise SettingError("rows are searched under guidance; give a guidance scale other than 1")
    block = problem.block("validation")
    block = block if descent.rows is None else block.first(descent.rows)
    aim, scored = objective("terminal", problem.network), []
    for place, each in enumerate(candidates(problem, rows)):
        score = aim(problem, each.schedule, block)
        tell(f"{score:.4f} {each.label}")
        scored.append((score, place, each))
    return descend(problem, min(scored)[2].schedule, descent, checkpoint)


def relative(problem: Problem, schedule: Schedule) -> float:
    """Relative L2 to the teacher's ends on the test block."""
    block = problem.block("test")
    size = float(block.ends.double().square().mean().sqrt())
    return rmse(problem.ends(schedule, block), block) / size


def _encoded(solver: str, nodes: TimeGrid) -> Schedule:
    settings = named_solver(solver)
    assert isinstance(settings, Encoder)
    return settings.encode(nodes)
