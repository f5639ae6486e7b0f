"""Two solvers in one run: one down to a noise level, and another from there on.

    x_s = step of `high` where sigma_t >= sigma, and else of `low`,

where `low` begins anew, without memory of the predictions before. So both may be one solver, which
forgets there what it knew: where a run of two networks changes from one to the other, or the scale
of guidance jumps, the predictions before are those of something else. Steps of `high` keep the
order that they have in a run of their own to the end.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar, NamedTuple

from pydantic import BeforeValidator, ConfigDict
from pydantic.dataclasses import dataclass
from torch import Tensor

from ..models.errors import SettingError
from ..models.node import Node, is_above
from ..models.registry import strip_brackets
from ..models.schedule import TimeGrid
from .base import (
    Bound,
    Revisable,
    Revision,
    Solver,
    SolverInfo,
    SolverSettings,
    Span,
    Step,
    list_spans,
    register,
    take_solver,
)
from .table_steps import list_starts


def _take_part(given: Any) -> SolverSettings:
    """Returns settings given as such or as a text, which may stand in brackets."""
    return take_solver(strip_brackets(given))


def _check_part(given: Any) -> Any:
    """Returns what stands for settings as it is, so that it can be written down."""
    if not (isinstance(given, str) or isinstance(getattr(given, "info", None), SolverInfo)):
        raise ValueError("it must be a solver or its name, such as unipc-2")
    _take_part(given)
    return given


Part = Annotated[Any, BeforeValidator(_check_part)]


@register
@dataclass(frozen=True, config=ConfigDict(arbitrary_types_allowed=True))
class Switch:
    """One solver down to a noise level, and another from there on, which begins anew.

    high:  the solver of the steps that begin at sigma or above; several settings stand in brackets,
           as in high=[sa-solver:eta=0.3].
    low:   the solver of all others; it may be the same.
    sigma: where they change, of the process; 0.875 is that of Wan 2.2 from text.
    """

    info: ClassVar[SolverInfo] = SolverInfo(
        name="switch", order=2, source="arXiv:2211.01324, whose networks change so"
    )
    high: Part = "unipc-2"
    low: Part = "unipc-2"
    sigma: float = 0.875

    def __post_init__(self) -> None:
        high, low = (each.info for each in self.parts)
        for each in (high, low):
            if each.adaptive or each.guided:
                what = "chooses its own steps" if each.adaptive else "brings its own guidance"
                raise SettingError(f"switch: {each.name} {what}; take another, such as unipc-2")
        object.__setattr__(self, "info", _join_facts(high, low))

    @property
    def parts(self) -> tuple[SolverSettings, SolverSettings]:
        """The settings of both solvers."""
        return _take_part(self.high), _take_part(self.low)

    def count_high(self, grid: TimeGrid) -> int:
        """Returns the number of steps of `high`."""
        return sum(is_above(node, self.sigma) for node in grid.nodes[:-1])

    def check(self, grid: TimeGrid) -> None:
        """Raises SettingError if a run has no step of one of them, or one is made for a network."""
        check_boundary(grid, self.sigma, first := self.count_high(grid))
        for part in self.parts:
            if isinstance(part.on(grid), Bound):
                raise SettingError(
                    f"switch: {part.info.name} is made for one network; take another solver, such"
                    " as unipc-2"
                )
        check_blocks(self.parts[0].on(grid), grid, first, self.sigma)

    def on(self, grid: TimeGrid) -> Solver[Any]:
        first, (high, low) = self.count_high(grid), self.parts
        if first in (0, grid.steps):
            return (high if first else low).on(grid)
        return SwitchSteps(high.on(grid), low.on(grid.part(first, grid.steps)), first)


class SwitchMemory(NamedTuple):
    """The number of the next step, and the memory of the solver that takes it."""

    n: int
    inner: Any

    @property
    def past(self) -> tuple[Tensor, ...]:
        """All tensors of the memory."""
        tensors: tuple[Tensor, ...] = getattr(self.inner, "past", ())
        return tensors


class SwitchSteps:
    """Runs the steps of one solver, and from step `first` on those of another."""

    def __init__(self, high: Solver[Any], low: Solver[Any], first: int) -> None:
        self.high, self.low, self.first = high, low, first

    def init(self) -> SwitchMemory:
        return SwitchMemory(0, self.high.init())

    def step(self, x: Tensor, state: SwitchMemory, t: Node, s: Node) -> Step[SwitchMemory]:
        x, inner = yield from self._choose(state.n).step(x, state.inner, t, s)
        n = state.n + 1
        return x, SwitchMemory(n, self.low.init() if n == self.first else inner)

    def list_spans(self, n: int, t: Node, s: Node) -> Sequence[Span]:
        """As `Clocked` has it."""
        return list_spans(self._choose(n), n if n < self.first else n - self.first, t, s)

    @property
    def starts(self) -> tuple[int, ...]:
        """As `Table` has it."""
        later = (self.first + n for n in list_starts(self.low))
        return *list_starts(self.high)[: self.first], *later

    @property
    def reach(self) -> int:
        """As `Revisable` has it."""
        parts = (self.high, self.low)
        return max((each.reach for each in parts if isinstance(each, Revisable)), default=0)

    def revise(self, state: SwitchMemory, changes: Sequence[Revision]) -> SwitchMemory:
        """As `Revisable` has it."""
        solver = self._choose(state.n)
        if not isinstance(solver, Revisable):
            return state
        return state._replace(inner=solver.revise(state.inner, changes))

    def _choose(self, n: int) -> Solver[Any]:
        return self.high if n < self.first else self.low


def check_boundary(grid: TimeGrid, sigma: float, first: int) -> None:
    """Raises SettingError for a boundary outside of the steps, of which `first` begin above it."""
    if first in (0, grid.steps):
        near = sorted((node.sigma for node in grid), key=lambda each: abs(each - sigma))
        raise SettingError(
            f"the boundary, sigma={sigma:g}, lies outside of the steps of this run; its nearest"
            f" nodes are at {near[0]:.4g} and {near[1]:.4g}: take more steps, or another grid"
        )


def check_blocks(solver: Solver[Any], grid: TimeGrid, first: int, sigma: float) -> None:
    """Raises SettingError if step `first` lies within a block of a solver."""
    starts = list_starts(solver)
    if any(start < first <= n for n, start in enumerate(starts)):
        before, after = (grid.nodes[n].sigma for n in (first - 1, first))
        raise SettingError(
            f"the boundary, sigma={sigma:g}, lies within a block of this solver, whose steps"
            f" {first} and {first + 1} begin at sigma {before:.4g} and {after:.4g}; take a"
            " multistep solver, such as unipc-2"
        )


def _join_facts(high: SolverInfo, low: SolverInfo) -> SolverInfo:
    """Returns the facts of runs of two solvers: the weaker, slower and narrower of both.

    The first step of `low` is of order 1 where it is a multistep one, so the order is 2 at most.
    """
    shared = [each for each in high.families if each in low.families]
    return replace(
        Switch.info,
        order=min(high.order, low.order, 2),
        calls_per_step=max(high.calls_per_step, low.calls_per_step),
        stochastic=high.stochastic or low.stochastic,
        distilled=high.distilled or low.distilled,
        families=tuple(shared) if high.families and low.families else high.families or low.families,
        grid=high.grid or low.grid,
    )
