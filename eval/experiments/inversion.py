"""`fewstep bench inversion`: how well images come back from their noise, for every solver.

Real images are inverted and sampled again on the same grid, under their own class and without
guidance. The figure is the mean over images of PSNR in decibels, of what is clipped to [-1, 1].
Solvers stand side by side once at equal evaluations, once at equal steps.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ...models.errors import SettingError
from ...models.reading import StrictModel
from ...models.weights import hash_weights
from ...samplers.inversion import invert, reconstruct
from ...samplers.inversion_plan import plan_inversion, take_invertible
from ...samplers.sampler import Sampler
from ..bench.cell import Advance, Experiment
from ..bench.store import KeyedRow, RowStore
from ..bench.table import markdown_table
from ..data import images_of
from ..metrics.pairs import psnr

FLOW_SOLVERS = ("euler", "uni-inv", "fireflow", "heun", "rf-solver", "rf-solver:theta=0.667")
SOLVERS = (*FLOW_SOLVERS, "rf-solver-3", "ode-rk4", "dpmpp-2m", "dpm-2m", "deis-3")
Budget = Literal["nfe", "steps"]


class RoundTrip(StrictModel):
    """A solver and its budget, on the images of a table.

    by, count: the budget of the way to the noise: evaluations, or steps.
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


class RoundTripRow(KeyedRow):
    """A finished round trip. nfe: evaluations there, and back; seconds: per image, both ways."""

    cell: RoundTrip
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

    def cells(self, sampler: Sampler) -> list[RoundTrip]:
        """Returns what can be measured; raises SettingError for a solver that cannot invert."""
        kinds: tuple[tuple[Budget, Sequence[int]], ...] = (("nfe", self.nfe), ("steps", self.steps))
        cells = []
        for solver in self.solvers:
            cells += [self._cell(solver, by, n) for by, counts in kinds for n in counts]
        return [cell for cell in cells if _is_possible(cell, sampler)]

    def _cell(self, solver: str, by: Budget, count: int) -> RoundTrip:
        return RoundTrip(
            model=self.model,
            weights=hash_weights(self.model, whole=True),
            data=self.data,
            images=self.images,
            solver=solver,
            grid=self.grid,
            t_min=self.t_min,
            by=by,
            count=count,
        )


class InversionBench(Experiment[RoundTrip, RoundTripRow]):
    """A table of round trips on this machine; its rows lie in the file at a path."""

    def __init__(self, table: RoundTrips, path: Path) -> None:
        self.table, self.store, self.remarks = table, RowStore(path, RoundTripRow), []
        self.store.check()
        for solver in table.solvers:
            take_invertible(solver)
        self.sampler = Sampler.from_pretrained(table.model)
        self._cells = table.cells(self.sampler)
        self._images = cache(lambda: load_labelled_images(table.data, table.images))

    def cells(self) -> list[RoundTrip]:
        return self._cells

    def identify(self, cell: RoundTrip) -> str:
        return cell.model_dump_json()

    def measure(self, cell: RoundTrip, advance: Advance) -> list[RoundTripRow]:
        """Returns the row of one round trip."""
        (images, labels), size = self._images(), self.table.batch
        classes = labels if self.sampler.network.num_classes else None
        budget: dict[str, Any] = {cell.by: cell.count, "grid": cell.grid, "t_min": cell.t_min}
        values, start = [], time.perf_counter()
        for i in range(0, len(images), size):
            x, part = images[i : i + size], None if classes is None else classes[i : i + size]
            there = invert(self.sampler, x, solver=cell.solver, class_labels=part, **budget)
            back = reconstruct(self.sampler, there)
            values.append(psnr(back.samples.clamp(-1.0, 1.0), x))
        seconds = (time.perf_counter() - start) / len(images)
        nfe, mean = (there.ledger.nfe, back.ledger.nfe), float(torch.cat(values).mean())
        return [RoundTripRow(cell=cell, psnr=mean, nfe=nfe, seconds=seconds)]


def lines(rows: Sequence[RoundTripRow]) -> Iterator[str]:
    """Yields two Markdown tables: PSNR at equal evaluations to the noise, and at equal steps."""
    titles = {"nfe": "evaluations each way", "steps": "steps each way"}
    for by, title in titles.items():
        table = {(row.cell.solver, row.cell.count): row for row in rows if row.cell.by == by}
        if not table:
            continue
        counts = sorted({count for _, count in table})
        lines = [(f"PSNR in dB, {title}", *map(str, counts))]
        for solver in dict.fromkeys(name for name, _ in table):
            lines.append((solver, *(_decibels(table.get((solver, n))) for n in counts)))
        yield from markdown_table(lines)
        yield ""


def _decibels(row: RoundTripRow | None) -> str:
    return "-" if row is None else f"{row.psnr:.1f}"


def _is_possible(cell: RoundTrip, sampler: Sampler) -> bool:
    """Returns whether the solver can spend the budget exactly, on this network's process."""
    try:
        plan_inversion(
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


def load_labelled_images(data: str, n: int) -> tuple[Tensor, list[int]]:
    """Returns the first n images in [-1, 1] and their classes."""
    images = images_of(data).first(n)
    if images.labels is None:
        raise SettingError(f"{data} has no classes; give fashion-mnist-32:test")
    return torch.cat(list(images.batches())).float() / 127.5 - 1.0, images.labels.tolist()
