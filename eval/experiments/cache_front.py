"""The settings of a front of caches: which runs are measured, and which are timed in turns."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Annotated, Literal

from pydantic import Field

from ...models.caching import take_cache
from ...models.errors import SettingError
from ...models.extras import check_installed
from ...models.registry import format_spec
from ...samplers.schedule_choice import find_schedule
from ...solvers.presets import best_preset
from ..bench.front import FrontSettings, check_fixed
from ..bench.front_table import FrontRun
from .caches import CACHE_DIT, POLICIES, is_rival

SEARCHED = "searched"
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
    schedules: names or files of searched schedules, with a cache or without, for the networks that
               they were searched for; those of the package at the budgets are measured too.
    blocks:    of so many images each, one behind the other.
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
    schedules: tuple[str, ...] = ()
    blocks: Annotated[int, Field(ge=1)] = 1
    cfg_scale: float = 1.0
    quality: Literal["rel-l2", "psnr", "lpips"] = "rel-l2"

    def __post_init__(self) -> None:
        super().__post_init__()
        falsified = "steps from differences that a cache would falsify"
        check_fixed((*self.solvers, *self.baselines, self.reference), falsified)
        for policy in self.policies:
            if not is_rival(policy):
                take_cache(policy)
            elif policy.startswith(CACHE_DIT):
                check_installed("cache_dit")
        for name in self.schedules:
            find_schedule(name)

    def cells(self) -> list[FrontRun]:
        """Returns all that is measured: per model the uncached runs first, cheap ones first."""
        runs = [cell for model in self.models for cell in self._cells(model)]
        return [replace(run, block=block) for block in range(self.blocks) for run in runs]

    def _cells(self, model: str) -> Iterator[FrontRun]:
        if self.reference_nfe:
            yield from self._list_plain(model)
            yield from self._list_searched(model)
        for nfe in sorted(self.steps):
            for solver in self.solvers:
                yield from (self._run(model, solver, nfe, each) for each in self.caches(model))

    def _list_plain(self, model: str) -> Iterator[FrontRun]:
        free = dict.fromkeys((*self.solvers, *self.baselines))
        for nfe, solver in product(sorted({*self.budgets, *self.steps}), free):
            if nfe in self.budgets or solver in self.solvers:
                yield self._run(model, solver, nfe)

    def _list_searched(self, model: str) -> Iterator[FrontRun]:
        """Yields the schedules of the package at the budgets, and those that are named."""
        own = (best_preset(model, nfe, self.cfg_scale) for nfe in sorted(self.budgets))
        for name in (*filter(None, own), *self.schedules):
            schedule = find_schedule(name)
            if schedule.provenance.get("model", model) == model:
                cache = schedule.cache_policy
                policy = None if cache is None else format_spec(cache, omit=("calls", "parts"))
                yield FrontRun(model, SEARCHED, schedule.nfe, policy, self.cfg_scale, name)

    def _run(self, model: str, solver: str, nfe: int, policy: str | None = None) -> FrontRun:
        return FrontRun(model, solver, nfe, policy, self.cfg_scale)

    def groups(self) -> list[tuple[FrontRun, ...]]:
        """Returns the runs that are timed in turns: an uncached one and all caches on it."""
        return [
            (self._run(model, solver, nfe), *self._list_cached(model, solver, nfe))
            for model in self.models
            for solver in self.solvers
            for nfe in self.steps
        ]

    def _list_cached(self, model: str, solver: str, nfe: int) -> Iterator[FrontRun]:
        yield from (self._run(model, solver, nfe, each) for each in self.caches(model))
        if self.reference_nfe:
            searched = self._list_searched(model)
            yield from (run for run in searched if run.policy and run.nfe == nfe)

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
