"""`fewstep bench inversion`: how well images come back from their noise, for every solver.

Real images are inverted and sampled again on the same grid, under their own class and without
guidance. The figure is the mean over images of PSNR in decibels, of what is clipped to [-1, 1].
Solvers stand side by side once at equal evaluations, once at equal steps. Finished figures are
appended to a file of JSON lines and are not measured again.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..models.errors import SettingError
from ..samplers.inversion import invert, reconstruct
from ..samplers.route import checked_solver, route
from ..samplers.sampler import Sampler
from .data import images_of
from .metrics.pairs import psnr
from .protocol import Strict, weights_sha256
from .row_store import KeyedRow, RowStore

FLOW_SOLVERS = ("euler", "uni-inv", "fireflow", "heun", "rf-solver", "rf-solver:theta=0.667")
SOLVERS = (*FLOW_SOLVERS, "rf-solver-3", "ode-rk4", "dpmpp-2m", "dpm-2m", "deis-3")
Budget = Literal["nfe", "steps"]


class Cell(Strict):
    """What one figure is of.

    by, count: the budget of the way to the noise: evaluations, or steps.
    start, images: which images of the data.
    """

    model: str
    weights: str | None
    data: str
    images: int
    solver: str
    grid: str | None
    t_min: float | None
    by: Budget
    count: int


class Figure(KeyedRow):
    """A finished cell. nfe: evaluations there, and back; seconds: per image, both ways."""

    cell: Cell
    psnr: float
    nfe: tuple[float, float]
    seconds: float

    @property
    def key(self) -> str:
        return self.cell.model_dump_json()


@dataclass(frozen=True, kw_only=True)
class RoundTrips:
    """The table to be measured. nfe, steps: columns; a budget that a solver cannot spend is left
    out.
    """

    model: str = "fashion-dit"
    data: str = "fashion-mnist-32:test"
    images: int = 256
    solvers: Sequence[str] = SOLVERS
    nfe: Sequence[int] = (12, 24, 60)
    steps: Sequence[int] = (15, 30)
    grid: str | None = None
    t_min: float | None = None
    batch: int = 32

    def cells(self, sampler: Sampler) -> list[Cell]:
        """All that can be measured; raises SettingError for a solver that cannot invert."""
        kinds: tuple[tuple[Budget, Sequence[int]], ...] = (("nfe", self.nfe), ("steps", self.steps))
        found = []
        for solver in self.solvers:
            found += [self._cell(solver, by, n) for by, counts in kinds for n in counts]
        return [cell for cell in found if _possible(cell, sampler)]

    def _cell(self, solver: str, by: Budget, count: int) -> Cell:
        return Cell(
            model=self.model,
            weights=weights_sha256(self.model),
            data=self.data,
            images=self.images,
            solver=solver,
            grid=self.grid,
            t_min=self.t_min,
            by=by,
            count=count,
        )

    def run(self, path: Path, *, progress: bool = False) -> list[Figure]:
        """Measures what the store at a path has not, and returns all figures of the table."""
        store = RowStore(path, Figure)
        store.check()
        for solver in self.solvers:
            checked_solver(solver)
        sampler = Sampler.from_pretrained(self.model)
        cells = {cell.model_dump_json(): cell for cell in self.cells(sampler)}
        waiting = [key for key in cells if key not in store.rows]
        read = cache(lambda: labelled_images(self.data, self.images))
        turns = store.turns(waiting, str, lambda key: key in store.rows)
        off = None if progress else True
        for key in tqdm(turns, total=len(waiting), disable=off, leave=False):
            store.append(self._measured(cells[key], sampler, *read()))
        return [store.rows[key] for key in cells]

    def _measured(
        self, cell: Cell, sampler: Sampler, images: Tensor, labels: Sequence[int]
    ) -> Figure:
        values, start = [], time.perf_counter()
        for i in range(0, len(images), self.batch):
            x, own = images[i : i + self.batch], labels[i : i + self.batch]
            classes = own if sampler.network.num_classes else None
            budget: dict[str, Any] = {cell.by: cell.count, "grid": cell.grid, "t_min": cell.t_min}
            there = invert(sampler, x, solver=cell.solver, class_labels=classes, **budget)
            back = reconstruct(sampler, there)
            values.append(psnr(back.samples.clamp(-1.0, 1.0), x))
        seconds = (time.perf_counter() - start) / len(images)
        nfe = there.ledger.nfe, back.ledger.nfe
        return Figure(cell=cell, psnr=float(torch.cat(values).mean()), nfe=nfe, seconds=seconds)


def lines(figures: Sequence[Figure]) -> Iterator[str]:
    """Two Markdown tables: PSNR at equal evaluations to the noise, and at equal steps."""
    titles = {"nfe": "evaluations each way", "steps": "steps each way"}
    for by, title in titles.items():
        found = {(f.cell.solver, f.cell.count): f for f in figures if f.cell.by == by}
        if not found:
            continue
        counts = sorted({count for _, count in found})
        yield f"| PSNR in dB, {title} | {' | '.join(map(str, counts))} |"
        yield f"|---|{'---:|' * len(counts)}"
        for solver in dict.fromkeys(name for name, _ in found):
            yield f"| {solver} | {' | '.join(_cell(found.get((solver, n))) for n in counts)} |"
        yield ""


def _cell(figure: Figure | None) -> str:
    return "-" if figure is None else f"{figure.psnr:.1f}"


def _possible(cell: Cell, sampler: Sampler) -> bool:
    """Whether the solver can spend the budget exactly, on this network's process."""
    try:
        route(
            sampler.network,
            cell.solver,
            grid=cell.grid,
            t_min=cell.t_min,
            **{cell.by: cell.count},
        )
    except SettingError as error:
        if "in exactly" not in str(error):
            raise
        return False
    return True


def labelled_images(data: str, n: int) -> tuple[Tensor, list[int]]:
    """The first n images in [-1, 1] and their classes."""
    found = images_of(data).first(n)
    if found.labels is None:
        raise SettingError(f"{data} has no classes; give fashion-mnist-32:test")
    return torch.cat(list(found.batches())).float() / 127.5 - 1.0, found.labels.tolist()
