"""The branch, stage and step that a call of the network belongs to.

Our own sampler announces it. A pipeline of diffusers may name the branch with `cache_context`. If
it does not, the time of its calls tells: the same time again is a further branch. With named
branches, the same branch again at the same time is a further stage of the solver (Heun).
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

MOST = 8  # more calls at one time than branches and stages there can be: runs of a single step


@dataclass(frozen=True, slots=True)
class Place:
    """The place of a call in its run.

    branches: the branches whose rows it carries, in their order in the batch.
    stage:    which evaluation within a step of the solver.
    index:    of the call in its run, among those of its stage.
    """

    branches: tuple[str, ...]
    stage: int
    index: int
    batched: bool = False

    @property
    def key(self) -> tuple[int, str]:
        """Calls with the same key continue one history; batched branches share one."""
        return self.stage, "" if self.batched else self.branches[0]

    @property
    def label(self) -> str:
        return "+".join(self.branches)


@dataclass
class CallCounter:
    """Counts the steps of one run."""

    steps: Counter[int] = field(default_factory=Counter)
    time: float | None = None
    falls: bool | None = None
    seen: Counter[str] = field(default_factory=Counter)
    stages: set[int] = field(default_factory=set)

    def count_announced(self, branches: Sequence[str], stage: int) -> Place:
        """Counts a call of our own sampler: every one is a step of its stage."""
        index = self.steps[stage]
        self.steps[stage] += 1
        return Place(tuple(branches), stage, index, batched=True)

    def is_new_run(self, name: str | None, time: float | None) -> bool:
        """Tells whether the time went back, or stood still for longer than a step can be."""
        if time is None or self.time is None:
            return False
        if time == self.time:
            return self.seen[name or ""] >= MOST
        return self.falls is not None and self.falls != (time < self.time)

    def count_heard(self, name: str | None, time: float | None) -> Place:
        """Counts a call of a pipeline."""
        known = name or ""
        if time != self.time or (time is None and (known in self.seen or name is None)):
            self._start_step(time)
        turn = self.seen[known]
        self.seen[known] += 1
        stage = turn if name is not None else 0
        branch = name if name is not None else f"call {turn}"
        if stage not in self.stages:
            self.stages.add(stage)
            self.steps[stage] += 1
        return Place((branch,), stage, self.steps[stage] - 1)

    def _start_step(self, time: float | None) -> None:
        if time is not None and self.time is not None:
            self.falls = time < self.time
        self.time = time
        self.seen.clear()
        self.stages.clear()
