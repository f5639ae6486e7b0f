"""`fewstep calibrate`: the cheapest cache that keeps the images as near as asked.

Every policy is run at several settings on the same noises as the uncached run of the same solver
and steps. The front of quality against effective evaluations is shown, and the cheapest setting
that meets the quality becomes a small file for `sample --cache`.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from ..models.caching.base import CACHES
from ..models.errors import SettingError, UnknownNameError
from ..models.files import check_writable
from ..models.network import Network
from ..models.probe import hash_loaded, sketch
from ..models.schedule import NoiseSchedule
from ..models.user_code import lend
from ..models.weights import hash_weights
from ..samplers.cache_file import CacheFigures, CacheFile
from ..samplers.plan import settle_choices
from .bench.front_table import FrontPoint
from .bench.plot import draw_panels, frame, scatter
from .bench.rows import ResultStore
from .bench.runner import run_all
from .cache_candidates import list_settings
from .cache_worth import measure_worth
from .experiments.cache import QUALITIES, CacheBench
from .experiments.cache_front import CacheFront
from .options import make_request
from .requests import CalibrationRequest

HIGHER = ("psnr",)  # is better; of the others lower is


@dataclass(frozen=True)
class Quality:
    """How near cached images must stay to the uncached ones.

    metric: a name of `QUALITIES`; bound: the worst value that will do.
    """

    metric: str
    bound: float

    @classmethod
    def parse(cls, text: str) -> "Quality":
        """Reads `rel-l2=0.05` or `psnr=30`; raises FewstepError for anything else."""
        name, _, value = text.partition("=")
        if name not in QUALITIES:
            raise UnknownNameError("quality", name, QUALITIES)
        try:
            bound = float(value)
        except ValueError:
            bound = math.nan
        if not (math.isfinite(bound) and bound > 0.0):
            raise SettingError(f"{text!r} is no quality; write rel-l2=0.05, psnr=30 or lpips=0.05")
        return cls(name, bound)

    def met(self, value: float) -> bool:
        return value >= self.bound if self.metric in HIGHER else value <= self.bound

    def badness(self, value: float) -> float:
        """Returns the value with its sign turned where more is better."""
        return -value if self.metric in HIGHER else value


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
        run_all(bench, progress=progress)
        return Calibration.of(request, bench).write(request.out)[0]


def make_bench(request: CalibrationRequest) -> CacheBench:
    """Returns the runs to be made; their figures are kept beside the file that will be written.

    Raises:
        FewstepError: for what cannot be run, or not be written.
    """
    check_writable(request.out, ".json")
    quality = Quality.parse(request.quality)
    for each in request.cache or ():
        CACHES.get(each.partition(":")[0])
    front = CacheFront(
        models=(request.network,),
        policies=("taylorseer",),
        solvers=(request.solver,),
        steps=(request.nfe,),
        baselines=(),
        budgets=(),
        grid=request.grid_type,
        cfg_scale=request.cfg_scale,
        images=request.images,
        reference_nfe=0,
        quality=quality.metric,  # type: ignore[arg-type]
    )
    store = ResultStore(request.out.with_name(f"{request.out.name}.figures.jsonl"))
    store.check()
    bench = CacheBench(front, store, request.device)
    network, predictors = bench.network(request.network), request.predictor or ()
    policies = tuple(list_settings(network, request.cache or (), predictors))
    bench.front = replace(front, policies=policies)
    return bench


@dataclass(frozen=True)
class Calibration:
    """The result of the runs: the settings, cheap first, and what was asked for."""

    request: CalibrationRequest
    bench: CacheBench
    figures: tuple[FrontPoint, ...]

    @classmethod
    def of(cls, request: CalibrationRequest, bench: CacheBench) -> "Calibration":
        """Returns what the runs of a bench gave."""
        known = [each for each in bench.points() if each.run.policy and each.change is not None]
        return cls(request, bench, tuple(sorted(known, key=lambda each: each.cost)))

    @cached_property
    def quality(self) -> Quality:
        """The quality that the calibration was asked for."""
        return Quality.parse(self.request.quality)

    def front(self) -> list[FrontPoint]:
        """Returns those that nothing cheaper is as good as."""
        best, front = math.inf, []
        for each in self.figures:
            if (badness := self.badness(each)) < best:
                best = badness
                front.append(each)
        return front

    def badness(self, figure: FrontPoint) -> float:
        assert figure.change is not None
        return self.quality.badness(figure.change)

    def choose(self) -> FrontPoint:
        """Returns the cheapest that will do.

        Raises:
            SettingError: if none does, with the best there is.
        """
        quality = self.quality
        able = [each for each in self.figures if quality.met(each.change or 0.0)]
        saving = [each for each in able if each.cost < self.request.nfe]
        if saving:
            return min(saving, key=lambda each: (each.cost, self.badness(each)))
        nearest = min(self.figures, key=self.badness, default=None)
        if nearest is None:
            why = self.bench.remarks[0] if self.bench.remarks else "no cache was tried"
            raise SettingError(f"nothing could be run: {why}")
        raise SettingError(
            f"no setting keeps {quality.metric}={quality.bound:g} and saves anything; the nearest"
            f" is {nearest.run.policy}, {nearest.change:.4g} at {nearest.cost:.2f} effective"
            " evaluations: ask for less, or take more steps"
        )

    def file(self) -> CacheFile:
        """Returns the chosen setting with all that `sample --cache` must know of it."""
        request, chosen = self.request, self.choose()
        assert chosen.change is not None
        network = self.bench.network(request.network)
        return CacheFile(
            cache=self.bench.spec(chosen.run),
            network=network.name,
            sketch=sketch(network),
            weights=hash_weights(network.name),
            loaded=hash_loaded(network),
            solver=request.solver,
            grid=self._find_grid(network.schedule),
            nfe=request.nfe,
            cfg_scale=request.cfg_scale,
            metric=self.quality.metric,
            wanted=self.quality.bound,
            figures=CacheFigures(
                effective=chosen.cost, quality=chosen.change, images=request.images
            ),
        )

    def _find_grid(self, schedule: NoiseSchedule) -> str | None:
        """Returns the grid of its runs by name, also where it is the default."""
        typed: dict[str, Any] = {"solver": self.request.solver, "nfe": self.request.nfe}
        typed |= {} if self.request.grid_type is None else {"grid": self.request.grid_type}
        grid: str | None = settle_choices(schedule, typed).get("grid")
        return grid

    def write(self, out: Path) -> tuple[CacheFile, list[str]]:
        """Writes the file of the chosen setting; returns it, and what is said of it.

        It is measured on as many noises as it was chosen on, which are the next ones.
        """
        file, bench, images = self.file(), self.bench, self.request.images
        worth = measure_worth(
            bench.network(self.request.network),
            file,
            range(images, 2 * images),
            reference_nfe=self.request.reference_nfe,
            folder=bench.folder_beside("reference"),
        )
        file = file.model_copy(update={"held_out": worth.held_out()})
        file.write(out)
        name, figures = file.cache.partition(":")[0], file.figures
        first = (
            f"{out}: {name}, {figures.effective:.2f} of {file.nfe} evaluations,"
            f" {file.metric} {figures.quality:.4g}"
        )
        return file, [first, *worth.lines(self.request.network)]

    def lines(self) -> Iterator[str]:
        """Yields the front as a table; what is good enough is marked."""
        quality = self.quality
        yield f"{QUALITIES[quality.metric]}, {self.request.images} images"
        yield ""
        yield f"| effective | {quality.metric} | meets {quality.bound:g} | cache |"
        yield "|---|---|---|---|"
        for each in self.front():
            value = each.change or 0.0
            mark = "yes" if quality.met(value) else ""
            yield f"| {each.cost:.2f} | {value:.4g} | {mark} | `{each.run.policy}` |"
        yield ""

    def command(self, out: Path) -> str:
        """Returns what to type to use the file."""
        request = self.request
        words = ["sample", request.network, "--solver", request.solver, "--nfe", str(request.nfe)]
        words += [] if request.grid_type is None else ["--grid", request.grid_type]
        words += [] if request.cfg_scale == 1.0 else ["--cfg-scale", f"{request.cfg_scale:g}"]
        return " ".join([*words, "--cache", str(out)])

    def draw(self, path: Path) -> None:
        """Draws quality against effective evaluations."""
        draw_panels([partial(_paint, self)], path)


def _paint(calibration: Calibration, axis: Any) -> None:
    quality, names = (
        calibration.quality,
        dict.fromkeys(each.run.family for each in calibration.figures),
    )
    for i, name in enumerate(names):
        shown = [
            (e.cost, e.change) for e in calibration.figures if e.run.family == name and e.change
        ]
        if shown:
            scatter(axis, i, name, shown)
    front = [each for each in calibration.front() if each.change]
    axis.plot([each.cost for each in front], [each.change for each in front], "k-", lw=0.8)
    axis.axhline(quality.bound, color="grey", lw=0.8, ls="--", label="asked for")
    request = calibration.request
    title = f"{request.network}, {request.solver}, {request.nfe} steps"
    yscale = "linear" if quality.metric in HIGHER else "log"
    frame(axis, title, "effective evaluations", QUALITIES[quality.metric], yscale)
