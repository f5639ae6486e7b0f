"""`fewstep bench fid-nfe`: a figure of image quality against network evaluations.

Every cell of a sweep is drawn batch by batch, quantised, taken through the extractor and measured;
memory does not grow with n. Finished cells are in the store and are not drawn again; of a cell that
takes long, what is done is saved beside the store, and a killed run goes on there.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ...models.denoiser import Denoiser, Network
from ...models.errors import FewstepError
from ...models.files import make_folder, remove_file
from ...models.ledger import Ledger
from ...models.load import load
from ...models.speed import Speed
from ...samplers.conditions import make_branches
from ...samplers.images import make_contact_sheet, to_pil, write_png
from ...samplers.run_record import Run, save_png
from ...samplers.sampler import Result, Sampler
from ..bench.cell import Advance, Experiment
from ..bench.protocol import Drawn, Measure, Protocol, Real
from ..bench.rows import ResultRow, ResultStore, SamplingCost, TimeSpent
from ..bench.team import Team
from ..data import images_of
from .fid_converged import ConvergedSamples, quantise
from .fid_evaluator import ImageEvaluator, Partial, merge_parts
from .fid_joint import check_joint
from .fid_plan import QualityCell, plan_cells
from .fid_sweep import Sweep
from .rivals import RivalSampler

SAVE_EVERY = 30.0  # seconds between two savings of a cell's sums
SAVE_REST = 50.0  # and at least so many times as long as a saving takes
PICTURES = 10  # images of each setting that are kept for the report
Draw = Callable[[Sequence[int]], Result]


FLOORS = {name: f"{name}:test" for name in ("fashion-mnist-32", "mnist", "mnist-32", "cifar10")}
FLOORS |= {"fashion-mnist": "fashion-mnist-32:test"}


def floor_cells(sweep: Sweep, measure: Measure) -> tuple[list[QualityCell], str]:
    """Returns the cells of real images, as many as there are, and a remark if there are none.

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
        cells.append(QualityCell(Protocol(images=real, measure=measure), block, 0, 0.0))
    return cells, ""


@dataclass(frozen=True)
class DrawnBatch:
    """Some images of a cell.

    places:  in its block of seeds.
    images:  uint8 (B, C, H, W).
    samples: what they were made of; None for real ones.
    """

    places: range
    images: Tensor
    ledger: Ledger
    samples: Tensor | None = None


class QualityBench(Experiment[QualityCell, ResultRow]):
    """A sweep on this machine.

    store: where rows go and come from; pictures of the cells and parts of them lie beside it.
    team:  the processes that share the work.
    """

    unit = "row"

    def __init__(
        self,
        sweep: Sweep,
        evaluator: ImageEvaluator,
        store: ResultStore,
        team: Team | None = None,
    ) -> None:
        self.sweep, self.evaluator, self.store = sweep, evaluator, store
        self.team = team = team or Team()
        self._network = lru_cache(maxsize=2)(self._load)
        self._flops = cache(lambda model: flops_per_row(self._network(model)))
        folder = store.path.with_name(f"{store.path.name}.converged")
        self._targets = ConvergedSamples(folder, self._draw_samples, evaluator.extractor)
        floor, remark = team.lead(lambda: floor_cells(sweep, evaluator.measure))
        plan = plan_cells(sweep, evaluator.measure, self._network)
        self._cells = [*floor, *plan.cells]
        team.lead(self._check_store)
        self.remarks = [*filter(None, [remark]), *plan.refused]

    def _load(self, model: str) -> Network:
        speed = Speed(channels_last=self.sweep.channels_last)
        return load(model, dtype=self.sweep.dtype, device=self.team.device, speed=speed)

    def _check_store(self) -> None:
        """Raises SettingError for a store of other weights or other seeds."""
        measure, rows = self.evaluator.measure, self.store.rows.values()
        alike = [row for row in rows if row.protocol.measure == measure]
        check_joint(alike, [cell.protocol for cell in self._cells])

    def _draw_samples(self, images: Drawn, seeds: Sequence[int]) -> Tensor:
        return make_draw(images, self._network(images.run.model))(seeds).samples

    def cells(self) -> list[QualityCell]:
        return self._cells

    def identify(self, cell: QualityCell) -> str:
        return cell.protocol.hash

    def weigh(self, cell: QualityCell) -> float:
        return cell.rows

    def describe(self, cell: QualityCell) -> str:
        return f"block {cell.block} NFE {cell.nfe or '-'}"

    def clear(self, cell: QualityCell) -> None:
        remove_file(self._part_path(cell))

    def measure(self, cell: QualityCell, advance: Advance) -> list[ResultRow]:
        """Returns the row of one cell; that of rank 0 is of all processes."""
        part = self.team.together(lambda: self._gather(cell, advance))
        start = time.perf_counter()
        total = merge_parts(self.team.collect(part))
        value = self.team.lead(lambda: self.evaluator.value(total))
        spent = total.clock.total + time.perf_counter() - start
        row = ResultRow.now(
            cell.protocol,
            value,
            groups=self.team.lead(lambda: self.evaluator.list_groups(total)),
            target=None if cell.target is None else cell.target.setting,
            cost=self._cost(cell, total),
            clock=total.clock.model_copy(update={"total": spent}),
            processes=self.team.size,
        )
        return [row]

    def _cost(self, cell: QualityCell, total: Partial) -> SamplingCost | None:
        if isinstance(cell.protocol.images, Real):
            return None
        ledger = total.ledger
        effective = total.effective / ledger.images
        return SamplingCost(
            nfe=ledger.nfe,
            rows=ledger.rows_per_image,
            effective=effective,
            flops=effective * self._flops(cell.protocol.images.run.model),
            seconds=ledger.seconds / ledger.images,
        )

    def _part_path(self, cell: QualityCell) -> Path:
        team, batch = self.team, self.sweep.batch
        name = f"{cell.protocol.hash}-{batch}-{team.rank}-{team.size}.npz"
        return self.store.parts / name

    def _gather(self, cell: QualityCell, advance: Advance) -> Partial:
        """Returns this process's share of the images, drawn and taken through the extractor."""
        groups, needs = self.sweep.groups, self.evaluator.metric.needs
        part = Partial.empty(self.evaluator.extractor.outputs, needs, groups)
        path, saved, pause = self._part_path(cell), time.perf_counter(), SAVE_EVERY
        part.load(path)
        advance(part.ledger.rows)
        start = time.perf_counter()
        for batch in self._batches(cell, part.done):
            extracted, ledger = time.perf_counter(), batch.ledger
            features = self.evaluator.extractor(batch.images)
            now = time.perf_counter()
            place = torch.tensor(batch.places) * groups // cell.protocol.measure.n
            part.add(features, place, self._compare(cell, batch, features))
            spent = {"features": now - extracted, "total": now - start}
            part.count(ledger, TimeSpent(sampling=ledger.seconds, **spent))
            start = now
            advance(ledger.rows)
            if now - saved > pause:
                make_folder(path.parent)
                part.save(path)
                saved = time.perf_counter()
                pause = max(SAVE_EVERY, SAVE_REST * (saved - now))
        part.count(Ledger(), TimeSpent(total=time.perf_counter() - start))
        return part

    def _compare(
        self, cell: QualityCell, batch: DrawnBatch, features: Mapping[str, Tensor]
    ) -> Tensor | None:
        """Returns the square distances to the converged run; None without one."""
        if cell.target is None or batch.samples is None:
            return None
        images = cell.target.images
        assert isinstance(images, Drawn)
        seeds = [images.run.seeds[place] for place in batch.places]
        if cell.converged:
            self._targets.keep(images, seeds, batch.samples)
        return self._targets.compare(images, seeds, batch.samples, features["pool"])

    def _batches(self, cell: QualityCell, done: int) -> Iterator[DrawnBatch]:
        """Yields what is drawn after the first `done` batches."""
        images, size = cell.protocol.images, self.sweep.batch
        if isinstance(images, Real):
            yield from self._real(images, done)
            return
        chunks = [range(images.count)[i : i + size] for i in range(0, images.count, size)]
        draw = make_draw(images, self._network(images.run.model))
        for places in self.team.share(chunks)[done:]:
            result = draw([images.run.seeds[place] for place in places])
            if images.run.seeds[places[0]] == 0:  # the first images of the first block
                self._keep_pictures(cell.protocol, images, result)
            yield DrawnBatch(places, quantise(result.samples), result.ledger, result.samples)

    def _real(self, images: Real, done: int) -> Iterator[DrawnBatch]:
        first, last = map(int, images.rows.split("-"))
        size = self.sweep.batch
        chunks = images_of(images.source).part(first, last + 1).batches(size)
        for i, chunk in enumerate(chunks):
            if i % self.team.size == self.team.rank and i // self.team.size >= done:
                places = range(i * size, i * size + len(chunk))
                yield DrawnBatch(places, chunk, Ledger(images=len(chunk)))

    def _keep_pictures(self, protocol: Protocol, images: Drawn, result: Result) -> None:
        """Keeps the first images in two rows, for the report; the picture can be replayed."""
        path = picture_path(self.store.path, protocol.hash)
        make_folder(path.parent)
        sheet = make_contact_sheet(to_pil(result.samples[:PICTURES]), columns=PICTURES // 2)
        run = _run_of(images, images.run.seeds[:PICTURES]).name_weights()
        if images.rival is None:
            save_png(sheet, path, run, result.ledger.nfe)
        else:
            write_png(sheet, path)


def picture_path(store: Path, digest: str) -> Path:
    """Returns where a cell's first images are kept."""
    return store.with_name(f"{store.name}.pictures") / f"{digest}.png"


def make_draw(images: Drawn, network: Network) -> Draw:
    """Returns a function that draws the images of some seeds, as the protocol says."""
    if images.rival is None:
        sampler = Sampler(network)
        return lambda seeds: sampler(**_run_of(images, seeds).arguments())
    rival = RivalSampler(network, images.rival, images.run.nfe or 0)

    def draw(seeds: Sequence[int]) -> Result:
        run = _run_of(images, seeds)
        labels, guidance = run.classes, run.guidance()
        return rival(seeds, class_labels=labels, guidance=guidance, batch=run.batch)

    return draw


def _run_of(images: Drawn, seeds: Sequence[int]) -> Run:
    """Returns the run of some seeds, with their labels by the rule."""
    labels = images.labels_of(seeds)
    return images.run.model_copy(update={"seeds": tuple(seeds), "classes": labels})


def flops_per_row(network: Network) -> float:
    """Returns the floating-point operations of one network row, two per multiply and add.

    Attention is counted as the matrix products it is: on a CPU its fused kernel would not be seen.
    """
    conditions = make_branches(network, 1, 0 if network.num_classes else None, None, None)
    x = torch.zeros(1, *network.shape, device=network.device)
    node = network.schedule.at(0.5 * (network.schedule.t_min + network.schedule.t_max))
    counter = FlopCounterMode(display=False)
    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), counter:
        Denoiser(network, conditions).x0(x, node)
    return float(counter.get_total_flops())
