"""Where the network is asked, and all weights fitted: schedules of an NFE, or of network rows.

A run of the teacher is taken once. From it placements are judged by the thousand; the best are
fitted to it, step after step, and scored; further ones are neighbours of the best by score. At a
number of rows a placement also says where the unconditional branch is asked.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from random import Random

from torch import Tensor

from ....models.schedule import TimeGrid
from ....solvers.artefact import Artefact
from ....solvers.table import BOTH
from ..fitting import fit_schedule
from ..log import Trial
from ..placement import Judge, Placement, mutate, search_placements
from ..trajectories import make_fine_grid, record_branches
from .base import Proposal, Task, random_of

TRIES = 4000  # mutations on the way to the first search_placements
KEEN = 5  # later ones are neighbours of so many of the best
DRAWN = 40  # of which the judge chooses one
FIRSTS = 8  # placements of an NFE, and one of each number of steps that rows can be spent on,
APART = 3  # nodes from each other


def propose(task: Task) -> Iterator[Proposal]:
    """Fitted placements without end; none of an NFE if the times may not vary."""
    if task.size.unit == "nfe" and "times" not in task.space.free:
        return
    states, gram = record_branches(task)
    search = _Search(task, make_fine_grid(task), states, Judge(gram))
    while (placed := search.next()) is not None:
        search.passed.add(placed)
        with task.log.claim(sha256(f"{placed}".encode()).hexdigest()) as mine:
            if mine and placed not in search.find_tried():
                yield search.proposal(placed)


@dataclass
class _Search:
    """The state of the search while placements are tried.

    passed: those that this process has tried or found another one at.
    """

    task: Task
    grid: TimeGrid
    states: Tensor
    judge: Judge
    passed: set[Placement] = field(default_factory=set)
    _first: Sequence[Placement] | None = None

    def proposal(self, placed: Placement) -> Proposal:
        """Fitted to the noises that candidates are scored on."""
        task = self.task
        return Proposal(fit_schedule(task.problem, task.scored, self.states, self.grid, placed))

    def next(self) -> Placement | None:
        """Returns one that was not tried: of the first ones, then near the best so far."""
        tried = self.find_tried()
        left = (placed for placed in self._firsts() if placed not in tried | self.passed)
        return next(left, None) or self._neighbour(tried)

    def find_tried(self) -> set[Placement]:
        """Returns the placements that any process has tried."""
        return {self._find_placement(trial.schedule) for trial in self._fits()}

    def _fits(self) -> list[Trial]:
        return [trial for trial in self.task.best() if trial.strategy == "fit"]

    def _find_placement(self, schedule: Artefact) -> Placement:
        times = [node.t for node in self.grid.nodes]
        nodes = tuple(times.index(t) for t in schedule.t[:-1])
        asked = zip(nodes, schedule.table().evaluations, strict=True)
        return Placement(nodes, tuple(i for i, each in asked if each and each.branches == BOTH))

    def _firsts(self) -> Sequence[Placement]:
        """Returns the best by the judge that differ."""
        if self._first is None:
            task, chosen = self.task, list[Placement]()
            rng = Random(f"{task.seed} placements")  # the same in every process
            for placed in search_placements(self.judge, task.size, TRIES, rng):
                near = [each for each in chosen if len(each.nodes) == len(placed.nodes)]
                count = 1 if placed.both else FIRSTS
                if len(near) < count and all(_are_apart(placed, each) for each in near):
                    chosen.append(placed)
            self._first = tuple(chosen)
        return self._first

    def _neighbour(self, tried: set[Placement]) -> Placement | None:
        own = len([trial for trial in self.task.log.own if trial.strategy == "fit"])
        rng = random_of(self.task, f"{own} {len(self.passed - tried)}")
        best = [
            self._find_placement(trial.schedule) for trial in self._fits()[:KEEN]
        ] or self._firsts()
        drawn = (mutate(rng.choice(best), self.judge.steps, rng) for _ in range(DRAWN))
        fresh = {placed for placed in drawn if placed is not None} - tried - self.passed
        return min(fresh, key=lambda placed: (self.judge(placed), str(placed)), default=None)


def _are_apart(placed: Placement, other: Placement) -> bool:
    return max(abs(a - b) for a, b in zip(placed.nodes, other.nodes, strict=True)) >= APART
