"""`fewstep bench cache`: the error of caches against what they cost, beside fewer uncached steps.

Every run starts from the same noises and is compared, as |x - y| / |y| over all images, with

    the converged run of the same network, which tells what the whole run is worth;
    the uncached run of the same solver, grid and steps, which tells what the cache did.

The row to beat is the honest one: uncached runs of fewer steps at the same effective evaluations,
of whichever solver is best there. Evaluations are effective by FLOPs. Seconds are measured in a
pass of their own, in turns with the uncached run.

Figures are kept in an append-only store and not measured again.
"""

import statistics
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Annotated, Any, Literal

from pydantic import Field
from torch import Tensor
from tqdm.auto import tqdm

from ..models.caching import MagCache, Policy, TeaCache, take_cache
from ..models.denoiser import Network
from ..models.errors import FewstepError, SettingError
from ..models.files import make_folder
from ..models.load import load
from ..samplers.cache_file import spec_of
from ..samplers.guidance import CFG
from ..samplers.guidance.settings import Checked
from ..samplers.run import Run
from ..samplers.sampler import Result, Sampler
from ..samplers.teacher import teacher
from ..solvers import take_solver
from .cache_calibration import Observed, observed
from .cache_figures import Cell, Figure
from .cache_policies import POLICIES
from .cache_rivals import is_rival, rival_effective, rival_run
from .protocol import Drawn, Measure, Protocol, digest, weights_sha256
from .store import Cost, Row, Store

TO_EXACT = "relative l2 to the converged run"
TO_UNCACHED = "relative l2 to the uncached run"
QUALITIES = {
    "rel-l2": TO_UNCACHED,
    "psnr": "psnr to the uncached run",
    "lpips": "lpips to the uncached run",
}
TIME = "seconds over those of the uncached run"
HONEST = ("dpmpp-2m", "unipc-2", "ipndm-2", "ipndm-3")
BUDGETS = (6, 8, 10, 11, 12, 13, 14, 16, 18, 20, 24, 28, 32, 40, 50)


@dataclass(frozen=True, kw_only=True)
class Front(Checked):
    """What is measured.

    models:    every one is a panel of its own.
    policies:  caches as `sample --cache` takes them, and rivals; teacache and magcache without
               their numbers are calibrated for each run. Empty: the prepared ones of the model.
    solvers:   of cached runs; one evaluation a step. steps: of them.
    honest:    solvers of the uncached runs to be beaten, those of `solvers` among them.
    budgets:   steps of these.
    grid, cfg_scale: of all runs.
    images:    noises, from seed 0, of all classes in turn.
    reference, reference_nfe: the converged run; 0 evaluations leave it out, and the honest row.
    quality:   how images are compared with the uncached ones.
    """

    models: tuple[str, ...] = ("fashion-dit", "fashion-unet")
    policies: tuple[str, ...] = ()
    solvers: tuple[str, ...] = ("dpmpp-2m", "unipc-2", "ddim")
    steps: tuple[Annotated[int, Field(ge=2)], ...] = (20, 30, 40, 50)
    honest: tuple[str, ...] = HONEST
    budgets: tuple[Annotated[int, Field(ge=1)], ...] = BUDGETS
    grid: str | None = None
    cfg_scale: float = 1.0
    images: Annotated[int, Field(ge=2)] = 48
    reference: str = "unipc-3"
    reference_nfe: Annotated[int, Field(ge=0)] = 200
    quality: Literal["rel-l2", "psnr", "lpips"] = "rel-l2"

    def __post_init__(self) -> None:
        super().__post_init__()
        for solver in (*self.solvers, *self.honest, self.reference):
            if take_solver(solver).info.adaptive:
                raise SettingError(
                    f"{solver} chooses its steps from differences that a cache would falsify; take"
                    " dpmpp-2m or another"
                )
        for policy in self.policies:
            if not is_rival(policy):
                take_cache(policy)

    def with_policies(self, policies: tuple[str, ...]) -> "Front":
        """The same with other caches."""
        return replace(self, policies=policies)

    def cells(self) -> list[Cell]:
        """All that is measured: per model the uncached runs first, cheap ones first."""
        return [cell for model in self.models for cell in self._cells(model)]

    def _cells(self, model: str) -> Iterator[Cell]:
        free = dict.fromkeys((*self.solvers, *self.honest))
        for nfe in sorted({*self.budgets, *self.steps}) if self.reference_nfe else ():
            for solver in free:
                if nfe in self.budgets or solver in self.solvers:
                    yield Cell(model, solver, nfe)
        for nfe in sorted(self.steps):
            for solver in self.solvers:
                yield from (Cell(model, solver, nfe, each) for each in self.caches(model))

    def caches(self, model: str) -> tuple[str, ...]:
        """The policies of a model; raises SettingError if none are prepared for it."""
        if self.policies:
            return self.policies
        if model not in POLICIES:
            raise SettingError(
                f"no caches are prepared for {model!r}; give them with --cache, such as"
                " taylorseer:interval=3,level=last-block"
            )
        return POLICIES[model]


@dataclass
class Bench:
    """A front on this machine.

    store: where figures go and come from; the converged and uncached images lie beside it.
    remarks: what was left out, and why.
    """

    front: Front
    store: Store
    device: str = "cpu"
    remarks: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.network = lru_cache(maxsize=1)(self._loaded)
        self._images = lru_cache(maxsize=2)(self._kept)
        self._watched = lru_cache(maxsize=1)(self._observed)

    # Errors

    def run(self, progress: bool = False) -> Iterator[Cell]:
        """Measures what is missing; yields each cell once its figures are in the store."""
        waiting = [cell for cell in self.front.cells() if not self._is_done(cell)]
        turns = self.store.turns(waiting, self._work, self._is_done)
        off = None if progress else True
        for cell in tqdm(turns, total=len(waiting), unit="run", disable=off):
            try:
                with _without_advice():
                    rows = self.measure(cell)
            except FewstepError as error:
                self.note(cell, error)
                continue
            self.store.append(*rows)
            yield cell

    def _is_done(self, cell: Cell) -> bool:
        return self._has(cell, self._metrics(cell))

    def _work(self, cell: Cell) -> str:
        """What measuring a cell is called among all that ends in one store."""
        return "".join(self.protocol(cell, metric).hash for metric in self._metrics(cell))

    def note(self, cell: Cell, error: FewstepError) -> None:
        """Remembers what was left out; the same reason once for all runs of a policy."""
        remark = f"{cell.policy or cell.solver}: {error}"
        if remark not in self.remarks:
            self.remarks.append(remark)

    def measure(self, cell: Cell) -> list[Row]:
        """The errors of one run."""
        result, effective = self.execute(cell)
        cost = _cost(result, effective)
        rows = []
        for metric in self._metrics(cell):
            value = judged(metric, result.samples, self.target(cell, metric))
            rows.append(Row.now(self.protocol(cell, metric), value, cost=cost))
        return rows

    def execute(self, cell: Cell, images: int | None = None) -> tuple[Result, float]:
        """One run and its effective evaluations per image."""
        network, count = self.network(cell.model), images or self.front.images
        call = self._call(cell, count)
        if cell.policy is not None and is_rival(cell.policy):
            result = rival_run(network, cell.policy, count, cell.nfe, **call)
            effective = rival_effective(network, cell.policy, count, cell.nfe, **call)
            return result, effective
        policy = None if cell.policy is None else self.policy(cell)
        result = Sampler(network)(range(count), batch=count, nfe=cell.nfe, cache=policy, **call)
        return result, result.ledger.effective_nfe

    def policy(self, cell: Cell) -> Policy:
        """The cache of a cell, with what is fitted to its run."""
        policy = take_cache(cell.policy or "")
        once = take_solver(cell.solver).info.calls_per_step == 1
        if not once and isinstance(policy, TeaCache | MagCache):
            raise SettingError(
                f"{policy.info.name} is calibrated for solvers with one evaluation a step, not"
                f" {cell.solver}"
            )
        if isinstance(policy, TeaCache) and policy.coefficients is None:
            return self._watched(cell.uncached).teacache(policy)
        if isinstance(policy, MagCache) and policy.ratios is None:
            return self._watched(cell.uncached).magcache(policy)
        return policy

    def spec(self, cell: Cell) -> str:
        """The same as `sample --cache` takes it."""
        return spec_of(self.policy(cell))

    def target(self, cell: Cell, metric: str) -> Tensor:
        """What the images of a cell are compared with by a metric."""
        return self._images(None if metric == TO_EXACT else cell.uncached, cell.model)

    # Seconds

    def time(self, repeats: int, progress: bool = False) -> Iterator[Cell]:
        """Medians of runs in turns with the uncached one, as their ratio; one group at a time."""
        groups = [
            [Cell(model, solver, nfe, each) for each in (None, *self.front.caches(model))]
            for model in self.front.models
            for solver in self.front.solvers
            for nfe in self.front.steps
        ]
        turns = self.store.turns(groups, str, lambda group: not self._untimed(group))
        off = None if progress else True
        for group in tqdm(turns, total=len(groups), unit="group", disable=off):
            yield from self._time_group(group[0], self._untimed(group), repeats)

    def _untimed(self, group: Sequence[Cell]) -> list[Cell]:
        """The cached runs of a group, whose first is uncached, that have no time yet."""
        return [cell for cell in group[1:] if not self._has(cell, (TIME,))]

    def _time_group(self, plain: Cell, cells: list[Cell], repeats: int) -> Iterator[Cell]:
        able = [cell for cell in cells if self._runs(cell)]
        taken: dict[Cell, list[float]] = {cell: [] for cell in (plain, *able)}
        for _ in range(repeats if able else 0):
            for cell, seconds in taken.items():
                seconds.append(self._seconds(cell))
        usual = statistics.median(taken[plain]) if able else 1.0
        for cell in able:
            median = statistics.median(taken[cell])
            cost = Cost(nfe=cell.nfe, rows=cell.nfe, effective=0.0, flops=0.0, seconds=median)
            self.store.append(Row.now(self.protocol(cell, TIME), median / usual, cost=cost))
            yield cell

    def _runs(self, cell: Cell) -> bool:
        """Whether it runs at all; this run also warms up."""
        try:
            self._seconds(cell)
        except FewstepError as error:
            self.note(cell, error)
            return False
        return True

    def _seconds(self, cell: Cell) -> float:
        """Wall time of one run per image."""
        with _without_advice():
            return self._timed(cell)

    def _timed(self, cell: Cell) -> float:
        network, call = self.network(cell.model), self._call(cell, self.front.images)
        count, policy = self.front.images, cell.policy
        if policy is not None and is_rival(policy):
            return rival_run(network, policy, count, cell.nfe, **call).ledger.seconds / count
        cache = None if policy is None else self.policy(cell)
        start = time.perf_counter()
        Sampler(network)(range(count), batch=count, nfe=cell.nfe, cache=cache, **call)
        return (time.perf_counter() - start) / count

    # The store

    def figures(self) -> list[Figure]:
        """The figures of this front that are in the store."""
        found = (self._figure(cell) for cell in self.front.cells())
        return [figure for figure in found if figure is not None]

    def _figure(self, cell: Cell) -> Figure | None:
        change = QUALITIES[self.front.quality]
        rows = {metric: self._row(cell, metric) for metric in (TO_EXACT, change, TIME)}
        first = rows[TO_EXACT] or rows[change]
        if first is None or first.cost is None:
            return None
        values = {metric: None if row is None else row.value for metric, row in rows.items()}
        timed = rows[TIME]
        return Figure(
            cell,
            effective=first.cost.effective,
            error=values[TO_EXACT],
            change=values[change] if cell.policy else 0.0,
            ratio=values[TIME],
            seconds=None if timed is None or timed.cost is None else timed.cost.seconds,
        )

    def _has(self, cell: Cell, metrics: Iterable[str]) -> bool:
        return all(self._row(cell, metric) is not None for metric in metrics)

    def _row(self, cell: Cell, metric: str) -> Row | None:
        return self.store.rows.get(self.protocol(cell, metric).hash)

    def _metrics(self, cell: Cell) -> list[str]:
        converged = [TO_EXACT] if self.front.reference_nfe else []
        return [*converged, QUALITIES[self.front.quality]] if cell.policy else converged

    def protocol(self, cell: Cell, metric: str) -> Protocol:
        """What decides a figure."""
        run = Run(
            model=cell.model,
            solver=cell.solver,
            grid=self.front.grid,
            nfe=cell.nfe,
            seeds=tuple(range(self.front.images)),
            cfg_scale=self.front.cfg_scale,
            cache=cell.policy,
            device=self.device,
        )
        drawn = Drawn(run=run, weights=_weights(cell.model), labels=self._rule(cell.model))
        return Protocol(images=drawn, measure=self._measure(metric))

    def _measure(self, metric: str) -> Measure:
        name = "the uncached run"
        if metric == TO_EXACT:
            name = f"{self.front.reference}, {self.front.reference_nfe} evaluations"
        return Measure(
            metric=metric,
            extractor="pixels",
            extractor_sha256="",
            resize="none",
            reference=name,
            reference_sha256=digest([name, self.front.grid, self.front.images]),
            n=self.front.images,
        )

    # Runs

    def _loaded(self, model: str) -> Network:
        return load(model, device=self.device)

    def _rule(self, model: str) -> str:
        classes = self.network(model).num_classes
        return f"seed modulo {classes}" if classes else "none"

    def _call(self, cell: Cell, images: int) -> dict[str, Any]:
        classes = self.network(cell.model).num_classes
        call: dict[str, Any] = {"solver": cell.solver, "grid": self.front.grid}
        call["class_labels"] = [i % classes for i in range(images)] if classes else None
        call["guidance"] = CFG(self.front.cfg_scale)
        return call

    def _kept(self, cell: Cell | None, model: str) -> Tensor:
        """The images of an uncached run, or of the converged one, from the folder of them."""
        cell = cell or Cell(model, self.front.reference, self.front.reference_nfe)
        folder = self.store.path.with_name(f"{self.store.path.name}.reference")
        make_folder(folder)
        count = self.front.images
        call = self._call(cell, count)
        return teacher(
            self.network(model), list(range(count)), cache=folder, batch=count, nfe=cell.nfe, **call
        )

    def _observed(self, cell: Cell) -> Observed:
        """What teacache and magcache are fitted to: a full run of this solver and these steps."""
        count = self.front.images
        return observed(self.network(cell.model), count, nfe=cell.nfe, **self._call(cell, count))


@contextmanager
def _without_advice() -> Iterator[None]:
    """A cache that never skips is a figure here, and nothing to warn of."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".* skipped none of ")
        warnings.filterwarnings("ignore", "the gate of ")
        yield


@lru_cache
def _weights(model: str) -> str | None:
    return weights_sha256(model)


def judged(metric: str, samples: Tensor, target: Tensor) -> float:
    """How far images (B, *) are from others; psnr and lpips are means over the images.

    Raises:
        SettingError: for lpips, if its weights are not found or the images are too small.
    """
    if metric in (TO_EXACT, TO_UNCACHED):
        return float((samples - target).norm() / target.norm())
    from .metrics import pair_metric

    found = pair_metric(metric.partition(" ")[0])
    shown, wanted = (each.clamp(-1.0, 1.0) for each in (samples, target))
    return float(found.function(shown, wanted).mean())


def _cost(result: Result, effective: float) -> Cost:
    ledger = result.ledger
    return Cost(
        nfe=ledger.nfe,
        rows=ledger.rows_per_image,
        effective=effective,
        flops=0.0,
        seconds=ledger.seconds / ledger.images,
    )
