"""`fewstep bench fid-nfe`: a figure of image quality against network evaluations.

Every cell of a sweep is drawn batch by batch, quantised, taken through the extractor and measured;
memory does not grow with n. Finished cells are in the store and are not drawn again; of a cell that
takes long, what is done is saved beside the store, and a killed run goes on there.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from tqdm.auto import tqdm

from ..models.denoiser import Branch, Denoiser, Network
from ..models.errors import FewstepError
from ..models.files import make_folder, remove_file
from ..models.ledger import Ledger
from ..models.load import load
from ..samplers.images import contact_sheet, to_pil, to_uint8
from ..samplers.run import Run, save_png
from ..samplers.sampler import Result, Sampler
from ..samplers.source import write_png
from .data import images_of
from .distributed import Team
from .judge import Judge
from .partial import Partial, merged
from .protocol import Drawn, Measure, Protocol, Real
from .rivals import RivalSampler
from .store import Clock, Cost, Row, Store
from .sweep import Cell, Plan, Sweep, plan_cells

SAVE_EVERY = 30.0  # seconds between two savings of a cell's sums
SAVE_REST = 50.0  # and at least so many times as long as a saving takes
PICTURES = 10  # images of each setting that are kept for the report
Draw = Callable[[Sequence[int]], Result]


FLOORS = {"fashion-mnist": "fashion-mnist-32:test", "fashion-mnist-32": "fashion-mnist-32:test"}
FLOORS |= {"cifar10": "cifar10:test"}


def floor_cells(sweep: Sweep, measure: Measure) -> tuple[list[Cell], str]:
    """The cells of real images, as many blocks as there are images, and a remark if there are none.

    Raises:
        FewstepError: if a floor was asked for and cannot be had.
    """
    source = sweep.floor or FLOORS.get(measure.reference, "")
    if not source:
        return [], f"no floor: {measure.reference!r} has no test set known here; give --floor"
    try:
        images = images_of(source)
    except FewstepError as error:
        if sweep.floor is not None:
            raise
        return [], f"no floor: {error}"
    blocks = min(sweep.blocks, len(images) // measure.n)
    if not blocks:
        return [], f"no floor: {source} has {len(images)} images, fewer than n = {measure.n}"
    cells = []
    for block in range(blocks):
        rows = f"{block * measure.n}-{(block + 1) * measure.n - 1}"
        real = Real(source=source, sha256=images.sha256, rows=rows)
        cells.append(Cell(Protocol(images=real, measure=measure), block, 0, 0.0))
    return cells, ""


@dataclass
class Bench:
    """A sweep on this machine: what is to be done, and doing it.

    store: where rows go and come from.
    team:  the processes that share the work.
    """

    sweep: Sweep
    judge: Judge
    store: Store
    team: Team = field(default_factory=Team)

    def __post_init__(self) -> None:
        self._network = lru_cache(maxsize=2)(self._loaded)
        self._flops = cache(lambda model: flops_per_row(self._network(model)))
        floor, remark = self.team.led(lambda: floor_cells(self.sweep, self.judge.measure))
        drawn = plan_cells(self.sweep, self.judge.measure, self._network)
        self.plan = Plan([*floor, *drawn.cells], [*filter(None, [remark]), *drawn.refused])

    def _loaded(self, model: str) -> Network:
        return load(model, dtype=self.sweep.dtype, device=self.team.device)

    def waiting(self) -> list[Cell]:
        """The cells that are not in the store, as rank 0 sees it."""
        return self.team.led(lambda: [c for c in self.plan.cells if not self._is_done(c)])

    def rows(self) -> list[Row]:
        """The rows of this sweep that are in the store, in the order of its cells."""
        found = (self.store.rows.get(cell.protocol.hash) for cell in self.plan.cells)
        return [row for row in found if row is not None]

    def run(self, progress: bool = False) -> Iterator[Row]:
        """Measures what is waiting and yields each row once it is in the store.

        Raises:
            FewstepError: if a cell cannot be drawn or measured; those before it are kept.
        """
        waiting = self.waiting()
        shared = sum(cell.rows for cell in waiting) / self.team.size
        off = None if progress and self.team.leads else True
        with tqdm(total=round(shared), unit="row", unit_scale=True, disable=off) as bar:
            for cell in self._turns(waiting):
                bar.set_description(f"block {cell.block} NFE {cell.nfe or '-'}")
                row = self.measure(cell, bar.update)
                if self.team.leads:
                    self.store.append(row)
                    yield row
                remove_file(self._part_path(cell))

    def _turns(self, waiting: Sequence[Cell]) -> Iterator[Cell]:
        """The cells that are this team's to measure: rank 0 claims them from other teams."""
        for cell in self.plan.cells:
            if cell not in waiting:  # a process that was killed after its row has left its part
                remove_file(self._part_path(cell))
        turns = self.store.turns(waiting, lambda cell: cell.protocol.hash, self._is_done)
        while (mine := self.team.led(lambda: next(turns, None))) is not None:
            yield mine

    def _is_done(self, cell: Cell) -> bool:
        return cell.protocol.hash in self.store.rows

    def measure(self, cell: Cell, advance: Callable[[float], Any] = lambda rows: None) -> Row:
        """The row of one cell; that of rank 0 is of all processes."""
        part = self.team.together(lambda: self._gather(cell, advance))
        start = time.perf_counter()
        total = merged(self.team.collect(part))
        value = self.team.led(lambda: self.judge.value(total))
        clock = total.clock.model_copy(
            update={"total": total.clock.total + time.perf_counter() - start}
        )
        return Row.now(
            cell.protocol,
            value,
            cost=self._cost(cell, total),
            clock=clock,
            processes=self.team.size,
        )

    def _cost(self, cell: Cell, total: Partial) -> Cost | None:
        if isinstance(cell.protocol.images, Real):
            return None
        ledger = total.ledger
        effective = total.effective / ledger.images
        return Cost(
            nfe=ledger.nfe,
            rows=ledger.rows_per_image,
            effective=effective,
            flops=effective * self._flops(cell.protocol.images.run.model),
            seconds=ledger.seconds / ledger.images,
        )

    def _part_path(self, cell: Cell) -> Path:
        team, batch = self.team, self.sweep.batch
        name = f"{cell.protocol.hash}-{batch}-{team.rank}-{team.size}.npz"
        return self.store.parts / name

    def _gather(self, cell: Cell, advance: Callable[[float], Any]) -> Partial:
        """This process's share of the images, drawn and taken through the extractor."""
        part = Partial.empty(self.judge.extractor.outputs, self.judge.metric.needs)
        path, saved, pause = self._part_path(cell), time.perf_counter(), SAVE_EVERY
        part.load(path)
        advance(part.ledger.rows)
        start = time.perf_counter()
        for images, ledger in self._batches(cell, part.done):
            extracted = time.perf_counter()
            part.add(self.judge.extractor(images))
            now = time.perf_counter()
            spent = {"features": now - extracted, "total": now - start}
            part.count(ledger, Clock(sampling=ledger.seconds, **spent))
            start = now
            advance(ledger.rows)
            if now - saved > pause:
                make_folder(path.parent)
                part.save(path)
                saved = time.perf_counter()
                pause = max(SAVE_EVERY, SAVE_REST * (saved - now))
        part.count(Ledger(), Clock(total=time.perf_counter() - start))
        return part

    def _batches(self, cell: Cell, done: int) -> Iterator[tuple[Tensor, Ledger]]:
        """uint8 (B, C, H, W) and what drawing them cost, without the first `done` batches."""
        images, size = cell.protocol.images, self.sweep.batch
        if isinstance(images, Real):
            yield from self._real(images, done)
            return
        chunks = [images.run.seeds[i : i + size] for i in range(0, images.count, size)]
        draw = drawing(images, self._network(images.run.model))
        for seeds in self.team.share(chunks)[done:]:
            result = draw(seeds)
            if seeds[0] == 0:  # the first images of the first block
                self._keep_pictures(cell.protocol, images, result)
            yield quantised(result.samples), result.ledger

    def _real(self, images: Real, done: int) -> Iterator[tuple[Tensor, Ledger]]:
        first, last = map(int, images.rows.split("-"))
        chunks = images_of(images.source).part(first, last + 1).batches(self.sweep.batch)
        for i, chunk in enumerate(chunks):
            if i % self.team.size == self.team.rank and i // self.team.size >= done:
                yield chunk, Ledger(images=len(chunk))

    def _keep_pictures(self, protocol: Protocol, images: Drawn, result: Result) -> None:
        """The first images in two rows, for the report; the picture can be replayed."""
        path = picture_path(self.store.path, protocol.hash)
        make_folder(path.parent)
        sheet = contact_sheet(to_pil(result.samples[:PICTURES]), columns=PICTURES // 2)
        run = _run_of(images, images.run.seeds[:PICTURES])
        if images.rival is None:
            save_png(sheet, path, run, result.ledger.nfe)
        else:
            write_png(sheet, path)


def picture_path(store: Path, digest: str) -> Path:
    """Where a cell's first images are kept."""
    return store.with_name(f"{store.name}.pictures") / f"{digest}.png"


def quantised(samples: Tensor) -> Tensor:
    """(B, C, H, W) in [-1, 1] as uint8 of the same shape, by the rule of `to_uint8`."""
    return to_uint8(samples).permute(0, 3, 1, 2).contiguous()


def drawing(images: Drawn, network: Network) -> Draw:
    """A function that draws the images of some seeds, as the protocol says."""
    if images.rival is None:
        sampler = Sampler(network)
        return lambda seeds: _run_of(images, seeds).execute(sampler)
    rival = RivalSampler(network, images.rival, images.run.nfe or 0)

    def draw(seeds: Sequence[int]) -> Result:
        run = _run_of(images, seeds)
        labels, guidance = run.classes, run.guidance()
        return rival(seeds, class_labels=labels, guidance=guidance, batch=run.batch)

    return draw


def _run_of(images: Drawn, seeds: Sequence[int]) -> Run:
    """The run of some seeds, with their labels by the rule."""
    labels = images.labels_of(seeds)
    return images.run.model_copy(update={"seeds": tuple(seeds), "classes": labels})


def flops_per_row(network: Network) -> float:
    """Floating-point operations of one network row, two per multiplication and addition.

    Attention is counted as the matrix products it is: on a CPU its fused kernel would not be seen.
    """
    label = torch.zeros(1, dtype=torch.long, device=network.device)
    conditions = {Branch.COND: {"class_labels": label} if network.num_classes else {}}
    x = torch.zeros(1, *network.shape, device=network.device)
    node = network.schedule.at(0.5 * (network.schedule.t_min + network.schedule.t_max))
    counter = FlopCounterMode(display=False)
    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), counter:
        Denoiser(network, conditions).x0(x, node)
    return float(counter.get_total_flops())
