"""Facts of full runs, for masks: inner products of calls, and how errors grow to the end."""

import warnings
from functools import partial

import torch
from torch import Tensor

from ...models.caching import FixedMask, find_attachment
from ...models.caching.predictors import IndexPredictor, Taylor, take_predictor
from ...solvers import Schedule
from ...solvers.cached_calls import CachedCalls
from .masks import Weigh, forecast_error
from .problem import Block, Problem

ROWS = 8  # noises whose features are held at once
LEAST = 1e-12  # relative squared error, below which a call is as good as known


def record_gram(problem: Problem, schedule: Schedule, block: Block) -> Tensor:
    """Returns the inner products (S, S) of what enters the head at each call of a full run.

    They are sums over noises, branches and numbers, in float64.

    Args:
        problem: the network.
        schedule: one without a cache, of S evaluations.
        block: the noises.
    """
    every = FixedMask(tuple(range(schedule.nfe)), predictor="reuse")  # type: ignore[arg-type]
    total = torch.zeros(schedule.nfe, schedule.nfe, dtype=torch.float64)
    for first in range(0, len(block), ROWS):
        features: list[Tensor] = []

        def note(step: int, *_: object, kept: list[Tensor] = features) -> None:
            if schedule.evaluations[step] is not None:
                kept.append(_read_feature(problem, len(kept)))

        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".* skipped none of ")  # which is what it is for
            problem.run(schedule, block.rows(slice(first, first + ROWS)), every, note)
        rows = torch.stack(features).flatten(1).double()
        total += (rows @ rows.T).cpu()
    return total


def _read_feature(problem: Problem, index: int) -> Tensor:
    """Returns what the cache on the network has stored at the last call."""
    attachment = find_attachment(problem.network)
    assert attachment is not None
    (track,) = attachment.engines[0].tracks.values()
    (memory,) = track.stores.values()
    return memory.forecast(index)


def measure_gains(problem: Problem, schedule: Schedule, block: Block, gram: Tensor) -> Tensor:
    """Returns (S,): how much a squared error at each call grows to the end of the run.

        g_t = |x_end - x_end,full|^2 / |x_end,full|^2 / E_t,

    where call t alone is skipped, and E_t is its own relative squared error. Call 0 has none.

    Args:
        problem, schedule, block: as of `record_gram`.
        gram: (S, S) inner products, for E_t.
    """
    calls = schedule.nfe
    known = problem.ends(schedule, block).double()
    gains = torch.zeros(calls, dtype=torch.float64)
    for skipped in range(1, calls):
        mask = tuple(call for call in range(calls) if call != skipped)
        cached = schedule.with_cache(CachedCalls(compute=mask))
        change = (problem.ends(cached, block).double() - known).square().sum()
        times = tuple(range(skipped - 1, -1, -1))
        local = forecast_error(gram.numpy(), skipped, times, Taylor().weights(skipped, times))
        gains[skipped] = change / known.square().sum() / max(local, LEAST)
    return gains


def find_weights(predictor: str, calls: int) -> Weigh | None:
    """Returns the weights of a predictor in a run of so many calls, if indices decide on them."""
    kind = take_predictor(predictor)
    return partial(kind.weights, calls=calls) if isinstance(kind, IndexPredictor) else None
