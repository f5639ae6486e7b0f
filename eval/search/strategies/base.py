"""The task that a strategy works on, and the proposals it makes.

A strategy is a generator of proposals. Whoever runs it evaluates each proposal, writes it to the
log and comes back for the next one, until the strategy ends or its share of the budget is spent. A
strategy finds what was evaluated before it in the log: so the results of one are the seeds of the
next, and one that is started again goes on from the log.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any

from ..budget import Meter
from ..log import Candidate, Log, Trial
from ..objective import Objective
from ..problem import Block, Problem
from ..size import SearchSize, Unit
from ..space import Space


@dataclass(frozen=True)
class Proposal:
    """A schedule to be evaluated, and the id of the one it was made from."""

    schedule: Candidate
    parent: str | None = None


@dataclass(frozen=True, kw_only=True)
class Task:
    """The task of a strategy.

    problem:   the network, its teacher and the seed blocks.
    objective: what is to be lowered.
    space:     which decisions may vary.
    scored:    the training noises that proposals are scored on.
    size:      of each proposal.
    log:       every trial so far, and a folder for what a strategy wants to keep.
    meter:     how much of this strategy's share of the budget is used, 0 to 1.
    seed:      of everything random.
    settings:  further choices of strategies, by name; each has a default.
    """

    problem: Problem
    objective: Objective
    space: Space
    scored: Block
    size: SearchSize
    log: Log
    meter: Meter
    seed: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def nfe(self) -> int:
        """Network evaluations of each proposal, where these are its size."""
        assert self.size.unit == "nfe"
        return self.size.amount

    def best(self, count: int | None = None) -> list[Trial]:
        """Returns the best trials of this size."""
        return self.log.best(self.size, count)


def random_of(task: Task, mark: str) -> Random:
    """Returns the random numbers of one proposal; no others depend on them."""
    return Random(f"{task.seed} {task.size.amount} {task.log.worker} {mark}")


@dataclass(frozen=True)
class Strategy:
    """A way to propose schedules.

    name:    as it is asked for.
    propose: yields proposals; each is in the log when the next one is asked for.
    share:   of a budget, in proportion to those of the others that run.
    colour:  in the picture of a search.
    units:   of the sizes that it can search.
    again:   whether it is run again where it has ended, since a longer log may hold more for it.
    hand_made: whether it proposes what anyone could type; the best of that is the baseline.
    beyond:  whether its schedules are no linear tables; then `auto` leaves it out.
    check:   raises SettingError for a shape of samples and a number of evaluations that it has no
             schedules for.
    """

    name: str
    propose: Callable[[Task], Iterator[Proposal]]
    share: float
    colour: str
    units: tuple[Unit, ...] = ("nfe",)
    again: bool = False
    hand_made: bool = False
    beyond: bool = False
    check: Callable[[tuple[int, ...], int], object] | None = None
