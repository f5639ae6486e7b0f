"""A call of the sampler: holds its networks and caches, and runs its batches one by one."""

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..models.caching import Attachment, Policy, caching, find_attachment
from ..models.denoiser import Branch, Denoiser, Network
from ..models.devices import Reading, memory_advice, send
from ..models.errors import SettingError
from ..models.ledger import CacheLedger, Ledger
from ..models.modules import hold, is_compiled
from ..models.progress import make_bar
from ..models.schedule import Node
from ..solvers import Revisable, drive
from ..solvers.base import Span
from ..solvers.steered import Steered
from .brownian import BrownianNoise
from .conditions import Branches, make_denoisers, take_rows
from .guidance import Guidance, PastBranches, Setup, warn_of_no_savings
from .guidance.nested import check_gradient, takes_gradient
from .loop import BatchRun, Callback
from .noise import Noise, draw_start
from .plan import Plan

Held = tuple[Mapping[Branch, Network], Attachment | None]  # beside a network, and on it


@dataclass(frozen=True)
class JobPart:
    """A network with the steps of the plan that it answers.

    cache: put on the network for the job.
    first, last: the steps; all by default.
    recombined: what the solver remembers of it is combined anew by the guidance of the next.
    """

    network: Network
    guidance: Guidance
    cache: Policy | None = None
    first: int = 0
    last: int | None = None
    recombined: bool = False


@dataclass(frozen=True)
class Job:
    """A call of the sampler, its arguments checked.

    parts:    one, or two of a network that is made of two.
    choices:  what the plan was made of, as far as it was given.
    batch:    images sampled at once.
    callback: called after each step, if given.
    brownian: the noise of the steps is of one Brownian path per seed.
    """

    parts: Sequence[JobPart]
    plan: Plan
    choices: Mapping[str, Any]
    seeds: Sequence[int]
    branches: Branches
    batch: int
    callback: Callback | None
    progress: bool
    brownian: bool = False

    @property
    def network(self) -> Network:
        """The network that answers first."""
        return self.parts[0].network

    def run(self) -> tuple[Tensor, Ledger]:
        """Returns the samples (B, *) on the CPU and what they cost.

        It holds the modules of its networks, and has them alone where it changes what runs in them.

        Raises:
            SettingError: if the network cannot be guided so with what is on it.
        """
        ledger, parts, pending = Ledger(images=len(self.seeds)), list[Tensor](), deque[_Pending]()
        gradient = any(takes_gradient(part.guidance) for part in self.parts)
        mode = torch.no_grad if gradient else torch.inference_mode
        with self._hold_networks() as held, self._show_bar() as callback:
            caches = [cache for _, cache in held if cache is not None]
            before, start = [len(cache.ledger.calls) for cache in caches], time.perf_counter()
            noises = [Noise(self.seeds[rows], self.network.shape) for rows in self._list_rows()]
            batches = self._make_batches(ledger, held, callback, noises)
            graph = self._record_graph(batches[0])
            for noise, batch in zip(noises, batches, strict=True):
                with mode():
                    x = draw_start(noise, self.network.schedule, self.plan.grid.nodes[0])
                    x = send(x, self.network.device)  # a GPU is not waited for
                    if graph is not None:
                        x = graph.run(batch[0], x)
                    for run in batch if graph is None else ():
                        x = drive(run.steps(x), run.answer)
                    pending.append(self._decode(batch, x))
                if len(pending) > 1:  # one is waited for once the next is under way
                    parts.append(pending.popleft().fetch())
            parts += [each.fetch() for each in pending]
            ledger.seconds = time.perf_counter() - start
        ledger.cache = _join_ledgers(caches, before)
        if len(self.parts) == 1:
            warn_of_no_savings(self.parts[0].guidance, ledger)
        return torch.cat(parts), ledger  # joined here, they are ordinary tensors again

    @contextmanager
    def _hold_networks(self) -> Iterator[list[Held]]:
        """Yields, for each part, further networks of its guidance and the cache on its network."""
        others = [part.guidance.networks(part.network) for part in self.parts]
        further = [network for each in others for network in each.values()]
        networks = [*(part.network for part in self.parts), *further]
        with ExitStack() as stack:
            modules = (each.module for each in networks)
            stack.enter_context(hold(*modules, alone=self._changes_modules(networks)))
            held: list[Held] = []
            for part, beside in zip(self.parts, others, strict=True):
                cached = find_attachment(part.network) is not None
                self._check_guidance(part, cached or part.cache is not None)
                stack.enter_context(hold(part.network.module, alone=cached))
                if part.cache is not None:
                    stack.enter_context(caching(part.network, part.cache))
                held.append((beside, find_attachment(part.network)))
            yield held

    def _changes_modules(self, networks: Sequence[Network]) -> bool:
        """Tells whether nobody else can run the modules meanwhile."""
        compiled = any(each.module is not None and is_compiled(each.module) for each in networks)
        cached = any(part.cache is not None for part in self.parts)
        return compiled or cached or any(each.hooks for each in networks)

    def _check_guidance(self, part: JobPart, cached: bool) -> None:
        plan, size = self.plan, min(self.batch, len(self.seeds))
        grid, earlier = plan.grid, plan.grid.nodes[: part.first]
        if len(self.parts) > 1:
            grid = grid.part(part.first, grid.steps if part.last is None else part.last)
        total = len(self.seeds)
        setup = Setup(
            part.network,
            plan.solver,
            grid,
            size,
            adaptive=plan.adaptive,
            cached=cached,
            total=total,
            earlier=earlier,
        )
        if cached and isinstance(plan.settings, Steered):
            raise SettingError(
                "a cache would take each candidate of a step for the next one of a run; drop the"
                " cache, or sample without a reward"
            )
        check_gradient(part.guidance, setup)
        part.guidance.check(setup)

    def _list_rows(self) -> list[slice]:
        """Returns the images of each batch."""
        firsts = range(0, len(self.seeds), self.batch)
        return [slice(first, first + self.batch) for first in firsts]

    def _make_batches(
        self, ledger: Ledger, held: Sequence[Held], callback: Callback, noises: Sequence[Noise]
    ) -> list[list[BatchRun]]:
        """Returns the runs of all batches, by part, each with its own noise and conditions."""
        batches = []
        for rows, noise in zip(self._list_rows(), noises, strict=True):
            runs: list[BatchRun] = []
            path = self._make_path(rows)
            for part, (others, cache) in zip(self.parts, held, strict=True):
                branches = take_rows(self.branches, rows)
                further = make_denoisers(others, branches)
                denoiser = Denoiser(part.network, branches, ledger, cache=cache, others=further)
                solver, grid = self.plan.solver, self.plan.grid
                run = BatchRun(denoiser, solver, grid, part.guidance, callback, noise.draw)
                run.first, run.last, run.before = part.first, part.last, runs[-1] if runs else None
                run.path = path
                run.images = rows.start, len(self.seeds)
                if part.recombined and isinstance(solver, Revisable):
                    run.past = PastBranches(solver.reach)
                runs.append(run)
            batches.append(runs)
        return batches

    def _make_path(self, rows: slice) -> Callable[[Span], Tensor] | None:
        """Returns what the steps of a batch draw from in place of fresh noise."""
        return BrownianNoise(self.seeds[rows], self.network.shape).draw if self.brownian else None

    def _record_graph(self, batch: Sequence[BatchRun]) -> Any:
        """Returns the CUDA graph of whole runs; None where the network runs without graphs."""
        if self.network.graphs is None or len(batch) > 1:
            return None
        from .cuda_graph import make_recorded_run

        watched = self.callback is not None
        return make_recorded_run(batch[0], self.plan, self.choices, watched=watched)

    def _decode(self, batch: Sequence[BatchRun], x: Tensor) -> "_Pending":
        """Sends the samples of a batch to the host, decoded where the network has a VAE."""
        decode = self.network.decode
        checks = [run.denoiser.check_later() for run in batch]
        return _Pending(Reading(x if decode is None else decode(x)), checks)

    @contextmanager
    def _show_bar(self) -> Iterator[Callback]:
        """Yields a callback that moves a progress bar of all steps and then calls the user's."""
        size = min(self.batch, len(self.seeds))
        doing, advice = f"sampling {size} images at once", "lower batch, or take dtype bf16"
        steps = self.plan.grid.steps * -(-len(self.seeds) // self.batch)
        bar = make_bar(total=steps, unit="step", delay=1.0, leave=False, show=self.progress)

        def step_done(n: int, node: Node, x: Tensor, x0: Tensor, ledger: Ledger) -> None:
            bar.update()
            if self.callback is not None:
                self.callback(n, node, x, x0, ledger)

        with bar, memory_advice(doing, advice):
            yield step_done


@dataclass(frozen=True)
class _Pending:
    """A batch on its way to the host.

    checks: raise NonFiniteError if a network returned NaN or infinity for it.
    """

    samples: Reading
    checks: Sequence[Callable[[], None]]

    def fetch(self) -> Tensor:
        """Returns the samples; raises as `checks`."""
        for check in self.checks:
            check()
        return self.samples.tensor()


def _join_ledgers(caches: Sequence[Attachment], before: Sequence[int]) -> CacheLedger | None:
    """Returns the work of the caches of a job; each had made so many calls before."""
    ledgers = [cache.ledger.since(n) for cache, n in zip(caches, before, strict=True)]
    if len(ledgers) < 2:
        return ledgers[0] if ledgers else None
    high, low = ledgers
    return replace(
        high,
        policy=f"{high.policy}, {low.policy}",
        calls=[*high.calls, *low.calls],
        bytes_predicted=high.bytes_predicted + low.bytes_predicted,
        bytes_held=high.bytes_held + low.bytes_held,
    )
