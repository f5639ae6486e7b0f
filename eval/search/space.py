"""The decision space of a search (arXiv:2312.07243): what may vary, and what the rest is."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ...models.errors import SettingError, UnknownNameError
from ...models.registry import parse_spec
from ...models.schedule import NoiseSchedule, TimeGrid
from ...samplers.grid import Final, time_grid
from ...samplers.ramps import find_lam_ends
from ...solvers import StepSchedule, take_solver
from ...solvers.linear import Encoder

DECISIONS = {
    "times": "the nodes between the ends",
    "ends": "where a run starts, at t_max or a little below, and whether it ends at 0",
    "order": "of each step, 1 to 4",
    "pred": "data or noise prediction",
    "mixed": "predictions between data and noise",
    "est": "points the first derivative is estimated from",
    "relax": "factor on the first derivative",
    "corr": "the corrector",
    "afs": "an analytic first step, and one step more",
    "xi": "shifts of the evaluation times",
}
DEFAULT = frozenset(DECISIONS) - {"afs", "xi", "mixed"}
STARTS = (0.95, 0.9, 0.8)  # shares of t_max at which a run may start too


@dataclass(frozen=True, kw_only=True)
class Space:
    """The decisions that may vary, and the values of the others.

    process: the noise schedule.
    free:    the decisions that may vary; see DECISIONS.
    ends:    times at which a run may end; the first is the base's.
    solver:  name of the solver that fixes the other decisions.
    grid:    name of the grid that fixes the times.
    afs:     the analytic first steps to choose from.
    """

    process: NoiseSchedule
    free: frozenset[str] = DEFAULT
    ends: tuple[float, ...] = ()
    solver: str = "dpmpp-2m"
    grid: str = "logsnr"
    afs: tuple[Any, ...] = ("zero",)
    _bases: dict[Any, StepSchedule] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        for name in sorted(self.free - DECISIONS.keys()):
            raise UnknownNameError("decision", name, DECISIONS)
        if not isinstance(take_solver(self.solver), Encoder):
            raise SettingError(
                f"{self.solver} cannot be the base: it is not an exponential multistep"
            )
        if not self.ends:
            object.__setattr__(self, "ends", (self.process.t_zero, self.process.t_min))

    @property
    def starts(self) -> tuple[float, ...]:
        """Times at which a run may start: t_max and below, where lam is finite on every process."""
        top = self.process.t_max
        edge = (self.process.at_lam(self.lams[0]).t,) if self._blind else ()
        return (top, *edge, *(self.process.at(share * top).t for share in STARTS))

    @property
    def _blind(self) -> bool:
        return self.process.at(self.process.t_max).alpha == 0.0

    @property
    def lams(self) -> tuple[float, float]:
        """Where nodes between the ends may lie."""
        return find_lam_ends(self.process)

    def base(self, steps: int, end: float | None = None) -> StepSchedule:
        """Returns the base solver on the base grid, to the first of the ends or to another."""
        key = steps, self.ends[0] if end is None else end
        if key not in self._bases:
            made = encode_solver(self.solver, make_grid(self, self.grid, *key))
            start = nearest(self.starts, made.t[0])
            self._bases[key] = made.model_copy(update={"t": (start, *made.t[1:])})
        return self._bases[key]


def nearest(times: Sequence[float], t: float) -> float:
    """Returns the one of some times that is nearest to t."""
    return min(times, key=lambda each: abs(each - t))


def encode_solver(solver: str, grid: TimeGrid) -> StepSchedule:
    """Returns an exponential multistep solver on a grid; raises SettingError for other solvers."""
    settings = take_solver(solver)
    if not isinstance(settings, Encoder):
        raise SettingError(f"{solver} cannot be the start: it is not an exponential multistep")
    return settings.step_schedule(grid)


def make_grid(space: Space, name: str, steps: int, end: float | None = None) -> TimeGrid:
    """Returns a named grid of so many steps that ends at one of the space's ends."""
    end = space.ends[0] if end is None else end
    kind, settings = parse_spec(name)
    zero = end == space.process.t_zero
    final = Final.ZERO if zero else Final.SIGMA_MIN
    grid = time_grid(kind, space.process, steps, final, **settings)
    return grid if zero else TimeGrid.of(space.process, [*(n.t for n in grid.nodes[:-1]), end])
