"""`fewstep bench gpu`: what a run costs beside its network, on one device, beside diffusers.

Small networks: images per second of whole runs, from noise to samples on the host, ours and the
loop of a diffusers pipeline; and how far a run is from its calls of the network alone. Large ones,
of published sizes with random weights: the share of solver and guidance in a run, and what caches
save in time against what they save in blocks. Random weights say nothing about quality, and gates
are set so that they skip a fixed share.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..models.caching import CGTaylor, Policy, TaylorSeer
from ..models.denoiser import Branch, Denoiser, Network
from ..models.errors import FewstepError
from ..models.load import load
from ..models.memory import memory_advice
from ..models.speed import Speed
from ..samplers.guidance import CFG, Guidance, Moment, Unguided
from ..samplers.noise import Noise
from ..samplers.sampler import Sampler
from .cache_rivals import rival_run
from .gpu_networks import DIT, FLUX, TINY_DIT, TINY_FLUX, Sized, dit, flux
from .gpu_timing import Figure, Figures, seconds
from .rivals import RivalSampler

SOLVER, NFE = "dpmpp-2m", 10
EAGER, COMPILED, GRAPH, BOTH = "eager", "compiled", "graph", "compiled, graph"
WAYS = {
    EAGER: Speed(),
    COMPILED: Speed(compile=True),
    GRAPH: Speed(cuda_graph=True),
    BOTH: Speed(compile=True, cuda_graph=True),
}
THEIRS, THEIRS_COMPILED = "diffusers eager", "diffusers compiled"
CACHES: dict[str, Policy] = {
    "taylorseer": TaylorSeer(interval=4),
    "taylorseer, last block": TaylorSeer(interval=4, level="last-block"),
    "cg-taylor": CGTaylor(threshold=1e9, warmup=2, max_consecutive=3, final=0),
}
RIVALS = (
    "diffusers-taylorseer:cache_interval=4,max_order=1,disable_cache_before_step=2",
    "diffusers-first-block:threshold=0.1",
    "cache-dit:residual_diff_threshold=0.1,taylor=1",
)


@dataclass(frozen=True)
class Scale:
    """How much is run.

    small:   embedded networks; batches: their sizes; runs: batches in one timed call.
    repeats: timed calls of each; the median counts; warm: calls before them.
    slow:    the same for large networks, which are steadier; steps: of their runs.
    large:   their sizes: a DiT and a Flux.
    dtype:   of the large ones.
    ways:    how the small ones are run.
    """

    small: tuple[str, ...] = ("fashion-dit", "fashion-unet")
    batches: tuple[int, ...] = (1, 8, 64)
    runs: int = 4
    repeats: int = 5
    warm: int = 3
    slow: int = 2
    steps: int = 12
    large: tuple[Sized, Sized] = (DIT, FLUX)
    dtype: torch.dtype = torch.bfloat16
    ways: tuple[str, ...] = (EAGER, COMPILED, GRAPH, BOTH)


TINY = Scale(
    small=("fashion-dit",),
    batches=(1,),
    runs=1,
    repeats=1,
    warm=1,
    slow=1,
    steps=8,
    large=(TINY_DIT, TINY_FLUX),
    dtype=torch.float32,
    ways=(EAGER,),
)


@dataclass
class Bench:
    """Measures job after job; what is in the store already is not measured again.

    remarks: what could not be run, and why.
    """

    figures: Figures
    device: torch.device
    scale: Scale

    def __post_init__(self) -> None:
        self.remarks: list[str] = []

    def run(self, progress: bool) -> None:
        """All jobs; a failing one is remarked upon and the next one goes on."""
        jobs, off = list(self._jobs()), None if progress else True
        for name, job in tqdm(self.figures.turns(jobs), total=len(jobs), unit="job", disable=off):
            try:
                with memory_advice(name, "it needs a device with more"), _quiet():
                    self.figures.add(job(name))
            except Exception as error:  # one job that fails must not cost the others
                kind = "" if isinstance(error, FewstepError) else f"{type(error).__name__}: "
                self.remarks.append(f"{name}: {kind}{' '.join(str(error).split())[:200]}")
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def rows(self) -> list[Figure]:
        """All figures that were measured here, in the order of the jobs."""
        held = self.figures.held
        return [each for name, _ in self._jobs() for each in held.get(name, [])]

    def _jobs(self) -> Iterator[tuple[str, Callable[[str], list[Figure]]]]:
        for network in self.scale.small:
            for batch in self.scale.batches:
                job = Small(network, batch, self.device, self.scale)
                yield f"{network}, batch {batch}, NFE {NFE}", job.figures
        for size, make in zip(self.scale.large, (dit, flux), strict=True):
            large = Large(size, make, self.device, self.scale)
            yield f"{size}", large.overhead
            for cache in CACHES:
                yield f"{size}, {cache}", large.cached(cache)
            for spec in RIVALS:
                yield f"{size}, {spec}", large.rival(spec)


@dataclass(frozen=True)
class Small:
    """One embedded network at one batch size."""

    model: str
    batch: int
    device: torch.device
    scale: Scale

    def figures(self, job: str) -> list[Figure]:
        """Images per second of all ways, and their ratios."""
        if COMPILED in self.scale.ways:
            torch.compiler.reset()  # compiled code is kept by class, and only so much of it
        networks = {way: self._network(WAYS[way]) for way in self.scale.ways}
        works = {way: self._ours(network) for way, network in networks.items()}
        works[THEIRS] = self._theirs(self._network(Speed()))
        if COMPILED in self.scale.ways:
            works[THEIRS_COMPILED] = self._theirs(self._network(Speed(compile=True)))
        taken = self._timed(works)
        images = self.batch * self.scale.runs
        found = [Figure(job, way, images / each, " images/s") for way, each in taken.items()]
        return [*found, *self._ratios(job, taken, networks)]

    def _ratios(
        self, job: str, taken: dict[str, float], networks: dict[str, Network]
    ) -> list[Figure]:
        best = min((way for way in networks), key=lambda way: taken[way])
        found = [_ratio(job, f"{best} over {THEIRS}", taken[THEIRS] / taken[best], 3.0)]
        if THEIRS_COMPILED in taken:
            over = f"{best} over {THEIRS_COMPILED}"
            found.append(_ratio(job, over, taken[THEIRS_COMPILED] / taken[best], 1.3))
        call = self._call(networks[best])
        share = taken[best] / (self.scale.runs * NFE * call)
        what = f"{best}, wall time over NFE x its call of the network"
        return [*found, Figure(job, what, share, "x", 1.05, "most")]

    def _network(self, speed: Speed) -> Network:
        return load(self.model, device=self.device, speed=speed)

    def _ours(self, network: Network) -> Callable[[], object]:
        sampler, labels = Sampler(network), [k % 10 for k in self._seeds]

        def work() -> object:
            return sampler(
                self._seeds, class_labels=labels, solver=SOLVER, nfe=NFE, batch=self.batch
            )

        return work

    def _theirs(self, network: Network) -> Callable[[], object]:
        """The loop of a diffusers pipeline, without its bar; the noise is ours."""
        made = RivalSampler(network, SOLVER, NFE)

        def work() -> object:
            return [self._piped(network, made, seeds) for seeds in self._chunks()]

        return work

    def _piped(self, network: Network, made: RivalSampler, seeds: Sequence[int]) -> Tensor:
        module: Any = network.module
        scheduler = made.make(made.steps)
        labels = torch.tensor([k % 10 for k in seeds], device=self.device)
        with torch.no_grad():
            x = Noise(seeds, network.shape).draw().to(self.device)
            for t in scheduler.timesteps.to(self.device):
                x_in, time = scheduler.scale_model_input(x, t), t.expand(len(x))
                out = module(x_in, timestep=time, class_labels=labels, return_dict=False)[0]
                x = scheduler.step(out[:, : x.shape[1]], t, x, return_dict=False)[0]
        return x.cpu()

    def _call(self, network: Network) -> float:
        """Seconds of one call of the network, of many in a row."""
        module: Any = network.module
        x = torch.zeros(self.batch, *network.shape, device=self.device)
        given = {
            "timestep": torch.full((self.batch,), 500.0, device=self.device),
            "class_labels": torch.zeros(self.batch, dtype=torch.long, device=self.device),
        }
        calls = self.scale.runs * NFE

        def work() -> None:
            for _ in range(calls):
                module(x, **given, return_dict=False)

        with torch.inference_mode():
            return self._timed({"": work})[""] / calls

    def _timed(self, works: dict[str, Callable[[], object]]) -> dict[str, float]:
        return seconds(works, self.device, self.scale.repeats, self.scale.warm)

    @property
    def _seeds(self) -> range:
        return range(self.batch * self.scale.runs)

    def _chunks(self) -> Iterator[range]:
        return (self._seeds[i : i + self.batch] for i in range(0, len(self._seeds), self.batch))


@dataclass
class Large:
    """One network of a published size, batch 1, guided if it has classes."""

    size: Sized
    make: Callable[[Sized, torch.device, torch.dtype], Network]
    device: torch.device
    scale: Scale

    def overhead(self, job: str) -> list[Figure]:
        """How much longer a run takes than its calls of the network."""
        network = self._network()
        denoiser, branches = self._denoiser(network)
        node = network.schedule.at(0.5)
        x = torch.zeros(1, *network.shape, device=self.device)

        def calls() -> None:
            with torch.inference_mode():
                for _ in range(self.scale.steps):
                    denoiser.network.forward(
                        torch.cat([x] * len(branches)), node, self._rows(denoiser, branches)
                    )

        works = {"run": lambda: self._drawn(network), "calls": calls}
        taken = seconds(works, self.device, self.scale.slow, warm=1)
        extra = 100.0 * (taken["run"] / taken["calls"] - 1.0)
        return [
            Figure(job, "one call of the network", 1e3 * taken["calls"] / self.scale.steps, " ms"),
            Figure(job, f"run of {self.scale.steps} steps", taken["run"], " s"),
            Figure(job, "solver and guidance", extra, " %", 0.5, "most"),
        ]

    def cached(self, cache: str) -> Callable[[str], list[Figure]]:
        """The speed-up of a cache of ours against what it saved, and its memory."""

        def figures(job: str) -> list[Figure]:
            network, policy = self._network(), CACHES[cache]
            works = {
                "full": lambda: self._drawn(network),
                "cached": lambda: self._drawn(network, policy),
            }
            taken = seconds(works, self.device, self.scale.slow, warm=1)
            ledger = self._drawn(network, policy).ledger.cache
            speedup = taken["full"] / taken["cached"]
            saved = ledger.parts * len(ledger.calls) / ledger.block_evaluations
            found = [
                Figure(job, "speed-up", speedup, "x"),
                Figure(job, "full over evaluated blocks", saved, "x"),
                Figure(job, "speed-up of what the blocks allow", speedup / saved, "", 0.9),
            ]
            return [*found, *self._memory(job, network, policy, ledger.bytes_predicted)]

        return figures

    def rival(self, spec: str) -> Callable[[str], list[Figure]]:
        """The speed-up of somebody else's cache."""

        def figures(job: str) -> list[Figure]:
            network = self._network()
            steps, given = self.scale.steps, self._given(network)
            works = {
                "full": lambda: self._drawn(network),
                "cached": lambda: rival_run(network, spec, 1, steps, solver=SOLVER, **given),
            }
            taken = seconds(works, self.device, self.scale.slow, warm=1)
            return [Figure(job, "speed-up", taken["full"] / taken["cached"], "x")]

        return figures

    def _memory(self, job: str, network: Network, policy: Policy, predicted: int) -> list[Figure]:
        if self.device.type != "cuda":
            return [Figure(job, "memory predicted", predicted / 1e6, " MB")]
        peaks = []
        for cache in (None, policy):
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)
            self._drawn(network, cache)
            peaks.append(torch.cuda.max_memory_allocated(self.device))
        held = peaks[1] - peaks[0]
        off = 100.0 * abs(held - predicted) / max(predicted, 1)
        return [
            Figure(job, "memory predicted", predicted / 1e6, " MB"),
            Figure(job, "memory measured", held / 1e6, " MB"),
            Figure(job, "prediction off by", off, " %", 5.0, "most"),
        ]

    def _network(self) -> Network:
        return self.make(self.size, self.device, self.scale.dtype)

    def _given(self, network: Network) -> dict[str, Any]:
        return {"class_labels": 1, "guidance": CFG(4.0)} if network.num_classes else {}

    def _drawn(self, network: Network, cache: Policy | None = None) -> Any:
        given = self._given(network)
        return Sampler(network)(range(1), solver=SOLVER, nfe=self.scale.steps, cache=cache, **given)

    def _denoiser(self, network: Network) -> tuple[Denoiser, tuple[Branch, ...]]:
        guidance: Guidance = self._given(network).get("guidance", Unguided())
        held = {Branch.UNCOND: network.null_class, Branch.COND: 1}
        conditions = {
            branch: {"class_labels": torch.tensor([label], device=self.device)}
            for branch, label in held.items()
            if label is not None and network.num_classes
        }
        asked = guidance.stateless().ask(Moment(network.schedule.at(0.5)))
        return Denoiser(network, conditions), tuple(ask.branch for ask in asked)

    def _rows(self, denoiser: Denoiser, branches: Sequence[Branch]) -> dict[str, Tensor]:
        held = [denoiser.conditions.get(branch, {}) for branch in branches]
        return {name: torch.cat([each[name] for each in held]) for name in held[0]}


def _ratio(job: str, what: str, value: float, asked: float) -> Figure:
    return Figure(job, what, value, "x", asked)


class _quiet(warnings.catch_warnings):
    """Without what caches and schedulers say of settings that are meant for timing."""

    def __enter__(self) -> Any:
        found = super().__enter__()
        warnings.simplefilter("ignore")
        return found
