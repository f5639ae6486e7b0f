"""Strategies: ways to propose schedules. A new one is one file here and one row below."""

from ....models.errors import UnknownNameError
from ....models.registry import Registry
from ..size import Unit
from . import columns, correction, dmn, evolve, fit, grid, grow, klub, mask_refit, masks, refine
from .base import Proposal, Strategy, Task

BOTH: tuple[Unit, ...] = ("nfe", "rows")
FULL: tuple[Unit, ...] = ("full",)
ROWS = (  # in the order in which `auto` runs them
    Strategy("grid", grid.propose, share=0.15, colour="#888888", units=BOTH, hand_made=True),
    Strategy("dmn", dmn.propose, share=0.05, colour="#1f77b4"),
    Strategy("klub", klub.propose, share=0.05, colour="#17a2b8"),
    Strategy("fit", fit.propose, share=0.15, colour="#d9541e", units=BOTH, again=True),
    Strategy("evolve", evolve.propose, share=0.15, colour="#2a9d4a", again=True),
    Strategy("grow", grow.propose, share=0.05, colour="#e6a817", again=True),
    Strategy("refine", refine.propose, share=0.5, colour="#b5179e", units=BOTH, again=True),
    Strategy(
        "columns", columns.propose, share=0.4, colour="#4d908e", units=BOTH, again=True, beyond=True
    ),
    Strategy(
        "correction",
        correction.propose,
        share=0.4,
        colour="#7f4f24",
        beyond=True,
        check=correction.describe_correction,
    ),
    Strategy(
        "mask-even", masks.propose_even, share=0.05, colour="#666666", units=FULL, hand_made=True
    ),
    Strategy("mask-dp", masks.propose_best, share=0.15, colour="#2f4b7c", units=FULL),
    Strategy("mask-climb", masks.climb, share=0.5, colour="#d45087", units=FULL),
    Strategy("mask-anneal", masks.anneal, share=0.3, colour="#00876c", units=FULL),
    Strategy("mask-refit", mask_refit.propose, share=0.4, colour="#e08214", units=FULL),
)
STRATEGIES: Registry[Strategy] = Registry("strategy")
for _row in ROWS:
    STRATEGIES.add(_row.name, _row)

HAND_MADE = tuple(row.name for row in ROWS if row.hand_made)


def strategies_of(unit: Unit, beyond: bool = False) -> tuple[str, ...]:
    """Returns what `auto` runs for sizes of a unit.

    beyond: with those that go beyond linear tables, which run only where they are named.
    """
    return tuple(row.name for row in ROWS if unit in row.units and (beyond or not row.beyond))


def read_beyond(text: str | None) -> tuple[str, ...]:
    """Returns the strategies that a text names, of those that go beyond linear tables."""
    known = [row.name for row in ROWS if row.beyond]
    chosen = tuple(part.strip() for part in text.split(",")) if text is not None else ()
    for name in chosen:
        if name not in known:
            raise UnknownNameError("step beyond linear tables", name, known)
    return tuple(dict.fromkeys(chosen))


AUTO = strategies_of("nfe")

__all__ = [
    "AUTO",
    "HAND_MADE",
    "STRATEGIES",
    "Proposal",
    "Strategy",
    "Task",
    "read_beyond",
    "strategies_of",
]
