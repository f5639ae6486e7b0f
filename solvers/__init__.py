"""Solvers: steps x_t -> x_s behind one registry. A new one is one file here and one test row."""

from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING

from ..models.deprecated import serve_renamed
from .artefact import Executor
from .base import (
    Bound,
    Revisable,
    Revision,
    Solver,
    SolverInfo,
    SolverSettings,
    drive,
    dry_run,
    list_queries,
    names,
    register,
    revise_step,
    solver,
    take_solver,
)
from .linear import Encoder, LinearSolver, LowerOrderFinal
from .schedule_data import Schedule
from .step_schedule import StepSchedule

for _module in sorted(module.name for module in iter_modules(__path__)):
    import_module(f"{__name__}.{_module}")

__all__ = [
    "Bound",
    "Encoder",
    "Executor",
    "LinearSolver",
    "LowerOrderFinal",
    "Revisable",
    "Revision",
    "Schedule",
    "Solver",
    "SolverInfo",
    "SolverSettings",
    "StepSchedule",
    "drive",
    "dry_run",
    "list_queries",
    "names",
    "register",
    "revise_step",
    "solver",
    "take_solver",
]

if not TYPE_CHECKING:  # to type checkers there are no old names
    __getattr__ = serve_renamed(__name__)
