"""A whole run as one CUDA graph: every call of the network and every update of the solver.

All coefficients are numbers of the host, so the graph of a run depends on what was chosen, on the
shapes and on nothing else. A second run with the same choices and shapes records it, later ones
replay it.
"""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor

from ..models.caching import Attachment
from ..models.caching.attach import Record
from ..models.denoiser import PendingNorm
from ..models.graphs import Graphs, is_hashable
from ..models.ledger import Ledger
from ..models.schedule import Node
from ..solvers import drive, dry_run
from .guidance import Measured
from .guidance.base import iterate_nested
from .loop import BatchRun
from .plan import Plan

WHAT = "the whole run"


@dataclass(frozen=True)
class HostRecord:
    """The facts of a recorded run that stay on the host.

    ledger:  its counts.
    outputs: the node of each output, and its number of values.
    """

    ledger: Ledger
    outputs: list[tuple[Node, int]]
    cached: Record | None


@dataclass(frozen=True)
class RecordedRun:
    """A run that can be recorded, with the choices that tell it from others."""

    graphs: Graphs
    key: Hashable

    def run(self, batch: BatchRun, x: Tensor) -> Tensor:
        """Carries x as the loop does; its cost is counted in the denoiser's ledgers."""
        denoiser = batch.denoiser
        conditions = {branch: dict(each) for branch, each in denoiser.conditions.items()}
        work = partial(_run_steps, batch)
        x, norms, record = self.graphs.run(work, self.key, (x, conditions), WHAT)
        denoiser.ledger.add(record.ledger)
        denoiser.unchecked += [
            PendingNorm(node, values, norm)
            for (node, values), norm in zip(record.outputs, norms, strict=True)
        ]
        if denoiser.cache is not None:
            denoiser.cache.add_record(record.cached)
        if batch.callback is not None:  # a progress bar alone listens here
            for n, node in enumerate(batch.grid.nodes[1:]):
                batch.callback(n, node, x, x, denoiser.ledger)
        return x


def make_recorded_run(
    batch: BatchRun, plan: Plan, choices: Mapping[str, Any], watched: bool
) -> RecordedRun | None:
    """Returns the run to record; None where the network runs without graphs, or, warning, cannot.

    watched: somebody wants to see the state after every step.
    """
    graphs, cache = batch.denoiser.network.graphs, batch.denoiser.cache
    if graphs is None:
        return None
    key = (tuple(sorted(choices.items())), batch.guidance, cache and cache.policy)
    why = _find_obstacle(batch, plan, key, watched)
    if why is None:
        return RecordedRun(graphs, key)
    graphs.refuse(WHAT, why)
    return None


def _run_steps(batch: BatchRun, given: Any) -> tuple[Tensor, list[Tensor], HostRecord]:
    x, conditions = given
    denoiser = replace(batch.denoiser, conditions=conditions, ledger=Ledger(), unchecked=[])
    cache = denoiser.cache
    before = 0 if cache is None else len(cache.ledger.calls)
    run = BatchRun(denoiser, batch.solver, batch.grid, batch.guidance)
    x = drive(run.steps(x), run.answer)
    outputs = [(each.node, each.values) for each in denoiser.unchecked]
    record = HostRecord(denoiser.ledger, outputs, None if cache is None else cache.record(before))
    return x, [each.norm for each in denoiser.unchecked], record


def _find_obstacle(batch: BatchRun, plan: Plan, key: Hashable, watched: bool) -> str | None:
    denoiser, guidance = batch.denoiser, batch.guidance
    calls = "; the calls of the network are"
    if denoiser.cache is not None and _reads_device(denoiser.cache):
        name = denoiser.cache.policy.info.name
        return f"{name} looks at the network in mid-call; it runs without, calls included"
    if plan.adaptive:
        return f"the solver chooses its own steps{calls}"
    if any(None in step for step in dry_run(plan.solver, plan.grid.nodes)):
        return f"the solver adds noise from the host{calls}"
    if denoiser.others:
        return f"the guidance asks another network as well{calls}"
    if watched:
        return f"a callback wants to see every step{calls}"
    if any(isinstance(each, Measured) for each in iterate_nested(guidance)):
        return f"each batch has measurements of its own{calls}"
    if not is_hashable(key):
        return f"its choices hold lists, which cannot be told from others{calls}"
    return None


def _reads_device(cache: Attachment) -> bool:
    policies = [engine.policy for engine in cache.engines]
    return any(each.gate is not None or each.keep.predictor.waits for each in policies)
