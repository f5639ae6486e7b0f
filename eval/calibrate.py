"""`fewstep calibrate`: the cheapest cache that keeps the images as near as asked.

Every policy is run at several settings on the same noises as the uncached run of the same solver
and steps: fixed intervals and searched masks, with several predictors, and gates. The front of
quality against effective evaluations stands in one table with plain steps and searched schedules of
the same costs. The cheapest setting that meets the quality, on further noises too, becomes a small
file for `sample --cache`; what it is worth is measured on others again.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ..models.caching import FixedMask, take_cache
from ..models.caching.base import CACHES
from ..models.errors import FewstepError, SettingError
from ..models.files import check_writable
from ..models.network import Network
from ..models.probe import hash_loaded, sketch
from ..models.registry import format_spec
from ..models.user_code import lend
from ..models.weights import hash_weights
from ..samplers.cache_file import CacheFigures, CacheFile
from .bench.front_table import FrontPoint
from .bench.rows import ResultStore
from .bench.runner import run_all
from .cache_candidates import list_settings
from .cache_contest import FURTHER, Finalist, find_winner
from .cache_masks import NAME, list_amounts, list_strategies, search_masks
from .cache_quality import Quality
from .cache_table import CalibrationTable
from .cache_worth import measure_worth
from .calibration_request import CalibrationRequest
from .experiments.cache import CacheBench
from .experiments.cache_front import CacheFront
from .options import make_request
from .search.budget import Budget


def calibrate(network: str | Network, *, progress: bool = False, **options: Any) -> CacheFile:
    """Finds the cheapest cache that keeps the images near and writes it, as the command does.

    >>> file = fewstep.calibrate("fashion-dit", nfe=30, quality="psnr=30", out="cache.json")
    >>> file.cache, file.figures.effective

    Args:
        network: what `load` takes by name, or a `Network`.
        progress: shows how far the runs are.
        options: the fields of `CalibrationRequest` that concern caches.

    Raises:
        SettingError: if no cache is good enough, or the network cannot be cached.
    """
    with lend(network) as name:
        request = make_request(CalibrationRequest, network=name, **options)
        if request.guidance is not None:
            raise SettingError(
                "fewstep.calibrate finds caches; for a threshold of adaptive guidance take"
                " fewstep.eval.guidance_calibration.propose_threshold"
            )
        bench = make_bench(request)
        add_masks(bench, request, progress)
        run_all(bench, progress=progress)
        return Calibration.of(request, bench).write(request.out)[0]


def make_bench(request: CalibrationRequest) -> CacheBench:
    """Returns the runs to be made; their figures are kept beside the file that will be written.

    Raises:
        FewstepError: for what cannot be run, or not be written.
    """
    check_writable(request.out, ".json")
    quality = Quality.parse(request.quality)
    Budget.parse(request.budget)
    list_strategies(request)
    for each in request.cache or ():
        CACHES.get(each.partition(":")[0])
    front = CacheFront(
        models=(request.network,),
        policies=("taylorseer",),
        solvers=(request.solver,),
        steps=(request.nfe,),
        baselines=(),
        budgets=tuple(list_amounts(request.nfe)),
        grid=request.grid_type,
        cfg_scale=request.cfg_scale,
        images=request.images,
        reference_nfe=request.reference_nfe,
        quality=quality.metric,  # type: ignore[arg-type]
    )
    store = ResultStore(request.out.with_name(f"{request.out.name}.figures.jsonl"))
    store.check()
    bench = CacheBench(front, store, request.device)
    network, predictors = bench.network(request.network), request.predictor or ()
    named = [each for each in request.cache or () if each != NAME]
    if named or not request.cache:
        policies = tuple(list_settings(network, named, predictors))
        bench.front = replace(front, policies=policies)
    return bench


def add_masks(bench: CacheBench, request: CalibrationRequest, progress: bool = False) -> None:
    """Searches masks, and adds the best of them to the caches of a bench.

    Raises:
        FewstepError: where none can be searched, and these were asked for by name.
    """
    network = bench.network(request.network)
    grid = bench.grid(request.network, request.solver, request.nfe)
    try:
        masks = search_masks(request, network, grid, bench.folder_beside("masks"), progress)
    except FewstepError as error:
        if request.masks != "auto" or request.cache:
            raise
        bench.note(f"{NAME}: {error}")
        return
    others = () if request.cache == [NAME] else bench.front.policies
    bench.front = replace(bench.front, policies=(*others, *masks))


@dataclass(frozen=True)
class Calibration:
    """The result of the runs.

    request: what was asked for.
    bench:   the runs.
    figures: of caches, cheap first.
    plain:   of runs without one.
    """

    request: CalibrationRequest
    bench: CacheBench
    figures: tuple[FrontPoint, ...]
    plain: tuple[FrontPoint, ...] = ()

    @classmethod
    def of(cls, request: CalibrationRequest, bench: CacheBench) -> "Calibration":
        """Returns what the runs of a bench gave."""
        points = sorted(bench.points(), key=lambda each: each.cost)
        cached = (each for each in points if each.run.policy and each.change is not None)
        return cls(request, bench, tuple(cached), tuple(p for p in points if not p.run.policy))

    @cached_property
    def quality(self) -> Quality:
        """The quality that the calibration was asked for."""
        return Quality.parse(self.request.quality)

    @cached_property
    def table(self) -> CalibrationTable:
        """The figures as a table and as a picture."""
        request = self.request
        title = f"{request.network}, {request.solver}, {request.nfe} steps"
        return CalibrationTable(title, request.images, self.quality, self.figures, self.plain)

    def badness(self, figure: FrontPoint) -> float:
        assert figure.change is not None
        return self.quality.badness(figure.change)

    @cached_property
    def ranked(self) -> tuple[Finalist, ...]:
        """The cheapest that will do, on further noises too, and those that are as good.

        Raises:
            SettingError: if none does, with the best there is.
        """
        quality, nfe = self.quality, self.request.nfe
        saving = [each for each in self.figures if each.cost < nfe]
        able = [each for each in saving if quality.met(each.change or 0.0)]
        ranked = find_winner(able, quality, self.bench.judge)
        if ranked is not None:
            return ranked
        where = " on further noises" if able else ""
        nearest = min(self.figures, key=self.badness, default=None)
        if nearest is None:
            why = self.bench.remarks[0] if self.bench.remarks else "no cache was tried"
            raise SettingError(f"nothing could be run: {why}")
        raise SettingError(
            f"no setting keeps {quality.metric}={quality.bound:g}{where} and saves anything; the"
            f" nearest is {nearest.run.policy}, {nearest.change:.4g} at {nearest.cost:.2f}"
            " effective evaluations: ask for less, or take more steps"
        )

    def file(self) -> CacheFile:
        """Returns the chosen setting with all that `sample --cache` must know of it."""
        request, chosen = self.request, self.ranked[0]
        network = self.bench.network(request.network)
        return CacheFile(
            cache=self.bench.spec(chosen.point.run),
            network=network.name,
            sketch=sketch(network),
            weights=hash_weights(network.name),
            loaded=hash_loaded(network),
            solver=request.solver,
            grid=self.bench.grid(request.network, request.solver, request.nfe),
            nfe=request.nfe,
            cfg_scale=request.cfg_scale,
            metric=self.quality.metric,
            wanted=self.quality.bound,
            figures=CacheFigures(
                effective=chosen.point.cost,
                quality=self.quality.summarize(chosen.figures),
                images=len(chosen.figures),
            ),
        )

    def write(self, out: Path) -> tuple[CacheFile, list[str]]:
        """Writes the file of the chosen setting; returns it, and what is said of it.

        It is measured on other noises than it was chosen on, those behind them.
        """
        file, bench, images = self.file(), self.bench, self.request.images
        used = (1 + FURTHER) * images
        worth = measure_worth(
            bench.network(self.request.network),
            file,
            range(used, used + images),
            reference_nfe=self.request.reference_nfe,
            folder=bench.folder_beside("reference"),
        )
        cache = bind_mask(file.cache, file.nfe, worth.parts)
        file = file.model_copy(update={"cache": cache, "held_out": worth.held_out()})
        file.write(out)
        name, figures = file.cache.partition(":")[0], file.figures
        first = (
            f"{out}: {name}, {figures.effective:.2f} of {file.nfe} evaluations,"
            f" {file.metric} {figures.quality:.4g} on {figures.images} further noises"
        )
        others = [each.describe(self.quality) for each in self.ranked[1:]]
        close = [f"as near there, within chance: {'; '.join(others)}"] if others else []
        return file, [first, *close, *worth.lines(self.request.network)]

    def command(self, out: Path) -> str:
        """Returns what to type to use the file."""
        request = self.request
        words = ["sample", request.network, "--solver", request.solver, "--nfe", str(request.nfe)]
        words += [] if request.grid_type is None else ["--grid", request.grid_type]
        words += [] if request.cfg_scale == 1.0 else ["--cfg-scale", f"{request.cfg_scale:g}"]
        return " ".join([*words, "--cache", str(out)])


def bind_mask(spec: str, calls: int, parts: int) -> str:
    """Returns the setting of a cache; a mask with the run and the network that it is for."""
    policy = take_cache(spec)
    if not isinstance(policy, FixedMask):
        return spec
    return format_spec(replace(policy, calls=calls, parts=parts))
