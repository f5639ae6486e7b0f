"""Strategies: ways to propose schedules. A new one is one file here and one row below."""

from ....models.registry import Registry
from . import dmn, evolve, fit, grid, grow, klub, refine
from .base import Proposal, Strategy, Task

ROWS = (  # in the order in which `auto` runs them
    Strategy("grid", grid.propose, share=0.15, colour="#888888", of_rows=True, hand_made=True),
    Strategy("dmn", dmn.propose, share=0.05, colour="#1f77b4"),
    Strategy("klub", klub.propose, share=0.05, colour="#17a2b8"),
    Strategy("fit", fit.propose, share=0.15, colour="#d9541e", of_rows=True, again=True),
    Strategy("evolve", evolve.propose, share=0.15, colour="#2a9d4a", again=True),
    Strategy("grow", grow.propose, share=0.05, colour="#e6a817", again=True),
    Strategy("refine", refine.propose, share=0.5, colour="#b5179e", of_rows=True, again=True),
)
STRATEGIES: Registry[Strategy] = Registry("strategy")
for _row in ROWS:
    STRATEGIES.add(_row.name, _row)

AUTO = tuple(row.name for row in ROWS)
OF_ROWS = tuple(row.name for row in ROWS if row.of_rows)
HAND_MADE = tuple(row.name for row in ROWS if row.hand_made)

__all__ = ["AUTO", "HAND_MADE", "OF_ROWS", "STRATEGIES", "Proposal", "Strategy", "Task"]
