"""The registry of solvers by name."""

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from ..models.errors import ScheduleError
from ..models.registry import SettingsRegistry
from ..models.schedule import TimeGrid
from .base import Solver


@dataclass(frozen=True, slots=True, kw_only=True)
class SolverInfo:
    """Facts about a solver; the tests hold it to every one of them.

    name:           what users type.
    order:          global order of convergence on a smooth ODE, without lowering at the end.
    source:         paper and equation of the update rule.
    calls_per_step: network evaluations in a step that is not the last.
    stochastic:     whether it adds noise.
    adaptive:       whether it chooses its own steps, so that its cost is known only afterwards.
    families:       noise schedule families it runs on; empty for all.
    same_as:        the method that this is by another name, with every setting left as it is.
    """

    name: str
    order: int
    source: str
    calls_per_step: int = 1
    stochastic: bool = False
    adaptive: bool = False
    families: tuple[str, ...] = ()
    same_as: str = ""

    @property
    def kind(self) -> str:
        if self.adaptive:
            return "adaptive"
        return "stochastic" if self.stochastic else "deterministic"


class SolverSettings(Protocol):
    """What the registry holds: a frozen value of settings that makes a solver for a grid."""

    info: ClassVar[SolverInfo]

    def on(self, grid: TimeGrid) -> Solver[Any]:
        """Returns the solver that will step over this grid, with all its coefficients computed."""
        ...


SOLVERS: SettingsRegistry[SolverSettings] = SettingsRegistry("solver", SolverInfo, "unipc-2")
register, names, take_solver = SOLVERS.register, SOLVERS.names, SOLVERS.take


def solver(name: str, /, **settings: Any) -> SolverSettings:
    """Returns the settings registered under a name; keywords are the fields of its dataclass.

    Raises:
        UnknownNameError: for an unknown name or setting.
        SettingError: for a setting that is missing or out of range; it names the setting.
    """
    return SOLVERS.make(name, **settings)


def check_family(info: SolverInfo, grid: TimeGrid) -> None:
    """Raises ScheduleError if the solver does not run on the grid's noise schedule."""
    if info.families and grid.schedule.family not in info.families:
        raise ScheduleError(
            f"{info.name} runs on {', '.join(info.families)} schedules only, not on"
            f" {grid.schedule.family}; ddim runs on all"
        )
