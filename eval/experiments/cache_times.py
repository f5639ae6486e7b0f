"""The seconds of `fewstep bench cache`: caches in turns with the run without one."""

import statistics
from collections.abc import Sequence

from ...models.errors import FewstepError
from ..bench.cell import Advance, Experiment
from ..bench.front_table import FrontRun
from ..bench.rows import ResultRow, SamplingCost
from .cache import TIME, CacheBench

Group = tuple[FrontRun, ...]


class CacheTimes(Experiment[Group, ResultRow]):
    """The seconds of a front: medians of runs in turns with the uncached one, as their ratio."""

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
        seconds: dict[FrontRun, list[float]] = {run: [] for run in (cell[0], *able)}
        for _ in range(self.repeats if able else 0):
            for run, taken in seconds.items():
                taken.append(self.bench.time_run(run))
        return [self._row(run, seconds[run], seconds[cell[0]]) for run in able]

    def _warm_up(self, run: FrontRun) -> bool:
        """Runs it once, and returns whether it runs at all."""
        try:
            self.bench.time_run(run)
        except FewstepError as error:
            self.bench.leave_out(run, error)
            return False
        return True

    def _row(self, run: FrontRun, taken: Sequence[float], uncached: Sequence[float]) -> ResultRow:
        median, usual = statistics.median(taken), statistics.median(uncached)
        cost = SamplingCost(nfe=run.nfe, rows=run.nfe, effective=0.0, flops=0.0, seconds=median)
        return ResultRow.now(self.bench.protocol_of(run, TIME), median / usual, cost=cost)
