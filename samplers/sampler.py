"""`Sampler`: a network, ready to be asked for images."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, pairwise
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..models.caching import Policy, attached, caching
from ..models.denoiser import Denoiser, Network
from ..models.errors import SettingError
from ..models.families import Size, network_of
from ..models.ledger import Ledger
from ..models.load import load
from ..models.memory import memory_advice
from ..models.schedule import Node
from ..models.speed import Speed
from ..models.transfer import Reading, sent
from ..solvers import Bound
from .conditions import Conditions, branches_of, check_branches, denoisers_of, rows_of
from .guidance import Guidance, Setup, policy_of
from .images import Picture, to_pil
from .loop import Callback, carry, stage_calls
from .noise import Noise, checked_seeds
from .plan import Plan, default_schedule, make_plan
from .recorded import Course, course


@dataclass(frozen=True)
class Result:
    """What a run gave.

    samples: (B, *) float32 on the CPU: images in [-1, 1], decoded where the network has a VAE.
    ledger:  what it cost.
    """

    samples: Tensor
    ledger: Ledger

    @cached_property
    def images(self) -> list[Picture]:
        """The samples as PIL images, in the order of the seeds."""
        return to_pil(self.samples)


class Sampler:
    """Draws images from one network; holds no state between calls.

    >>> sampler = Sampler.from_pretrained("fashion-dit")
    >>> result = sampler(range(16), class_labels=3, solver="unipc-3", nfe=8, guidance=CFG(2.0))
    >>> result.images[0].save("dress.png"); print(result.ledger)
    """

    def __init__(self, network: Network) -> None:
        self.network = network

    @classmethod
    def from_pretrained(
        cls,
        source: Any,
        *,
        dtype: str | torch.dtype | None = None,
        device: str | torch.device | None = None,
        speed: Speed | None = None,
    ) -> "Sampler":
        """The sampler of anything that `models.load.load` takes."""
        return cls(load(source, dtype=dtype, device=device, speed=speed))

    @classmethod
    def from_pipeline(cls, pipe: Any, size: Size | None = None) -> "Sampler":
        """The sampler of a live diffusers pipeline, whatever scheduler it holds.

        size: of what is sampled, for networks that are asked with a prompt (`models.families`);
            their conditions are `encoded(pipe, size, prompt=...)`. None is the pipeline's own.

        Raises:
            ModelError: if the network cannot be called without its pipeline.
        """
        return cls(load(pipe) if size is None else network_of(pipe, size))

    def plan(self, **choices: Any) -> Plan:
        """The solver and grid that a call with these choices would run; see `make_plan`."""
        plan = make_plan(self.network.schedule, **choices)
        if isinstance(plan.solver, Bound):
            plan.solver.check_network(self.network)
        return plan

    def __call__(
        self,
        seeds: Sequence[int],
        *,
        class_labels: int | Sequence[int] | None = None,
        conditions: Conditions | None = None,
        negative: Conditions | None = None,
        guidance: Guidance | None = None,
        cache: Policy | None = None,
        batch: int = 32,
        callback: Callback | None = None,
        progress: bool = False,
        **choices: Any,
    ) -> Result:
        """Samples one image per seed.

        Args:
            seeds: one per image; an image depends on its own seed and on no other.
            class_labels: one for all or one per image; None is the null class where there is one.
            conditions: further keyword tensors of the network, one row per image or one for all.
            negative: the same for the unconditional branch.
            guidance: a policy such as `CFG(2.0)`; None evaluates the conditional branch alone.
            cache: what to skip inside the network, such as `TaylorSeer(interval=4)`, for this call;
                a cache that is on the network already (`caching`) works without being named.
            batch: images sampled at once.
            callback: called after each step with (step, node, x, x0, ledger).
            progress: show a progress bar in a terminal once the run has taken a second.
            choices: solver, nfe or steps, grid and final, as `make_plan` takes them. With none but
                an nfe, the package's own schedule for an embedded network, if it has one.

        Raises:
            FewstepError: for anything that cannot be run, before the network is called.
            NonFiniteError: if the network returns NaN or infinity.
            MemoryLackError: if a batch does not fit on the device.
        """
        if batch < 1:
            raise SettingError(f"batch must be at least 1, not {batch}")
        guidance, seeds = policy_of(guidance), checked_seeds(seeds)
        default = default_schedule(self.network.name, choices, guidance)
        plan = self.plan(**choices) if default is None else self.plan(solver=default)
        branches = branches_of(self.network, len(seeds), class_labels, conditions, negative)
        check_branches(self.network, branches, guidance, plan.grid)
        cached = cache is not None or attached(self.network) is not None
        size = min(batch, len(seeds))
        guidance.check(Setup(self.network, plan.solver, plan.grid, size, plan.adaptive, cached))
        _check_cache(cache, plan)
        ledger, networks = Ledger(images=len(seeds)), guidance.networks(self.network)
        chunks = [slice(i, i + batch) for i in range(0, len(seeds), batch)]
        start = time.perf_counter()
        on = nullcontext() if cache is None else caching(self.network, cache)
        doing, advice = f"sampling {size} images at once", "lower batch, or take dtype bf16"
        bar = _bar(progress, plan.grid.steps * len(chunks), callback)
        with on, bar as step_done, memory_advice(doing, advice):
            held = attached(self.network)
            before = 0 if held is None else len(held.ledger.calls)
            asked = [
                Denoiser(self.network, own, ledger, cache=held, others=denoisers_of(networks, own))
                for own in (rows_of(branches, rows) for rows in chunks)
            ]
            whole = course(asked[0], plan, guidance, choices, watched=callback is not None)
            way = Way(plan, guidance, whole, step_done)
            drawn = (way.draw(each, seeds[rows]) for each, rows in zip(asked, chunks, strict=True))
            parts = [draft.home() for draft in _ahead(drawn)]
            ledger.seconds = time.perf_counter() - start
        ledger.cache = None if held is None else held.ledger.since(before)
        return Result(torch.cat(parts), ledger)  # joined here, they are ordinary tensors again


@dataclass(frozen=True)
class Draft:
    """A batch on its way to the host.

    check: raises NonFiniteError if the network returned NaN or infinity for it.
    """

    samples: Reading
    check: Callable[[], None]

    def home(self) -> Tensor:
        """The samples; raises as `check`."""
        self.check()
        return self.samples.tensor()


@dataclass(frozen=True)
class Way:
    """From noise to samples, for one batch after the other.

    whole:    what a recorded run is replayed by; None to go step by step.
    callback: called after each step.
    """

    plan: Plan
    guidance: Guidance
    whole: Course | None
    callback: Callback

    def draw(self, denoiser: Denoiser, seeds: Sequence[int]) -> Draft:
        """One batch from its noise to its decoded samples; a GPU is not waited for."""
        network, grid = denoiser.network, self.plan.grid
        noise = Noise(seeds, network.shape)
        with torch.inference_mode():
            x = sent(noise.draw(), network.device) * network.schedule.noise_scale(grid.nodes[0])
            if self.whole is not None:
                x = self.whole.run(denoiser, x)
                for n, node in enumerate(grid.nodes[1:]):  # a progress bar alone listens here
                    self.callback(n, node, x, x, denoiser.ledger)
            else:
                x = self._stepped(denoiser, x, noise)
            x = x if network.decode is None else network.decode(x)
            return Draft(Reading(x), denoiser.check_later())

    def _stepped(self, denoiser: Denoiser, x: Tensor, noise: Noise) -> Tensor:
        solver, grid = self.plan.solver, self.plan.grid
        if denoiser.cache is not None:
            denoiser.cache.begin(stage_calls(solver, grid))
        return carry(denoiser, solver, grid, x, self.guidance, self.callback, noise.draw)


def _ahead(drafts: Iterator[Draft]) -> Iterator[Draft]:
    """The same one later, so that the next batch is under way when one is waited for."""
    for draft, _ in pairwise(chain(drafts, [None])):
        if draft is not None:
            yield draft


def _check_cache(cache: Policy | None, plan: Plan) -> None:
    """Raises SettingError if the plan cannot be cached, before the network is called."""
    if cache is not None and plan.adaptive:
        raise SettingError(
            "an adaptive solver chooses its steps from differences that a cache would falsify;"
            " drop the cache or take another solver"
        )
    if cache is not None:
        cache.check(stage_calls(plan.solver, plan.grid)[0])


@contextmanager
def _bar(progress: bool, steps: int, callback: Callback | None) -> Iterator[Callback]:
    """A callback that moves a progress bar of all steps and then calls the user's."""
    off = None if progress else True  # None: off where nobody watches, in files and pipes
    with tqdm(total=steps, unit="step", disable=off, delay=1.0, leave=False) as bar:

        def step_done(n: int, node: Node, x: Tensor, x0: Tensor, ledger: Ledger) -> None:
            bar.update()
            if callback is not None:
                callback(n, node, x, x0, ledger)

        yield step_done
