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
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, Literal

from pydantic import Field
from torch import Tensor

from ...models.caching import MagCache, Policy, TeaCache, take_cache
from ...models.caching.predictors import Fitted
from ...models.errors import FewstepError, SettingError
from ...models.registry import format_spec
from ...samplers.guidance import CFG
from ...samplers.sampler import Result, Sampler
from ...solvers import take_solver
from ..bench.cell import Advance
from ..bench.front import FrontBench, FrontSettings, check_fixed, cost_of, relative_error
from ..bench.front_table import FrontPoint, FrontRun
from ..bench.protocol import Protocol
from ..bench.rows import ResultRow
from ..cache_calibration import Observed, observe
from ..cache_fit import CHOOSE, FIT, fit_predictor
from .caches import POLICIES, is_rival, rival_effective, rival_run

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
BASELINES = ("dpmpp-2m", "unipc-2", "ipndm-2", "ipndm-3")
BUDGETS = (6, 8, 10, 11, 12, 13, 14, 16, 18, 20, 24, 28, 32, 40, 50)


@dataclass(frozen=True, kw_only=True)
class CacheFront(FrontSettings):
    """The settings of a front of caches, beside those of every front.

    policies:  caches as `sample --cache` takes them, and rivals; teacache and magcache without
               their numbers are calibrated for each run. Empty: the prepared ones of the model.
    solvers:   of cached runs; one evaluation a step.
    baselines: solvers of the uncached runs to be beaten, those of `solvers` among them.
    budgets:   steps of these.
    cfg_scale: of all runs.
    reference_nfe: 0 leaves the converged run out, and the baseline.
    quality:   how images are compared with the uncached ones.
    """

    name = "bench cache"
    steps: tuple[Annotated[int, Field(ge=2)], ...] = (20, 30, 40, 50)
    policies: tuple[str, ...] = ()
    solvers: tuple[str, ...] = ("dpmpp-2m", "unipc-2", "ddim")
    baselines: tuple[str, ...] = BASELINES
    budgets: tuple[Annotated[int, Field(ge=1)], ...] = BUDGETS
    cfg_scale: float = 1.0
    quality: Literal["rel-l2", "psnr", "lpips"] = "rel-l2"

    def __post_init__(self) -> None:
        super().__post_init__()
        falsified = "steps from differences that a cache would falsify"
        check_fixed((*self.solvers, *self.baselines, self.reference), falsified)
        for policy in self.policies:
            if not is_rival(policy):
                take_cache(policy)

    def cells(self) -> list[FrontRun]:
        """Returns all that is measured: per model the uncached runs first, cheap ones first."""
        return [cell for model in self.models for cell in self._cells(model)]

    def _cells(self, model: str) -> Iterator[FrontRun]:
        free = dict.fromkeys((*self.solvers, *self.baselines))
        for nfe in sorted({*self.budgets, *self.steps}) if self.reference_nfe else ():
            for solver in free:
                if nfe in self.budgets or solver in self.solvers:
                    yield self._run(model, solver, nfe)
        for nfe in sorted(self.steps):
            for solver in self.solvers:
                yield from (self._run(model, solver, nfe, each) for each in self.caches(model))

    def _run(self, model: str, solver: str, nfe: int, policy: str | None = None) -> FrontRun:
        return FrontRun(model, solver, nfe, policy, self.cfg_scale)

    def groups(self) -> list[tuple[FrontRun, ...]]:
        """Returns the runs that are timed in turns: an uncached one and all caches on it."""
        return [
            tuple(self._run(model, solver, nfe, each) for each in (None, *self.caches(model)))
            for model in self.models
            for solver in self.solvers
            for nfe in self.steps
        ]

    def caches(self, model: str) -> tuple[str, ...]:
        """Returns the policies of a model; raises SettingError if none are prepared for it."""
        if self.policies:
            return self.policies
        if model not in POLICIES:
            raise SettingError(
                f"no caches are prepared for {model!r}; give them with --cache, such as"
                " taylorseer:interval=3,level=last-block"
            )
        return POLICIES[model]


class CacheBench(FrontBench):
    """The errors of a front on this machine; its converged and uncached images are kept."""

    policy_field = "cache"
    front: CacheFront

    def __post_init__(self) -> None:
        super().__post_init__()
        self._changes = lru_cache(maxsize=1)(self._observe)
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
        result = self.execute(cell)
        cost, rows = cost_of(result, self._effective(cell, result)), []
        for metric in self._metrics(cell):
            value = compare(metric, result.samples, self._target(cell, metric))
            rows.append(ResultRow.now(self.protocol_of(cell, metric), value, cost=cost))
        return rows

    def execute(self, cell: FrontRun) -> Result:
        """Returns one run."""
        network, count, call = self.network(cell.model), self.front.images, self.call(cell)
        with _without_advice():
            if cell.policy is not None and is_rival(cell.policy):
                return rival_run(network, cell.policy, count, cell.nfe, **call)
            cache = None if cell.policy is None else self.policy(cell)
            return Sampler(network)(range(count), batch=count, nfe=cell.nfe, cache=cache, **call)

    def _effective(self, cell: FrontRun, result: Result) -> float:
        """Returns the effective evaluations per image of a run."""
        if cell.policy is None or not is_rival(cell.policy):
            return result.ledger.effective_nfe
        network, call = self.network(cell.model), self.call(cell)
        return rival_effective(network, cell.policy, self.front.images, cell.nfe, **call)

    def time_run(self, cell: FrontRun) -> float:
        """Returns the seconds of sampling in one run, per image."""
        return self.execute(cell).ledger.seconds / self.front.images

    def policy(self, cell: FrontRun) -> Policy:
        """Returns the cache of a run, with what is fitted to the run."""
        policy = take_cache(cell.policy or "")
        once = take_solver(cell.solver).info.calls_per_step == 1
        if not once and isinstance(policy, TeaCache | MagCache):
            raise SettingError(
                f"{policy.info.name} is calibrated for solvers with one evaluation a step, not"
                f" {cell.solver}"
            )
        if isinstance(policy, TeaCache) and policy.coefficients is None:
            return self._changes(cell.plain).teacache(policy)
        if isinstance(policy, MagCache) and policy.ratios is None:
            return self._changes(cell.plain).magcache(policy)
        if policy.keep.predictor == Fitted():
            return self._fitted(cell)
        return policy

    def _fit(self, cell: FrontRun) -> Policy:
        """Returns the policy of a run with weights fitted to other noises of that run."""
        network, call = self.network(cell.model), self.call(cell)
        classes = network.num_classes

        def draw(seeds: Sequence[int], cache: Policy | None) -> Tensor:
            call["class_labels"] = [seed % classes for seed in seeds] if classes else None
            run = Sampler(network)(seeds, batch=len(seeds), nfe=cell.nfe, cache=cache, **call)
            return run.samples

        return fit_predictor(take_cache(cell.policy or ""), draw, FIT_SEEDS)

    def spec(self, cell: FrontRun) -> str:
        """Returns the cache of a run as `sample --cache` takes it."""
        return format_spec(self.policy(cell))

    def protocol_of(self, cell: FrontRun, metric: str) -> Protocol:
        """Returns what decides one figure of a run."""
        reference = self.converged if metric == TO_EXACT else "the uncached run"
        return self.protocol(cell, self.measure_to(reference, metric))

    def call(self, cell: FrontRun) -> dict[str, Any]:
        """Returns what every run of a cell's solver is called with."""
        guidance = CFG(cell.scale)
        call = {"solver": cell.solver, "grid": self.front.grid, "guidance": guidance}
        return {**call, "class_labels": self.labels(cell.model)}

    def points(self) -> list[FrontPoint]:
        points = (self._point(cell) for cell in self.cells())
        return [point for point in points if point is not None]

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
        )

    def _metrics(self, cell: FrontRun) -> list[str]:
        converged = [TO_EXACT] if self.front.reference_nfe else []
        return [*converged, QUALITIES[self.front.quality]] if cell.policy else converged

    def _target(self, cell: FrontRun, metric: str) -> Tensor:
        """Returns what the images of a run are compared with by a metric."""
        front, solver, nfe = self.front, cell.solver, cell.nfe
        if metric == TO_EXACT:
            solver, nfe = front.reference, front.reference_nfe
        guidance = CFG(cell.scale)
        return self.draw_reference(
            cell.model, solver=solver, nfe=nfe, grid=front.grid, guidance=guidance
        )

    def _observe(self, cell: FrontRun) -> Observed:
        """Returns what teacache and magcache are fitted to: a full run of this solver and steps."""
        network = self.network(cell.model)
        return observe(network, self.front.images, nfe=cell.nfe, **self.call(cell))


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
    from ..metrics import pair_metric

    pairs = pair_metric(metric.partition(" ")[0])
    shown, others = (each.clamp(-1.0, 1.0) for each in (samples, target))
    return float(pairs.function(shown, others).mean())
