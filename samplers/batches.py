"""A call of the sampler once its arguments are checked: batch by batch from noise to samples."""

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..models.caching import Attachment, Policy, caching, find_attachment
from ..models.denoiser import Branch, Denoiser, Network
from ..models.devices import Reading, memory_advice, send
from ..models.hold import hold
from ..models.ledger import Ledger
from ..models.modules import is_compiled
from ..models.schedule import Node
from .conditions import Branches, make_denoisers, take_rows
from .cuda_graph import RecordedRun, make_recorded_run
from .guidance import Guidance, Setup, warn_of_no_savings
from .loop import Callback, carry, count_stage_calls
from .noise import Noise
from .plan import Plan


@dataclass(frozen=True)
class Job:
    """A call of the sampler, its arguments checked.

    choices:  what the plan was made of, as far as it was given.
    cache:    put on the network for this job.
    batch:    images sampled at once.
    callback: called after each step, if given.
    """

    network: Network
    plan: Plan
    choices: Mapping[str, Any]
    guidance: Guidance
    seeds: Sequence[int]
    branches: Branches
    cache: Policy | None
    batch: int
    callback: Callback | None
    progress: bool

    def run(self) -> tuple[Tensor, Ledger]:
        """Returns the samples (B, *) on the CPU and what they cost.

        It holds the modules of its networks, and has them alone where it changes what runs in them.

        Raises:
            SettingError: if the network cannot be guided so with what is on it.
        """
        others = self.guidance.networks(self.network)
        modules = (self.network.module, *(each.module for each in others.values()))
        with hold(*modules, alone=self._changes_modules(others)):
            cached = find_attachment(self.network) is not None
            self._check_guidance(cached or self.cache is not None)
            with hold(self.network.module, alone=cached), self._put_cache_on() as cache:
                samples, ledger = self._draw_all(others, cache)
        warn_of_no_savings(self.guidance, ledger)
        return samples, ledger

    def _changes_modules(self, others: Mapping[Branch, Network]) -> bool:
        """Tells whether nobody else can run the modules meanwhile."""
        networks = (self.network, *others.values())
        compiled = any(each.module is not None and is_compiled(each.module) for each in networks)
        return compiled or self.cache is not None or any(each.hooks for each in networks)

    def _check_guidance(self, cached: bool) -> None:
        size = min(self.batch, len(self.seeds))
        plan = self.plan
        setup = Setup(self.network, plan.solver, plan.grid, size, plan.adaptive, cached)
        self.guidance.check(setup)

    @contextmanager
    def _put_cache_on(self) -> Iterator[Attachment | None]:
        """Yields the cache on the network, for the job or since before."""
        with nullcontext() if self.cache is None else caching(self.network, self.cache):
            yield find_attachment(self.network)

    def _draw_all(
        self, others: Mapping[Branch, Network], cache: Attachment | None
    ) -> tuple[Tensor, Ledger]:
        ledger = Ledger(images=len(self.seeds))
        before = 0 if cache is None else len(cache.ledger.calls)
        chunks = [slice(i, i + self.batch) for i in range(0, len(self.seeds), self.batch)]
        start = time.perf_counter()
        size = min(self.batch, len(self.seeds))
        doing, advice = f"sampling {size} images at once", "lower batch, or take dtype bf16"
        steps = self.plan.grid.steps * len(chunks)
        bar = _show_bar(self.progress, steps, self.callback)
        with bar as step_done, memory_advice(doing, advice):
            denoisers = [
                Denoiser(self.network, own, ledger, cache=cache, others=make_denoisers(others, own))
                for own in (take_rows(self.branches, rows) for rows in chunks)
            ]
            runner = self._make_runner(denoisers[0], step_done)
            parts, pending = list[Tensor](), deque[PendingSamples]()
            for denoiser, rows in zip(denoisers, chunks, strict=True):
                pending.append(runner.draw(denoiser, self.seeds[rows]))
                if len(pending) > 1:  # one is waited for once the next is under way
                    parts.append(pending.popleft().fetch())
            parts += [each.fetch() for each in pending]
        ledger.seconds = time.perf_counter() - start
        ledger.cache = None if cache is None else cache.ledger.since(before)
        return torch.cat(parts), ledger  # joined here, they are ordinary tensors again

    def _make_runner(self, denoiser: Denoiser, step_done: Callback) -> "BatchRunner":
        watched = self.callback is not None
        whole = make_recorded_run(denoiser, self.plan, self.guidance, self.choices, watched=watched)
        return BatchRunner(self.plan, self.guidance, whole, step_done)


@dataclass(frozen=True)
class PendingSamples:
    """A batch on its way to the host.

    check: raises NonFiniteError if the network returned NaN or infinity for it.
    """

    samples: Reading
    check: Callable[[], None]

    def fetch(self) -> Tensor:
        """Returns the samples; raises as `check`."""
        self.check()
        return self.samples.tensor()


@dataclass(frozen=True)
class BatchRunner:
    """From noise to samples, for one batch after the other.

    whole:    what a recorded run is replayed by; None to go step by step.
    callback: called after each step.
    """

    plan: Plan
    guidance: Guidance
    whole: RecordedRun | None
    callback: Callback

    def draw(self, denoiser: Denoiser, seeds: Sequence[int]) -> PendingSamples:
        """Returns one batch from its noise to its decoded samples; a GPU is not waited for."""
        network, solver, grid = denoiser.network, self.plan.solver, self.plan.grid
        noise = Noise(seeds, network.shape)
        with torch.inference_mode():
            x = send(noise.draw(), network.device) * network.schedule.noise_scale(grid.nodes[0])
            if self.whole is not None:
                x = self.whole.run(denoiser, x)
                for n, node in enumerate(grid.nodes[1:]):  # a progress bar alone listens here
                    self.callback(n, node, x, x, denoiser.ledger)
            else:
                if denoiser.cache is not None:
                    denoiser.cache.begin(count_stage_calls(solver, grid))
                x = carry(denoiser, solver, grid, x, self.guidance, self.callback, noise.draw)
            x = x if network.decode is None else network.decode(x)
            return PendingSamples(Reading(x), denoiser.check_later())


@contextmanager
def _show_bar(progress: bool, steps: int, callback: Callback | None) -> Iterator[Callback]:
    """Yields a callback that moves a progress bar of all steps and then calls the user's."""
    off = None if progress else True  # None: off where nobody watches, in files and pipes
    with tqdm(total=steps, unit="step", disable=off, delay=1.0, leave=False) as bar:

        def step_done(n: int, node: Node, x: Tensor, x0: Tensor, ledger: Ledger) -> None:
            bar.update()
            if callback is not None:
                callback(n, node, x, x0, ledger)

        yield step_done
