"""`fewstep bench cache`: the error of caches against what they cost, beside fewer uncached steps.

Every run starts from the same noises and is compared, as |x - y| / |y| over all images, with

    the converged run of the same network, which tells what the whole run is worth;
    the uncached run of the same solver, grid and steps, which tells what the cache did.

The baseline is the same cost spent on plain steps: uncached runs of fewer steps at the same
effective evaluations, of whichever solver is best there. Evaluations are effective by FLOPs.
Seconds are measured in a pass of their own, in turns with the uncached run.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from ...models.caching import MagCache, Policy, SenCache, TeaCache, take_cache
from ...models.caching.predictors import Fitted
from ...models.caching.sencache import Slopes
from ...models.errors import FewstepError, SettingError
from ...models.registry import format_spec
from ...samplers.guidance import CFG
from ...samplers.plan import settle_choices
from ...samplers.sampler import Result, Sampler
from ...samplers.schedule_choice import find_schedule
from ...solvers import take_solver
from ..bench.cell import Advance
from ..bench.front import FrontBench, cost_of, relative_error
from ..bench.front_table import FrontPoint, FrontRun
from ..bench.protocol import Protocol
from ..bench.rows import ResultRow, SamplingCost
from ..cache_calibration import Observed, observe
from ..cache_fit import CHOOSE, FIT, fit_predictor
from ..cache_slopes import measure_slopes
from .cache_front import CacheFront
from .caches import count_rival, is_rival, rival_run

TO_EXACT = "relative l2 to the converged run"
TO_UNCACHED = "relative l2 to the uncached run"
QUALITIES = {
    "rel-l2": TO_UNCACHED,
    "psnr": "psnr to the uncached run",
    "lpips": "lpips to the uncached run",
}
TIME = "seconds over those of the uncached run"
UNCACHED = "uncached"
FIT_SEEDS = range(10**6, 10**6 + FIT + CHOOSE)  # far from all that figures are measured on
BATCH = 32  # images at once, as `sample` draws them


class CacheBench(FrontBench):
    """The errors of a front on this machine; its converged and uncached images are kept."""

    policy_field = "cache"
    front: CacheFront

    def __post_init__(self) -> None:
        super().__post_init__()
        self._changes = lru_cache(maxsize=1)(self._observe)
        self._slopes = lru_cache(maxsize=1)(self._measure_slopes)
        self._fitted = lru_cache(maxsize=8)(self._fit)

    def cells(self) -> list[FrontRun]:
        return self.front.cells()

    def find_rows(self, cell: FrontRun) -> list[ResultRow]:
        rows = [self.find_row(cell, metric) for metric in self._metrics(cell)]
        return [row for row in rows if row is not None] if None not in rows else []

    def find_row(self, cell: FrontRun, metric: str) -> ResultRow | None:
        """Returns the row of one figure of a run, if it is in the store."""
        return self.store.rows.get(self.protocol_of(cell, metric).hash)

    def identify(self, cell: FrontRun) -> str:
        return "".join(self.protocol_of(cell, metric).hash for metric in self._metrics(cell))

    def leave_out(self, cell: FrontRun, error: FewstepError) -> None:
        """Goes on; the same reason stands once for all runs of a policy."""
        self.note(f"{cell.policy or cell.solver}: {error}")

    def measure(self, cell: FrontRun, advance: Advance) -> list[ResultRow]:
        """Returns the errors of one run."""
        rows = []
        samples, cost = self._draw(cell)
        for metric in self._metrics(cell):
            value = compare(metric, samples, self._target(cell, metric))
            rows.append(ResultRow.now(self.protocol_of(cell, metric), value, cost=cost))
        return rows

    def execute(self, cell: FrontRun, seeds: range) -> Result:
        """Returns one run, in batches; a rival's in one."""
        network, call = self.network(cell.model), self.call(cell, seeds)
        with _without_advice():
            if is_rival(cell.policy or ""):
                return rival_run(network, cell.policy or "", seeds, cell.nfe, **call)
            if cell.schedule is None:
                call |= {"nfe": cell.nfe, "cache": cell.policy and self.policy(cell)}
            return Sampler(network)(seeds, batch=BATCH, **call)

    def _draw(self, cell: FrontRun) -> tuple[Tensor, SamplingCost]:
        """Returns the images of a run and what they cost."""
        seeds = self.seeds(cell)
        if not is_rival(cell.policy or ""):
            result = self.execute(cell, seeds)
            return result.samples, cost_of(result, result.ledger.effective_nfe)
        network, spec, parts = self.network(cell.model), cell.policy or "", []
        for batch in (seeds[i : i + BATCH] for i in range(0, len(seeds), BATCH)):
            call = self.call(cell, batch)
            parts.append(count_rival(network, spec, batch, cell.nfe, **call))
        effective = sum(each * len(run.samples) for run, each in parts) / len(seeds)
        return torch.cat([run.samples for run, _ in parts]), cost_of(parts[0][0], effective)

    def judge(self, cell: FrontRun, block: int) -> Tensor:
        """Returns the figures (n,) of single images of a cached run on another block of noises."""
        cell, metric = replace(cell, block=block), QUALITIES[self.front.quality]
        samples = self.execute(cell, self.seeds(cell)).samples
        return judge_images(metric, samples, self._target(cell, metric))

    def seeds(self, cell: FrontRun) -> range:
        """Returns the seeds of the block of a run."""
        count = self.front.images
        return range(cell.block * count, (cell.block + 1) * count)

    def time_run(self, cell: FrontRun) -> float:
        """Returns the seconds of sampling in one run of a batch, per image."""
        seeds = self.seeds(cell)[:BATCH]
        return self.execute(cell, seeds).ledger.seconds / len(seeds)

    def policy(self, cell: FrontRun) -> Policy:
        """Returns the cache of a run, with what is fitted to the run."""
        cell = replace(cell, block=0)  # fits have noises of their own
        policy = take_cache(cell.policy or "")
        once = take_solver(cell.solver).info.calls_per_step == 1
        if not once and isinstance(policy, TeaCache | MagCache | SenCache):
            raise SettingError(
                f"{policy.info.name} is calibrated for solvers with one evaluation a step, not"
                f" {cell.solver}"
            )
        if isinstance(policy, TeaCache) and policy.coefficients is None:
            return self._changes(cell.plain).teacache(policy)
        if isinstance(policy, MagCache) and policy.ratios is None:
            return self._changes(cell.plain).magcache(policy)
        if isinstance(policy, SenCache) and policy.slopes is None:
            return replace(policy, slopes=self._slopes(cell.plain))
        if policy.keep.predictor == Fitted():
            return self._fitted(cell)
        return policy

    def _fit(self, cell: FrontRun) -> Policy:
        """Returns the policy of a run with weights fitted to other noises of that run."""

        def draw(seeds: Sequence[int], cache: Policy | None) -> Tensor:
            call = {**self.call(cell, seeds), "nfe": cell.nfe, "cache": cache}
            return Sampler(self.network(cell.model))(seeds, batch=len(seeds), **call).samples

        return fit_predictor(take_cache(cell.policy or ""), draw, FIT_SEEDS)

    def spec(self, cell: FrontRun) -> str:
        """Returns the cache of a run as `sample --cache` takes it."""
        return format_spec(self.policy(cell))

    def describe_run(self, cell: FrontRun) -> dict[str, Any]:
        seeds = tuple(self.seeds(cell))
        if cell.schedule is not None:
            return {"schedule": find_schedule(cell.schedule), "seeds": seeds}
        grid = self.grid(cell.model, cell.solver, cell.nfe)
        return {**super().describe_run(cell), "grid": grid, "seeds": seeds}

    def grid(self, model: str, solver: str, nfe: int) -> str:
        """Returns the grid of a run by name, also where it is the default, which may change."""
        typed: dict[str, Any] = {"solver": solver, "nfe": nfe}
        typed |= {} if self.front.grid is None else {"grid": self.front.grid}
        grid: str = settle_choices(self.network(model).schedule, typed)["grid"]
        return grid

    def protocol_of(self, cell: FrontRun, metric: str) -> Protocol:
        """Returns what decides one figure of a run."""
        front, reference = self.front, "the uncached run"
        if metric == TO_EXACT:
            grid = self.grid(cell.model, front.reference, front.reference_nfe)
            reference = f"{self.converged} on {grid}"
        in_batches = f"{reference}; in batches of {BATCH}"  # which gates look at as a whole
        return self.protocol(cell, self.measure_to(in_batches, metric))

    def call(self, cell: FrontRun, seeds: Sequence[int]) -> dict[str, Any]:
        """Returns what every run of a cell's solver, or of its schedule, is called with."""
        call = {"guidance": CFG(cell.scale), "class_labels": self.labels(cell.model, seeds)}
        if cell.schedule is not None:
            return {"solver": find_schedule(cell.schedule), **call}
        return {"solver": cell.solver, "grid": self.front.grid, **call}

    def points(self) -> list[FrontPoint]:
        """Returns the runs that are in the store in all blocks."""
        parts: dict[FrontRun, list[FrontPoint]] = {}
        for cell in self.cells():
            if (point := self._point(cell)) is not None:
                parts.setdefault(replace(cell, block=0), []).append(point)
        return [_join(each) for each in parts.values() if len(each) == self.front.blocks]

    def _point(self, cell: FrontRun) -> FrontPoint | None:
        change = QUALITIES[self.front.quality]
        rows = {metric: self.find_row(cell, metric) for metric in (TO_EXACT, change, TIME)}
        first = rows[TO_EXACT] or rows[change]
        if first is None or first.cost is None:
            return None
        values = {metric: None if row is None else row.value for metric, row in rows.items()}
        timed = rows[TIME]
        return FrontPoint(
            cell,
            cost=first.cost.effective,
            error=values[TO_EXACT],
            change=values[change] if cell.policy else 0.0,
            ratio=values[TIME],
            seconds=None if timed is None or timed.cost is None else timed.cost.seconds,
            quartiles=None if timed is None else timed.quartiles,
        )

    def _metrics(self, cell: FrontRun) -> list[str]:
        converged = [TO_EXACT] if self.front.reference_nfe else []
        compared = cell.policy and cell.schedule is None  # a table may be fitted to its cache
        return [*converged, QUALITIES[self.front.quality]] if compared else converged

    def _target(self, cell: FrontRun, metric: str) -> Tensor:
        """Returns what the images of a run are compared with by a metric."""
        front, solver, nfe = self.front, cell.solver, cell.nfe
        if metric == TO_EXACT:
            solver, nfe = front.reference, front.reference_nfe
        call = {"grid": self.grid(cell.model, solver, nfe), "guidance": CFG(cell.scale)}
        seeds = self.seeds(cell)
        return self.draw_reference(cell.model, seeds, solver=solver, nfe=nfe, batch=BATCH, **call)

    def _observe(self, cell: FrontRun) -> Observed:
        """Returns what teacache and magcache are fitted to: a full run of this solver and steps."""
        seeds = FIT_SEEDS[:FIT]
        return observe(self.network(cell.model), seeds, nfe=cell.nfe, **self.call(cell, seeds))

    def _measure_slopes(self, cell: FrontRun) -> tuple[Slopes, ...]:
        seeds, network = FIT_SEEDS[:FIT], self.network(cell.model)
        return measure_slopes(network, seeds, nfe=cell.nfe, **self.call(cell, seeds))


def _join(parts: Sequence[FrontPoint]) -> FrontPoint:
    """Returns the means over the blocks of a run, with times of the first."""
    if len(parts) == 1:
        return parts[0]
    errors, changes = ([getattr(each, name) for each in parts] for name in ("error", "change"))
    return replace(
        parts[0],
        cost=fmean(each.cost for each in parts),
        error=None if None in errors else fmean(errors),
        change=None if None in changes else fmean(changes),
        parts=tuple(parts),
    )


@contextmanager
def _without_advice() -> Iterator[None]:
    """Silences what is said of a cache that saves little or nothing, which is a figure here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".* skipped none of ")
        warnings.filterwarnings("ignore", "the gate of ")
        warnings.filterwarnings("ignore", ".* saves at most ")
        yield


def compare(metric: str, samples: Tensor, target: Tensor) -> float:
    """Returns how far images (B, *) are from others; psnr and lpips are means over the images.

    Raises:
        SettingError: for lpips, if its weights are not found or the images are too small.
    """
    if metric in (TO_EXACT, TO_UNCACHED):
        return relative_error(samples, target)
    return float(judge_images(metric, samples, target).mean())


def judge_images(metric: str, samples: Tensor, target: Tensor) -> Tensor:
    """Returns the figures (B,) of single images: psnr, lpips, or squares over the mean of |y|^2.

    Raises:
        SettingError: as `compare`.
    """
    if metric in (TO_EXACT, TO_UNCACHED):
        squares = (samples - target).double().square().flatten(1).mean(1)
        return squares / target.double().square().mean()
    from ..metrics import pair_metric

    pairs = pair_metric(metric.partition(" ")[0])
    shown, others = (each.clamp(-1.0, 1.0) for each in (samples, target))
    figures: Tensor = pairs.function(shown, others)
    return figures
