"""A call of the sampler: holds its networks and caches, and runs its batches one by one."""

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
from ..models.ledger import Ledger
from ..models.modules import hold, is_compiled
from ..models.schedule import Node
from ..solvers import drive
from .conditions import Branches, make_denoisers, take_rows
from .guidance import Guidance, Setup, warn_of_no_savings
from .loop import BatchRun, Callback
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
        ledger, parts, pending = Ledger(images=len(self.seeds)), list[Tensor](), deque[_Pending]()
        with self._hold_networks() as (others, cache), self._show_bar() as callback:
            before, start = 0 if cache is None else len(cache.ledger.calls), time.perf_counter()
            batches = self._make_batches(ledger, others, cache, callback)
            graph = self._record_graph(batches[0])
            for batch in batches:
                with torch.inference_mode():
                    x = self._draw_start(batch)
                    if graph is None:
                        x = drive(batch.steps(x), batch.answer)
                    else:
                        x = graph.run(batch, x)
                    pending.append(self._decode(batch, x))
                if len(pending) > 1:  # one is waited for once the next is under way
                    parts.append(pending.popleft().fetch())
            parts += [each.fetch() for each in pending]
            ledger.seconds = time.perf_counter() - start
        ledger.cache = None if cache is None else cache.ledger.since(before)
        warn_of_no_savings(self.guidance, ledger)
        return torch.cat(parts), ledger  # joined here, they are ordinary tensors again

    @contextmanager
    def _hold_networks(self) -> Iterator[tuple[Mapping[Branch, Network], Attachment | None]]:
        """Yields further networks of the guidance, and the cache on the network, if any."""
        others = self.guidance.networks(self.network)
        modules = (self.network.module, *(each.module for each in others.values()))
        with hold(*modules, alone=self._changes_modules(others)):
            cached = find_attachment(self.network) is not None
            self._check_guidance(cached or self.cache is not None)
            cache = nullcontext() if self.cache is None else caching(self.network, self.cache)
            with hold(self.network.module, alone=cached), cache:
                yield others, find_attachment(self.network)

    def _changes_modules(self, others: Mapping[Branch, Network]) -> bool:
        """Tells whether nobody else can run the modules meanwhile."""
        networks = (self.network, *others.values())
        compiled = any(each.module is not None and is_compiled(each.module) for each in networks)
        return compiled or self.cache is not None or any(each.hooks for each in networks)

    def _check_guidance(self, cached: bool) -> None:
        plan, size = self.plan, min(self.batch, len(self.seeds))
        setup = Setup(self.network, plan.solver, plan.grid, size, plan.adaptive, cached)
        self.guidance.check(setup)

    def _make_batches(
        self,
        ledger: Ledger,
        others: Mapping[Branch, Network],
        cache: Attachment | None,
        callback: Callback,
    ) -> list[BatchRun]:
        """Returns the runs of all batches, each with its own seeds and conditions."""
        batches = []
        for first in range(0, len(self.seeds), self.batch):
            rows = slice(first, first + self.batch)
            branches = take_rows(self.branches, rows)
            further = make_denoisers(others, branches)
            denoiser = Denoiser(self.network, branches, ledger, cache=cache, others=further)
            noise = Noise(self.seeds[rows], self.network.shape).draw
            solver, grid = self.plan.solver, self.plan.grid
            batches.append(BatchRun(denoiser, solver, grid, self.guidance, callback, noise))
        return batches

    def _record_graph(self, batch: BatchRun) -> Any:
        """Returns the CUDA graph of whole runs; None where the network runs without graphs."""
        if self.network.graphs is None:
            return None
        from .cuda_graph import make_recorded_run

        watched = self.callback is not None
        return make_recorded_run(batch, self.plan, self.choices, watched=watched)

    def _draw_start(self, batch: BatchRun) -> Tensor:
        """Returns the noise (B, *) that a batch starts from; a GPU is not waited for."""
        assert batch.noise is not None
        scale = self.network.schedule.noise_scale(self.plan.grid.nodes[0])
        return send(batch.noise(), self.network.device) * scale

    def _decode(self, batch: BatchRun, x: Tensor) -> "_Pending":
        """Sends the samples of a batch to the host, decoded where the network has a VAE."""
        decode = self.network.decode
        return _Pending(Reading(x if decode is None else decode(x)), batch.denoiser.check_later())

    @contextmanager
    def _show_bar(self) -> Iterator[Callback]:
        """Yields a callback that moves a progress bar of all steps and then calls the user's."""
        size = min(self.batch, len(self.seeds))
        doing, advice = f"sampling {size} images at once", "lower batch, or take dtype bf16"
        steps = self.plan.grid.steps * -(-len(self.seeds) // self.batch)
        off = None if self.progress else True  # None: off where nobody watches, in files and pipes
        bar = tqdm(total=steps, unit="step", disable=off, delay=1.0, leave=False)

        def step_done(n: int, node: Node, x: Tensor, x0: Tensor, ledger: Ledger) -> None:
            bar.update()
            if self.callback is not None:
                self.callback(n, node, x, x0, ledger)

        with bar, memory_advice(doing, advice):
            yield step_done


@dataclass(frozen=True)
class _Pending:
    """A batch on its way to the host.

    check: raises NonFiniteError if the network returned NaN or infinity for it.
    """

    samples: Reading
    check: Callable[[], None]

    def fetch(self) -> Tensor:
        """Returns the samples; raises as `check`."""
        self.check()
        return self.samples.tensor()
