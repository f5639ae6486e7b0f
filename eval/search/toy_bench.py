"""`fewstep bench search-toy`: named solvers, evolution and refinement on the toy."""

import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ...models.errors import SettingError
from ...models.schedule import EDM
from ...solvers.artefact import Artefact
from ...solvers.mean_image import MeanImage
from .budget import Budget
from .objective import objective, rmse
from .problem import Block
from .run import run
from .search import Search
from .size import SearchSize
from .space import DEFAULT, Space
from .toy import encode_named, table_block, toy, toy_mean

NAMED = (
    ("ddim", "karras"),
    ("dpmpp-2m", "logsnr"),
    ("dpmpp-2m", "karras"),
    ("unipc-3", "logsnr"),
)


@dataclass(frozen=True)
class ToyBench:
    """The toy at an NFE.

    few:        noises that candidates are scored on.
    many:       noises that refinement learns from.
    candidates: of each search.
    """

    nfe: int = 5
    few: int = 256
    many: int = 4096
    candidates: int = 1500
    seed: int = 0

    def __post_init__(self) -> None:
        if self.nfe < 1 or self.candidates < 1 or self.many < 1:
            raise SettingError("NFE, candidates and noises must be at least 1")

    @cached_property
    def test(self) -> Block:
        return table_block()

    def schedules(self) -> Iterator[tuple[str, Artefact, float]]:
        """(what it is, the schedule, seconds it took to find)."""
        for solver, grid in NAMED:
            yield f"{solver} on {grid}", encode_named(solver, grid, self.nfe), 0.0
        yield "evolve", *self._run_search(("evolve",))
        yield "grid, then refine", *self._run_search(("grid", "refine"), noises=self.many)
        both, afs = ("evolve", "refine"), (toy_mean(),)
        yield "evolve with AFS", *self._run_search(("evolve",), afs)
        yield "evolve with AFS, then refine", *self._run_search(both, afs, noises=self.many)

    def error(self, schedule: Artefact) -> tuple[float, float]:
        """On the test noises: RMSE, and the median of each noise's own."""
        ends = toy().ends(schedule, self.test)
        each = (ends - self.test.ends).square().mean(1).sqrt()
        return rmse(ends, self.test), float(each.median())

    def _run_search(
        self,
        strategies: tuple[str, ...],
        afs: tuple[MeanImage, ...] = (),
        noises: int | None = None,
    ) -> tuple[Artefact, float]:
        """Returns what strategies find with so many candidates, and the seconds it took."""
        start, problem = time.perf_counter(), toy((noises or self.few, 512, 1))
        free = DEFAULT - {"ends"} | ({"afs"} if afs else set())
        with tempfile.TemporaryDirectory() as folder:
            search = Search(
                problem=problem,
                objective=objective("terminal", problem.network),
                space=Space(process=EDM(), free=free, ends=(EDM().t_min,), afs=afs),
                size=SearchSize(self.nfe),
                strategies=strategies,
                budget=Budget("candidates", self.candidates),
                folder=Path(folder),
                seed=self.seed,
                scored=self.few,
            )
            return run(search).schedule, time.perf_counter() - start


def report(bench: ToyBench) -> Iterator[str]:
    """Yields the lines of the table; the gain is the baseline's RMSE over that of the row."""
    yield f"{'NFE ' + str(bench.nfe):30}{'rms':>8}{'median':>8}{'gain':>7}{'seconds':>9}"
    baseline, _ = bench.error(encode_named("dpmpp-2m", "logsnr", bench.nfe))
    for label, schedule, seconds in bench.schedules():
        error, median = bench.error(schedule)
        cells = f"{error:8.4f}{median:8.4f}{baseline / error:6.2f}x{seconds:9.1f}"
        yield f"{label:30}{cells}"
