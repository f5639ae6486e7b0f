"""What `fewstep bench cache` knows of each run, and the honest row beside it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .panels import between

UNCACHED = "uncached"


@dataclass(frozen=True)
class Cell:
    """One run; without a policy it is uncached."""

    model: str
    solver: str
    nfe: int
    policy: str | None = None

    @property
    def uncached(self) -> "Cell":
        return Cell(self.model, self.solver, self.nfe)


@dataclass(frozen=True)
class Figure:
    """What is known of one run.

    effective: evaluations of the whole network that take as many FLOPs.
    error:     relative L2 to the converged run; change: to the uncached run.
    ratio:     seconds over those of the uncached run; seconds: per image. None: not timed.
    """

    cell: Cell
    effective: float
    error: float | None = None
    change: float | None = None
    ratio: float | None = None
    seconds: float | None = None

    @property
    def family(self) -> str:
        """The name of the policy, its level with it; "uncached" without one."""
        policy = self.cell.policy
        if policy is None:
            return UNCACHED
        name = policy.partition(":")[0]
        return f"{name} last-block" if "level=last-block" in policy else name


@dataclass(frozen=True)
class Panel:
    """The figures of one network."""

    model: str
    figures: tuple[Figure, ...]

    @property
    def families(self) -> list[str]:
        """Uncached first."""
        found = sorted({figure.family for figure in self.figures})
        return sorted(found, key=lambda name: name != UNCACHED)

    def family(self, name: str, solver: str | None = None) -> list[Figure]:
        """Figures of one policy name, cheap first, of one solver or all."""
        found = [
            figure
            for figure in self.figures
            if figure.family == name and solver in (None, figure.cell.solver)
        ]
        return sorted(found, key=lambda figure: figure.effective)

    def honest(self, effective: float) -> float:
        """The least error of uncached runs at so many evaluations; nan outside of those measured.

        Of each solver it is log-linear between its steps; the best solver counts.
        """
        solvers = {figure.cell.solver for figure in self.family(UNCACHED)}
        found = [between(self._points(solver), effective) for solver in solvers]
        return min((error for error in found if not math.isnan(error)), default=math.nan)

    def _points(self, solver: str) -> list[tuple[float, float]]:
        rows = self.family(UNCACHED, solver)
        return [(each.effective, each.error) for each in rows if each.error]


def panels(figures: Sequence[Figure]) -> list[Panel]:
    """One for each network, in the order they come."""
    models = dict.fromkeys(figure.cell.model for figure in figures)
    return [
        Panel(model, tuple(each for each in figures if each.cell.model == model))
        for model in models
    ]
