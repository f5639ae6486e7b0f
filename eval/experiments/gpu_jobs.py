"""The jobs of `fewstep bench gpu`: small networks in several ways, large ones under caches."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...models.caching import CGTaylor, Policy, TaylorSeer
from ...models.denoiser import Branch, Denoiser, Network
from ...models.load import load
from ...models.speed import Speed
from ...samplers.guidance import CFG, Guidance, Moment, Unguided
from ...samplers.noise import Noise
from ...samplers.sampler import Sampler
from .caches import rival_run
from .gpu_figures import GpuFigure, time_medians
from .gpu_networks import DIT, FLUX, TINY_DIT, TINY_FLUX, Sized
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


@dataclass(frozen=True)
class Small:
    """One embedded network at one batch size."""

    model: str
    batch: int
    device: torch.device
    scale: Scale

    def figures(self, job: str) -> list[GpuFigure]:
        """Returns images per second of all ways, and their ratios."""
        if COMPILED in self.scale.ways:
            torch.compiler.reset()  # compiled code is kept by class, and only so much of it
        networks = {way: self._network(WAYS[way]) for way in self.scale.ways}
        works = {way: self._make_ours(network) for way, network in networks.items()}
        works[THEIRS] = self._make_theirs(self._network(Speed()))
        if COMPILED in self.scale.ways:
            works[THEIRS_COMPILED] = self._make_theirs(self._network(Speed(compile=True)))
        taken = self._measure(works)
        images = self.batch * self.scale.runs
        figures = [GpuFigure(job, way, images / each, " images/s") for way, each in taken.items()]
        return [*figures, *self._ratios(job, taken, networks)]

    def _ratios(
        self, job: str, taken: dict[str, float], networks: dict[str, Network]
    ) -> list[GpuFigure]:
        best = min((way for way in networks), key=lambda way: taken[way])
        ratios = [_ratio(job, f"{best} over {THEIRS}", taken[THEIRS] / taken[best], 3.0)]
        if THEIRS_COMPILED in taken:
            over = f"{best} over {THEIRS_COMPILED}"
            ratios.append(_ratio(job, over, taken[THEIRS_COMPILED] / taken[best], 1.3))
        call = self._call(networks[best])
        share = taken[best] / (self.scale.runs * NFE * call)
        what = f"{best}, wall time over NFE x its call of the network"
        return [*ratios, GpuFigure(job, what, share, "x", 1.05, "most")]

    def _network(self, speed: Speed) -> Network:
        return load(self.model, device=self.device, speed=speed)

    def _make_ours(self, network: Network) -> Callable[[], object]:
        sampler, labels = Sampler(network), [k % 10 for k in self._seeds]

        def work() -> object:
            return sampler(
                self._seeds, class_labels=labels, solver=SOLVER, nfe=NFE, batch=self.batch
            )

        return work

    def _make_theirs(self, network: Network) -> Callable[[], object]:
        """Returns the loop of a diffusers pipeline, without its bar; the noise is ours."""
        made = RivalSampler(network, SOLVER, NFE)

        def work() -> object:
            return [self._run_pipeline(network, made, seeds) for seeds in self._chunks()]

        return work

    def _run_pipeline(self, network: Network, made: RivalSampler, seeds: Sequence[int]) -> Tensor:
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
        """Returns seconds of one call of the network, of many in a row."""
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
            return self._measure({"": work})[""] / calls

    def _measure(self, works: dict[str, Callable[[], object]]) -> dict[str, float]:
        return time_medians(works, self.device, self.scale.repeats, self.scale.warm)

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

    def overhead(self, job: str) -> list[GpuFigure]:
        """Returns how much longer a run takes than its calls of the network."""
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

        works = {"run": lambda: self._draw(network), "calls": calls}
        taken = time_medians(works, self.device, self.scale.slow, warm=1)
        extra = 100.0 * (taken["run"] / taken["calls"] - 1.0)
        return [
            GpuFigure(
                job, "one call of the network", 1e3 * taken["calls"] / self.scale.steps, " ms"
            ),
            GpuFigure(job, f"run of {self.scale.steps} steps", taken["run"], " s"),
            GpuFigure(job, "solver and guidance", extra, " %", 0.5, "most"),
        ]

    def time_cache(self, cache: str) -> Callable[[str], list[GpuFigure]]:
        """Returns the speed-up of a cache of ours against what it saved, and its memory."""

        def figures(job: str) -> list[GpuFigure]:
            network, policy = self._network(), CACHES[cache]
            works = {
                "full": lambda: self._draw(network),
                "cached": lambda: self._draw(network, policy),
            }
            taken = time_medians(works, self.device, self.scale.slow, warm=1)
            ledger = self._draw(network, policy).ledger.cache
            speedup = taken["full"] / taken["cached"]
            saved = ledger.parts * len(ledger.calls) / ledger.block_evaluations
            ratios = [
                GpuFigure(job, "speed-up", speedup, "x"),
                GpuFigure(job, "full over evaluated blocks", saved, "x"),
                GpuFigure(job, "speed-up of what the blocks allow", speedup / saved, "", 0.9),
            ]
            return [*ratios, *self._memory(job, network, policy, ledger.bytes_predicted)]

        return figures

    def time_rival(self, spec: str) -> Callable[[str], list[GpuFigure]]:
        """Returns the speed-up of somebody else's cache."""

        def figures(job: str) -> list[GpuFigure]:
            network = self._network()
            steps, given = self.scale.steps, self._choose_options(network)
            works = {
                "full": lambda: self._draw(network),
                "cached": lambda: rival_run(network, spec, [0], steps, solver=SOLVER, **given),
            }
            taken = time_medians(works, self.device, self.scale.slow, warm=1)
            return [GpuFigure(job, "speed-up", taken["full"] / taken["cached"], "x")]

        return figures

    def _memory(
        self, job: str, network: Network, policy: Policy, predicted: int
    ) -> list[GpuFigure]:
        if self.device.type != "cuda":
            return [GpuFigure(job, "memory predicted", predicted / 1e6, " MB")]
        peaks = []
        for cache in (None, policy):
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)
            self._draw(network, cache)
            peaks.append(torch.cuda.max_memory_allocated(self.device))
        used = peaks[1] - peaks[0]
        off = 100.0 * abs(used - predicted) / max(predicted, 1)
        return [
            GpuFigure(job, "memory predicted", predicted / 1e6, " MB"),
            GpuFigure(job, "memory measured", used / 1e6, " MB"),
            GpuFigure(job, "prediction off by", off, " %", 5.0, "most"),
        ]

    def _network(self) -> Network:
        return self.make(self.size, self.device, self.scale.dtype)

    def _choose_options(self, network: Network) -> dict[str, Any]:
        return {"class_labels": 1, "guidance": CFG(4.0)} if network.num_classes else {}

    def _draw(self, network: Network, cache: Policy | None = None) -> Any:
        given = self._choose_options(network)
        return Sampler(network)(range(1), solver=SOLVER, nfe=self.scale.steps, cache=cache, **given)

    def _denoiser(self, network: Network) -> tuple[Denoiser, tuple[Branch, ...]]:
        guidance: Guidance = self._choose_options(network).get("guidance", Unguided())
        labels = {Branch.UNCOND: network.null_class, Branch.COND: 1}
        conditions = {
            branch: {"class_labels": torch.tensor([label], device=self.device)}
            for branch, label in labels.items()
            if label is not None and network.num_classes
        }
        asks = guidance.stateless().ask(Moment(network.schedule.at(0.5)))
        return Denoiser(network, conditions), tuple(ask.branch for ask in asks)

    def _rows(self, denoiser: Denoiser, branches: Sequence[Branch]) -> dict[str, Tensor]:
        conditions = [denoiser.conditions.get(branch, {}) for branch in branches]
        return {name: torch.cat([each[name] for each in conditions]) for name in conditions[0]}


def _ratio(job: str, what: str, value: float, asked: float) -> GpuFigure:
    return GpuFigure(job, what, value, "x", asked)
