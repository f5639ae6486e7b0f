"""Evolution as in S^3 (arXiv:2312.07243, and the authors' search): one child after the other.

Parents are the best trials so far, whatever strategy made them. A child crosses two of them or
copies one, is mutate, and enters the log with its score; there are no generations. The n-th child
of a worker depends on the seed, on n and on the log alone, so a search goes on as if it had never
stopped.
"""

from collections.abc import Iterator, Mapping
from random import Random

from ....solvers import StepSchedule
from ..draft import project
from ..log import Candidate, Trial
from ..space import make_grid
from ..variation import Exhausted, cross, draw_schedule, mutate, resize_schedule
from .base import Proposal, Task, random_of
from .named import SOLVERS, propose_named

POOL = 20  # parents are drawn from so many of the best
CROSSED = 0.3  # share of the children that have two parents
NEIGHBOURS = 0.1  # share of the parents that come from a search at one evaluation more or fewer
SEED_GRIDS = ("logsnr", "karras", "uniform", "beta")
TRIES = 200  # to find a child that is not in the log


def propose(task: Task) -> Iterator[Proposal]:
    """Children without end; seeds are the trials in the log, or else named solvers."""
    pools = Pools(task, task.log.trials)
    if not any(is_seed(task, trial) for trial in task.log.trials.values()):
        yield from propose_named_seeds(task)
    while True:
        made = len([trial for trial in task.log.own if _is_child(task, trial)])
        child = _new_child(task, pools, _nth(task, made))
        if child is None:
            return  # the space is small, and all of it was tried
        yield child


def propose_named_seeds(task: Task) -> Iterator[Proposal]:
    """Named solvers on the usual grids, as the first parents."""
    for grid in SEED_GRIDS:
        for solver in SOLVERS:
            nodes = make_grid(task.space, grid, task.nfe)
            yield propose_named(task, solver, nodes, f"{solver} on {grid}")


def is_seed(task: Task, trial: Trial) -> bool:
    """Returns whether another strategy has tried something at this NFE."""
    return trial.strategy != "evolve" and trial.schedule.nfe == task.nfe


def _is_child(task: Task, trial: Trial) -> bool:
    """Returns whether a trial comes from evolution at this NFE."""
    return trial.strategy == "evolve" and trial.schedule.nfe == task.nfe


def _nth(task: Task, n: int) -> Random:
    return random_of(task, str(n))


class Pools:
    """The best of some trials that lie in the space, for each NFE; follows them as they grow."""

    def __init__(self, task: Task, trials: Mapping[str, Trial]) -> None:
        self.task = task
        self.trials = trials
        self._seen: set[str] = set()
        self._kept: dict[int, list[Trial]] = {}

    def of(self, nfe: int) -> list[Trial]:
        """At most POOL trials, best first."""
        if len(self.trials) > len(self._seen):
            for name in [each for each in self.trials if each not in self._seen]:
                self._seen.add(name)
                self._enter(self.trials[name])
        return self._kept.get(nfe, [])

    def _enter(self, trial: Trial) -> None:
        best = self._kept.setdefault(trial.schedule.nfe, [])
        full = len(best) == POOL and trial.rank > best[-1].rank
        if trial.score is None or full or not self._inside(trial.schedule):
            return
        best.append(trial)
        best.sort(key=lambda each: each.rank)
        del best[POOL:]

    def _inside(self, schedule: Candidate) -> bool:
        """Returns whether all it has are decisions of the space: no free weights, no table."""
        if not isinstance(schedule, StepSchedule) or schedule.compiled is not None:
            return False
        return project(self.task.space, schedule).schedule_id == schedule.schedule_id


def _new_child(task: Task, pools: Pools, rng: Random) -> Proposal | None:
    """Returns a child that was not tried yet, a random one as long as there are too few parents.

    None if there seem to be no others left in the space.
    """
    pool = pools.of(task.nfe)
    for attempt in range(TRIES):
        filling = not pool or (len(pool) < POOL and attempt < TRIES // 2)
        try:
            child = _draw_one(task, rng) if filling else _child(task, pools, rng)
        except Exhausted:
            continue
        if child.schedule.schedule_id not in pools.trials:
            return child
    return None


def _draw_one(task: Task, rng: Random) -> Proposal:
    return Proposal(draw_schedule(task.space, task.nfe, rng))


def _child(task: Task, pools: Pools, rng: Random) -> Proposal:
    schedule, name = _parent(task, pools, rng)
    if rng.random() < CROSSED:
        schedule = cross(task.space, schedule, _parent(task, pools, rng)[0], rng)
    return Proposal(mutate(task.space, schedule, rng), name)


def _parent(task: Task, pools: Pools, rng: Random) -> tuple[StepSchedule, str]:
    """Returns one of the pool with its id, now and then one of a neighbouring NFE cut to size."""
    near = [n for n in (task.nfe - 1, task.nfe + 1) if pools.of(n)]
    resize = bool(near) and rng.random() < NEIGHBOURS
    parent = rng.choice(pools.of(rng.choice(near) if resize else task.nfe))
    schedule = parent.schedule
    assert isinstance(schedule, StepSchedule)  # no other is in a pool
    return resize_schedule(task.space, schedule, task.nfe, rng) if resize else schedule, parent.id
