"""The last step of a table, which decides how its images look.

A step that was fitted to a distance extrapolates from its predictions: that lowers the squared
error and amplifies what the network does not know. Moved towards the last prediction alone, a table
loses little distance, and its images come nearer to those of the reference.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ...samplers.columns import Columns
from ...solvers import Schedule
from ...solvers.table import Table, add_terms
from .columns import judge_ends, reach_ends
from .objective import FeatureError
from .problem import Block, Problem

SHARES = (0.0, 0.25, 0.5, 1.0)
NEAR = 1.03  # times the least distance: what a last step may cost


@dataclass(frozen=True)
class LastRow:
    """A table whose last step was moved by a share, and its columns on validation."""

    share: float
    schedule: Schedule
    columns: Columns


def move_last_row(table: Table, share: float) -> Table:
    """Returns the table whose last step is moved by a share to the last prediction alone.

        x_N = (1 - b) (the step as it is) + b (r x + (alpha_N - r alpha) x0),  r = sigma_N / sigma

    with x and x0 the state and the prediction of that step, alpha and sigma those of the time that
    the network is asked at: at sigma_N = 0 it is x0, elsewhere DDIM's step (arXiv:2010.02502, eq.
    12). A share of 0 leaves the table as it is.

    Args:
        table: one whose last step asks for one prediction; see `ends_in_prediction`.
        share: b, from 0 to 1.
    """
    last, evaluation = len(table.steps) - 1, table.evaluations[-1]
    assert evaluation is not None
    node, end = evaluation.node, table.nodes[-1]
    ratio = end.sigma / node.sigma
    pure = {("x", last): ratio, ("x0", last): end.alpha - ratio * node.alpha}
    kept = {term: (1.0 - share) * weight for term, weight in table.steps[-1].items()}
    moved = add_terms(kept, pure, share)
    steps = [*table.steps[:-1], {term: weight for term, weight in moved.items() if weight != 0.0}]
    return Table(table.nodes, steps, table.evaluations, table.given)


def ends_in_prediction(table: Table) -> bool:
    """Returns whether the last step asks for one prediction; a table may bring its guidance."""
    return table.evaluations[-1] is not None and not table.guided


def make_last_rows(schedule: Schedule) -> Iterator[tuple[float, Schedule]]:
    """Yields each share with the schedule that has it, the schedule itself first."""
    yield 0.0, schedule
    table = schedule.table()
    for share in SHARES[1:] if ends_in_prediction(table) else ():
        moved = move_last_row(table, share)
        yield share, Schedule.of(moved, schedule.grid(), schedule.provenance)


def judge_last_rows(
    problem: Problem, schedule: Schedule, block: Block, features: FeatureError | None
) -> list[LastRow]:
    """Returns the last rows of a schedule whose ends are finite, with their columns on a block."""
    judged = []
    for share, made in make_last_rows(schedule):
        ends = reach_ends(problem, made, block)
        if ends is not None:
            judged.append(LastRow(share, made, judge_ends(ends, block, features)))
    return judged


def choose_last_row(rows: Sequence[LastRow]) -> LastRow:
    """Returns that of the least feature distance among those within 3 % of the least distance.

    Where nothing sees the images it is the nearest: whether a share helps there is not known.
    """
    least = min(row.columns.distance.value for row in rows)
    near = [row for row in rows if row.columns.distance.value <= NEAR * least]
    return min(near, key=_rank)


def _rank(row: LastRow) -> tuple[float, float]:
    seen = row.columns.features or row.columns.distance
    return seen.value, -row.share


def describe_choice(rows: Sequence[LastRow], chosen: LastRow) -> dict[str, Any]:
    """Returns what the artefact says of the choice."""
    figures = [{"share": row.share, **row.columns.model_dump(mode="json")} for row in rows]
    return {"share": chosen.share, "within": NEAR, "validation": figures}
