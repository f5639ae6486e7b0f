"""The races of `fewstep bench speed`: runs of ours beside those of diffusers and of cache-dit.

The first side of a race is ours. What takes time to prepare, such as the search for the scheduler
that a race is run against, is prepared when the race begins.
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.resources import as_file, files
from typing import Any

import torch

from ... import models
from ...samplers.diffusers.scheduler import SolverScheduler
from ...samplers.sampler import Sampler
from ...solvers import Executor
from ...solvers.presets import best_preset, preset
from ..bench.store import RowStore
from ..bench.timing import time_call
from .caches import rival_run
from .command import measure, measure_python
from .distances import Distance, DistanceMeter
from .overhead import (
    PAIRS,
    RUNS,
    SHAPES,
    Make,
    Pair,
    Solve,
    make_ours,
    make_stepping,
    make_theirs,
    time_step,
    time_thread,
)
from .rival_bench import find_nearest_rival
from .rivals import RivalSampler

OURS, THEIRS, PLAIN, CACHE_DIT = "fewstep", "diffusers", "without a cache", "cache-dit"
Works = Mapping[str, Callable[[], float]]


@dataclass(frozen=True)
class Contest:
    """The sides of a race, each of which measures itself.

    remark: what they are, in words.
    equal:  whether ours is as good as what it is compared with.
    spent:  seconds that a search took, where ours runs what it found.
    images: that one run draws.
    """

    works: Works
    remark: str = ""
    equal: bool = True
    spent: float | None = None
    images: int = 1


@dataclass(frozen=True)
class Race:
    """A comparison in turns.

    part:  the heading that it stands under; name: what is run.
    asked: the least ratio of the second side to the first that is claimed; None for no claim.
    unit:  of what the sides measure.
    """

    part: str
    name: str
    prepare: Callable[[], Contest] = field(compare=False, repr=False)
    asked: float | None = None
    unit: str = "s"


# Solver steps, with a stored tensor in place of the network.

STEPS = 20
CLAIMED = {"dpmpp-2m": 9.0, "unipc-2": 15.0}
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
TUNED = Pair("fashion-dit-nfe5", "UniPCMultistepScheduler", FLOW, flow=True)


def race_steps() -> Iterator[Race]:
    """Yields the races of solver steps at both batch sizes, a tuned schedule among them."""
    named = [pair for pair in PAIRS if pair.name in (*CLAIMED, "heun", "sde-dpmpp-2")]
    for shape in SHAPES:
        for pair in (*named, TUNED):
            prepare = partial(_prepare_steps, pair, shape)
            name = f"{pair.name}, batch {shape[0]}"
            yield Race("solver step", name, prepare, CLAIMED.get(pair.name), "us")


def race_scheduler() -> Iterator[Race]:
    """Yields the race of our scheduler object against diffusers' own, as a pipeline steps them."""
    yield Race(
        "solver step", "SolverScheduler with dpmpp-2m, batch 1", _prepare_scheduler, unit="us"
    )


def _prepare_scheduler() -> Contest:
    from diffusers import DPMSolverMultistepScheduler

    theirs = DPMSolverMultistepScheduler()
    ours = SolverScheduler.from_config(theirs.config, solver="dpmpp-2m")
    works = {
        name: partial(_time_scheduler, each) for name, each in ((OURS, ours), (THEIRS, theirs))
    }
    return Contest(
        works, f"CPU time of one thread, {STEPS} steps beside DPMSolverMultistepScheduler"
    )


@torch.inference_mode()
def _time_scheduler(scheduler: Any) -> float:
    """Returns the CPU time of the quickest run in microseconds per step."""
    x, out = torch.ones(SHAPES[0]), torch.full(SHAPES[0], 0.5)

    def run() -> None:
        state = x
        for t in scheduler.timesteps:
            state = scheduler.step(out, t, state, return_dict=False)[0]

    times = []
    for _ in range(RUNS):
        scheduler.set_timesteps(STEPS)
        times.append(time_thread(run))
    return min(times) / STEPS * 1e6


def _prepare_steps(pair: Pair, shape: tuple[int, ...]) -> Contest:
    steps, ours = (preset(TUNED.name).nfe, _make_tuned) if pair is TUNED else (STEPS, make_ours)
    sides: dict[str, Make] = {OURS: ours, THEIRS: make_theirs}
    works = {name: partial(time_step, make, pair, shape, steps) for name, make in sides.items()}
    return Contest(works, f"{steps} steps beside {pair.rival}")


def _make_tuned(pair: Pair, steps: int) -> Solve:
    schedule = preset(pair.name)
    return make_stepping(Executor(schedule), schedule.grid())


# Whole pictures of the quality that diffusers reaches in 20 evaluations.

EVALUATIONS = 20
HALF = 2.0  # ours takes at most half the time


def race_pictures(
    networks: Sequence[str], seeds: range, batches: Sequence[int], store: RowStore[Distance]
) -> Iterator[Race]:
    """Yields the races of whole pictures, ours with as many evaluations as reach their distance."""
    for name in networks:
        for batch in batches:
            prepare = partial(_prepare_pictures, name, seeds, batch, store)
            yield Race("time to equal distance", f"{name}, batch {batch}", prepare, HALF)


def _prepare_pictures(name: str, seeds: range, batch: int, store: RowStore[Distance]) -> Contest:
    meter = DistanceMeter(name, seeds, store)
    theirs = find_nearest_rival(meter, EVALUATIONS)
    ours = find_equal(meter, theirs)
    call: dict[str, Any] = {"batch": batch, "class_labels": meter.labels_of(range(batch))}
    rival = RivalSampler(meter.sampler.network, str(theirs.run.rival), EVALUATIONS)
    draws: dict[str, Callable[..., object]] = {
        OURS: partial(meter.sampler, nfe=ours.run.nfe),
        THEIRS: rival,
    }
    works = {
        side: partial(time_call, partial(draw, range(batch), **call))
        for side, draw in draws.items()
    }
    schedule = best_preset(name, ours.run.nfe, 1.0)
    budget = {} if schedule is None else preset(schedule).provenance["budget"]
    remark, equal = f"{_describe(ours)}; {_describe(theirs)}", ours.rms <= theirs.rms
    return Contest(works, remark, equal, budget.get("seconds"), batch)


def find_equal(meter: DistanceMeter, theirs: Distance) -> Distance:
    """Returns what `sample` draws in the fewest evaluations that come as near as a rival.

    Where none up to its number does, that of its number.
    """
    for nfe in range(4, theirs.run.nfe):
        if (ours := meter.measure_sampled(nfe)).rms <= theirs.rms:
            return ours
    return meter.measure_sampled(theirs.run.nfe)


def _describe(distance: Distance) -> str:
    run = distance.run
    what = run.rival or " ".join(filter(None, (run.solver, run.grid)))
    return f"{what}, NFE {run.nfe}, distance {distance.rms:.4f}"


# Caches, in runs of 30 evaluations.

LONG = {"solver": "dpmpp-2m", "nfe": 30}
CACHES = {  # name -> ours, that of diffusers, that of cache-dit
    "a third of the evaluations in full": (
        "taylorseer:interval=3,order=1",
        "diffusers-taylorseer:cache_interval=3,max_order=1,disable_cache_before_step=2",
        None,
    ),
    "first block, nothing skipped": (
        "first-block:threshold=1e-9",
        "diffusers-first-block:threshold=1e-9",
        "cache-dit:residual_diff_threshold=1e-9,Fn_compute_blocks=1",
    ),
    "first block, threshold 0.1": (
        "first-block:threshold=0.1",
        "diffusers-first-block:threshold=0.1",
        "cache-dit:residual_diff_threshold=0.1,Fn_compute_blocks=1",
    ),
}


def race_caches(network: str, batch: int) -> Iterator[Race]:
    """Yields the races of caches on a transformer, each beside the same run without one."""
    for name, (ours, *others) in CACHES.items():
        for side, theirs in zip((THEIRS, CACHE_DIT), others, strict=True):
            if theirs is not None:
                prepare = partial(_prepare_caches, network, batch, ours, side, theirs)
                yield Race("cache", f"{name}, beside {side}", prepare)


def _prepare_caches(name: str, batch: int, ours: str, side: str, theirs: str) -> Contest:
    sampler, seeds = Sampler.from_pretrained(name), range(batch)
    call: dict[str, Any] = {**LONG, "class_labels": [seed % 10 for seed in seeds]}
    rival_run(sampler.network, theirs, seeds, **call)  # refuses what cannot run
    runs: dict[str, Callable[[], object]] = {
        OURS: partial(sampler, seeds, cache=ours, batch=batch, **call),
        side: partial(rival_run, sampler.network, theirs, seeds, **call),
        PLAIN: partial(sampler, seeds, batch=batch, **call),
    }
    works = {each: partial(time_call, run) for each, run in runs.items()}
    return Contest(works, f"{ours}; {theirs}", images=batch)


# From the command to a file of 64 garments.

SCRIPT = """
import json, sys, torch
from diffusers import DiTTransformer2DModel, UniPCMultistepScheduler
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils import make_image_grid

network = DiTTransformer2DModel.from_pretrained(sys.argv[1]).float().eval()
scheduler = UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction")
scheduler.set_timesteps(20)
x = torch.randn(64, 1, 32, 32, generator=torch.Generator().manual_seed(0))
labels = torch.arange(64) % 10
with torch.inference_mode():
    for t in scheduler.timesteps:
        out = network(x, t.expand(64), class_labels=labels, return_dict=False)[0]
        x = scheduler.step(out[:, :1], t, x, return_dict=False)[0]
images = VaeImageProcessor(vae_scale_factor=1).postprocess(x.expand(-1, 3, -1, -1))
make_image_grid(images, 8, 8).save("theirs.png")
"""


def race_commands() -> Iterator[Race]:
    """Yields the race of the command against the shortest script with diffusers that draws."""
    yield Race("cold start", "64 garments of fashion-dit to a file", _prepare_commands)


def _prepare_commands() -> Contest:
    words = ("sample", "fashion-dit", "--nfe", "5", "--seeds", "0-63", "--quiet")
    works: Works = {OURS: partial(_time_ours, words), THEIRS: _time_script}
    return Contest(
        works, f"{' '.join(words)}; a script with UniPC of {EVALUATIONS} evaluations", images=64
    )


def _time_ours(words: Sequence[str]) -> float:
    with tempfile.TemporaryDirectory() as folder:
        return measure(words, folder)[0]


def _time_script() -> float:
    where = files(models) / "embedded" / "fashion-dit"
    with tempfile.TemporaryDirectory() as folder, as_file(where) as network:
        return measure_python(["-c", SCRIPT, str(network)], folder)[0]
