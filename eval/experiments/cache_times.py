"""The seconds of `fewstep bench cache`: caches in turns with the run without one."""

from collections.abc import Sequence
from functools import partial
from statistics import median

import numpy as np

from ...models.errors import FewstepError
from ..bench.cell import Advance, Experiment
from ..bench.front_table import FrontRun
from ..bench.rows import ResultRow, SamplingCost
from ..bench.timing import record_turns
from .cache import TIME, CacheBench

Group = tuple[FrontRun, ...]


class CacheTimes(Experiment[Group, ResultRow]):
    """The seconds of a front, over those of the uncached run in the same turn: their median."""

    unit = "group"

    def __init__(self, bench: CacheBench, repeats: int) -> None:
        self.bench, self.repeats = bench, repeats
        self.store, self.remarks = bench.store, bench.remarks

    def cells(self) -> list[Group]:
        return self.bench.front.groups()

    def find_rows(self, cell: Group) -> list[ResultRow]:
        rows = (self.bench.find_row(run, TIME) for run in cell[1:])
        return [row for row in rows if row is not None]

    def is_done(self, cell: Group) -> bool:
        return len(self.find_rows(cell)) == len(cell) - 1

    def measure(self, cell: Group, advance: Advance) -> list[ResultRow]:
        """Returns the ratios of those that have none yet and can be run."""
        missing = [run for run in cell[1:] if self.bench.find_row(run, TIME) is None]
        able = [run for run in missing if self._warm_up(run)]
        works = {run: partial(self.bench.time_run, run) for run in (cell[0], *able)} if able else {}
        seconds = record_turns(works, self.repeats)
        return [self._row(run, seconds[run], seconds[cell[0]]) for run in able]

    def _warm_up(self, run: FrontRun) -> bool:
        """Runs it once, and returns whether it runs at all."""
        try:
            self.bench.time_run(run)
        except FewstepError as error:
            self.bench.leave_out(run, error)
            return False
        return True

    def _row(self, run: FrontRun, seconds: Sequence[float], uncached: Sequence[float]) -> ResultRow:
        """Returns the row of a run; a slow moment of the machine hits both runs of a turn."""
        ratios = [mine / other for mine, other in zip(seconds, uncached, strict=True)]
        low, middle, high = np.quantile(ratios, [0.25, 0.5, 0.75]).tolist()
        cost = SamplingCost(
            nfe=run.nfe, rows=run.nfe, effective=0.0, flops=0.0, seconds=median(seconds)
        )
        protocol = self.bench.protocol_of(run, TIME)
        return ResultRow.now(protocol, middle, cost=cost, quartiles=(low, high))
