"""`fewstep calibrate`: the cheapest cache that keeps the images as near as asked.

Every policy is run at several settings on the same noises as the uncached run of the same solver
and steps. The front of quality against effective evaluations is shown, and the cheapest setting
that meets the quality becomes a small file for `sample --cache`.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..models.caching.registry import CACHES
from ..models.denoiser import Network
from ..models.errors import SettingError, UnknownNameError
from ..models.probe import sketch
from ..samplers.cache_file import CacheFigures, CacheFile
from .bench.front_table import FrontPoint
from .bench.plot import draw_panels, frame, scatter
from .bench.rows import ResultStore
from .experiments.cache import QUALITIES, CacheBench, CacheFront
from .experiments.cache_policies import DEEP, FITTED, GATED, TAYLOR

HIGHER = ("psnr",)  # is better; of the others lower is


@dataclass(frozen=True)
class Quality:
    """What is asked of the cached images beside the uncached ones.

    metric: a name of `QUALITIES`; bound: the worst value that will do.
    """

    metric: str
    bound: float

    @classmethod
    def parsed(cls, text: str) -> "Quality":
        """`rel-l2=0.05` or `psnr=30`; raises FewstepError for anything else."""
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
        """Smaller is better."""
        return -value if self.metric in HIGHER else value


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is calibrated.

    caches: names, of which several settings are tried, or names with settings; empty: all that run
            on the network.
    """

    model: str
    solver: str
    nfe: int
    quality: Quality
    caches: tuple[str, ...] = ()
    grid: str | None = None
    cfg_scale: float = 1.0
    images: int = 48
    device: str = "cpu"

    def bench(self, out: Path) -> CacheBench:
        """The runs to be made; their figures are kept beside the file that will be written."""
        for each in self.caches:
            CACHES.get(each.partition(":")[0])
        front = CacheFront(
            models=(self.model,),
            policies=("taylorseer",),
            solvers=(self.solver,),
            steps=(self.nfe,),
            baselines=(),
            budgets=(),
            grid=self.grid,
            cfg_scale=self.cfg_scale,
            images=self.images,
            reference_nfe=0,
            quality=self.quality.metric,  # type: ignore[arg-type]
        )
        store = ResultStore(out.with_name(f"{out.name}.figures.jsonl"))
        store.check()
        bench = CacheBench(front, store, self.device)
        policies = tuple(tried(bench.network(self.model), self.caches))
        bench.front = replace(front, policies=policies)
        return bench


def tried(network: Network, caches: Sequence[str]) -> Iterator[str]:
    """The settings that are tried on a network.

    Raises:
        SettingError: if a name has none prepared for it, or the network cannot be cached.
    """
    if network.module is None:
        raise SettingError(f"{network.name} is a plain function, which has no blocks to skip")
    prepared = DEEP if hasattr(network.module, "up_blocks") else (*TAYLOR, *GATED, *FITTED)
    if not caches:
        yield from prepared
    for each in caches:
        own = [spec for spec in prepared if spec.partition(":")[0] == each]
        if not own and ":" not in each:
            known = sorted({spec.partition(":")[0] for spec in prepared})
            raise SettingError(
                f"no settings of {each!r} are prepared for {network.name}, only of"
                f" {', '.join(known)}; give some, as in {each}:key=value"
            )
        yield from own or [each]


@dataclass(frozen=True)
class Found:
    """What the runs gave: the settings, cheap first, and what was asked for."""

    question: Question
    bench: CacheBench
    figures: tuple[FrontPoint, ...]

    @classmethod
    def of(cls, question: Question, bench: CacheBench) -> "Found":
        known = [each for each in bench.points() if each.run.policy and each.change is not None]
        return cls(question, bench, tuple(sorted(known, key=lambda each: each.cost)))

    def front(self) -> list[FrontPoint]:
        """Those that nothing cheaper is as good as."""
        best, found = math.inf, []
        for each in self.figures:
            if (badness := self.badness(each)) < best:
                best = badness
                found.append(each)
        return found

    def badness(self, figure: FrontPoint) -> float:
        assert figure.change is not None
        return self.question.quality.badness(figure.change)

    def chosen(self) -> FrontPoint:
        """The cheapest that will do.

        Raises:
            SettingError: if none does, with the best there is.
        """
        quality = self.question.quality
        able = [each for each in self.figures if quality.met(each.change or 0.0)]
        saving = [each for each in able if each.cost < self.question.nfe]
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
        """The chosen setting with all that `sample --cache` must know of it."""
        question, chosen = self.question, self.chosen()
        assert chosen.change is not None
        network = self.bench.network(question.model)
        return CacheFile(
            cache=self.bench.spec(chosen.run),
            network=network.name,
            sketch=sketch(network),
            solver=question.solver,
            grid=question.grid,
            nfe=question.nfe,
            cfg_scale=question.cfg_scale,
            metric=question.quality.metric,
            wanted=question.quality.bound,
            figures=CacheFigures(
                effective=chosen.cost, quality=chosen.change, images=question.images
            ),
        )

    def written(self, out: Path) -> str:
        """Writes the file of the chosen setting, and says in one line what it costs."""
        file = self.file()
        file.write(out)
        name, figures = file.cache.partition(":")[0], file.figures
        return (
            f"{out}: {name}, {figures.effective:.2f} of {file.nfe} evaluations,"
            f" {file.metric} {figures.quality:.4g}"
        )

    def lines(self) -> Iterator[str]:
        """The front as a table; what is good enough is marked."""
        quality = self.question.quality
        yield f"{QUALITIES[quality.metric]}, {self.question.images} images"
        yield ""
        yield f"| effective | {quality.metric} | meets {quality.bound:g} | cache |"
        yield "|---|---|---|---|"
        for each in self.front():
            value = each.change or 0.0
            mark = "yes" if quality.met(value) else ""
            yield f"| {each.cost:.2f} | {value:.4g} | {mark} | `{each.run.policy}` |"
        yield ""

    def command(self, out: Path) -> str:
        """What to type to use the file."""
        question = self.question
        words = ["sample", question.model, "--solver", question.solver, "--nfe", str(question.nfe)]
        words += [] if question.grid is None else ["--grid-type", question.grid]
        words += [] if question.cfg_scale == 1.0 else ["--cfg-scale", f"{question.cfg_scale:g}"]
        return " ".join([*words, "--cache", str(out)])

    def draw(self, path: Path) -> None:
        """Quality against effective evaluations."""
        draw_panels([self], _paint, path)


def _paint(axis: Any, found: Found) -> None:
    quality, names = (
        found.question.quality,
        dict.fromkeys(each.run.family for each in found.figures),
    )
    for i, name in enumerate(names):
        shown = [(e.cost, e.change) for e in found.figures if e.run.family == name and e.change]
        if shown:
            scatter(axis, i, name, shown)
    front = [each for each in found.front() if each.change]
    axis.plot([each.cost for each in front], [each.change for each in front], "k-", lw=0.8)
    axis.axhline(quality.bound, color="grey", lw=0.8, ls="--", label="asked for")
    question = found.question
    title = f"{question.model}, {question.solver}, {question.nfe} steps"
    yscale = "linear" if quality.metric in HIGHER else "log"
    frame(axis, title, "effective evaluations", QUALITIES[quality.metric], yscale)


@dataclass(frozen=True, kw_only=True)
class Saving:
    """`fewstep calibrate --guidance adaptive`: the threshold for a wanted saving.

    guidance: `adaptive[:space=..,warmup=..,need=..]`; saving: of the rows of full guidance.
    """

    model: str
    solver: str
    nfe: int
    guidance: str
    saving: float
    cfg_scale: float
    grid: str | None = None
    images: int = 48
    device: str = "cpu"

    def lines(self, progress: bool = False) -> Iterator[str]:
        """The similarity of the branches in each step, the threshold, and what to type.

        Raises:
            SettingError: if no threshold saves that much, or the network cannot be guided.
        """
        from ..models.load import load
        from ..models.registry import parse_spec
        from ..samplers.guidance import AdaptiveGuidance, named_guidance
        from .guidance_calibration import similarity_log
        from .guidance_runs import Images, plan_of

        found = named_guidance(self.guidance, self.cfg_scale)
        if not isinstance(found, AdaptiveGuidance):
            raise SettingError(
                f"only adaptive guidance has such a threshold, not {self.guidance}; write"
                " --guidance adaptive"
            )
        if self.cfg_scale == 1.0:
            raise SettingError("a guidance scale of 1 is no guidance; give --cfg-scale 3")
        ignored = parse_spec(self.guidance)[1].keys() - {"scale", "space", "warmup", "need"}
        if ignored:
            raise SettingError(
                "the threshold is what is looked for, of images judged by themselves; drop"
                f" {', '.join(sorted(ignored))}"
            )
        network = load(self.model, device=self.device)
        plan = plan_of(network, self.solver, self.nfe, self.grid)
        images = Images(count=self.images)
        log = similarity_log(network, plan, self.cfg_scale, images, found.space, progress=progress)
        threshold = _below(log.proposed(self.saving, found.warmup, found.need))
        yield "| step | mean similarity | least |"
        yield "|---|---|---|"
        for step in range(log.steps):
            gamma = log.gamma[:, step]
            yield f"| {step} | {float(gamma.mean()):.5f} | {float(gamma.min()):.5f} |"
        yield ""
        saved = log.saving(threshold, found.warmup, found.need)
        yield f"threshold {threshold!r} saves {100.0 * saved:.1f} % of the rows of full guidance"
        yield "of images that are each judged by themselves; batch=all saves less."
        yield ""
        yield self._command(threshold, found)

    def _command(self, threshold: float, found: Any) -> str:
        settings = {"threshold": threshold, "space": found.space, "warmup": found.warmup}
        settings |= {"need": found.need, "batch": "per-sample"}
        spec = ",".join(f"{name}={value}" for name, value in settings.items())
        grid = "" if self.grid is None else f" --grid-type {self.grid}"
        return (
            f"sample {self.model} --solver {self.solver} --nfe {self.nfe}{grid}"
            f" --cfg-scale {self.cfg_scale:g} --guidance adaptive:{spec}"
        )


def _below(threshold: float) -> float:
    """In six digits, cut off and not rounded up, so that it saves no less."""
    return math.floor(threshold * 1e6) / 1e6
